"""Programs on one daemon, and on its server directly: each test runs in both ways."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from sessiond import Session, SessionManager
from tests.daemons import RunningDaemon, running_daemon
from tests.manager.programs import Connect, text_part


@pytest.fixture(scope="package")
def daemon() -> Iterator[RunningDaemon]:
    with running_daemon("--instance", "here") as daemon:
        yield daemon


@pytest.fixture(params=["daemon", "redis"])
def way(request: pytest.FixtureRequest) -> str:
    """How programs reach their sessions: through a daemon, or on the same server directly."""
    return str(request.param)


@pytest.fixture
async def connect(way: str, daemon: RunningDaemon) -> AsyncIterator[Connect]:
    """Connects one more program."""
    managers: list[SessionManager] = []

    def connected(name: str = "") -> SessionManager:
        if way == "daemon":
            manager = SessionManager.connect(socket=str(daemon.socket), name=name)
        else:
            manager = SessionManager.on_redis(f"unix://{daemon.redis_socket}", name=name)
        managers.append(manager)
        return manager

    yield connected
    for manager in managers:
        await manager.close()


@pytest.fixture
async def manager(connect: Connect) -> SessionManager:
    return connect()


@pytest.fixture
async def session(manager: SessionManager) -> Session:
    """A session with the message `m`, which has the part `p`."""
    session = await manager.create(preferences={"theme": "dark"})
    await session.add_message(id="m", role="user", parts=[text_part("p", "said")])
    return session

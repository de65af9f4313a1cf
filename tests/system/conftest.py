"""Two daemons on the embedded server of the first; or one on a server that may go away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from sessiond.client import DaemonClient
from tests.api.servers import DurableServer, durable_server
from tests.daemons import RunningDaemon, impatient_daemon, running_daemon


@pytest.fixture
def laptop() -> Iterator[RunningDaemon]:
    with running_daemon("--instance", "laptop") as daemon:
        yield daemon


@pytest.fixture
def desktop(laptop: RunningDaemon) -> Iterator[RunningDaemon]:
    url = f"unix://{laptop.redis_socket}"
    with running_daemon("--instance", "desktop", "--redis-url", url) as daemon:
        yield daemon


@pytest.fixture
async def here(laptop: RunningDaemon) -> AsyncIterator[DaemonClient]:
    client = DaemonClient(socket=str(laptop.socket), name="here")
    yield client
    await client.close()


@pytest.fixture
async def there(desktop: RunningDaemon) -> AsyncIterator[DaemonClient]:
    client = DaemonClient(socket=str(desktop.socket), name="there")
    yield client
    await client.close()


@pytest.fixture
def server() -> Iterator[DurableServer]:
    with durable_server() as server:
        yield server


@pytest.fixture
def daemon(server: DurableServer) -> Iterator[RunningDaemon]:
    """A daemon on that server, which does not wait long for it."""
    with impatient_daemon(server.url) as daemon:
        yield daemon


@pytest.fixture
async def client(daemon: RunningDaemon) -> AsyncIterator[DaemonClient]:
    client = DaemonClient(socket=str(daemon.socket), name="ana")
    yield client
    await client.close()

"""Two daemons on the embedded server of the first: two machines, as far as they can tell."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from sessiond.client import DaemonClient
from tests.daemons import RunningDaemon, running_daemon


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

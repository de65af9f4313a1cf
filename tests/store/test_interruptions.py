"""Commands that are cancelled, or not answered: their tasks end, and no answer goes astray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis

from sessiond.errors import StoreUnavailable
from sessiond.store.connection import OrderedConnections, answered, connect, translate
from sessiond.store.scripts import SNAPSHOT
from tests.conftest import Servers
from tests.store.relay import Relay
from tests.store.servers import RunningServer
from tests.store.support import real_servers, until

Command = Callable[[Redis, str], Coroutine[Any, Any, Any]]

LIMIT_SECONDS = 0.3
STEPS = 80
"""More steps of the event loop than connecting and a few commands take."""


async def read(client: Redis, text: str) -> Any:
    return await answered(client.execute_command("ECHO", text))


async def pipeline(client: Redis, text: str) -> Any:
    async with client.pipeline(transaction=False) as pipeline:
        for _ in range(3):
            pipeline.execute_command("ECHO", text)
        first, *others = await answered(pipeline.execute())
    assert others == [first, first]
    return first


async def script(client: Redis, text: str) -> Any:
    return await answered(client.execute_command("EVAL", "return ARGV[1]", 0, text))


every_command = pytest.mark.parametrize("command", [read, pipeline, script])


@pytest.fixture
async def relay(kind: str, servers: Servers) -> AsyncIterator[Relay]:
    async with Relay(servers.running(kind).socket).serving() as relay:
        yield relay


@pytest.fixture
async def client(relay: Relay) -> AsyncIterator[Redis]:
    """A client with one connection, through the relay."""
    client = connect(f"unix://{relay.path}", timeout_seconds=LIMIT_SECONDS, max_connections=1)
    yield client
    await client.aclose()


async def assert_ends_whenever_cancelled(url: str, command: Command) -> None:
    client = connect(url, timeout_seconds=5, max_connections=2)

    async def run_for_ever() -> None:
        while True:
            await command(client, "text")

    for steps in range(STEPS):
        tasks = {asyncio.create_task(run_for_ever()) for _ in range(3)}  # one waits for the pool
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        _, living = await asyncio.wait(tasks, timeout=2)
        assert not living, f"cancelled after {steps} steps"
        assert all(task.cancelled() for task in tasks)
    assert await asyncio.gather(*(command(client, "still") for _ in range(4))) == [b"still"] * 4
    await client.aclose()


@real_servers
@every_command
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_cancelled_task_ends_whatever_its_command_is_doing(
    kind: str, servers: Servers, command: Command, run: Callable[[Any], None]
) -> None:
    run(assert_ends_whenever_cancelled(servers.running(kind).url, command))


@real_servers
@every_command
async def test_a_server_that_halts_is_unavailable_in_time(
    own_server: RunningServer, command: Command
) -> None:
    client = connect(own_server.url, timeout_seconds=LIMIT_SECONDS, max_connections=2)
    assert await command(client, "text") == b"text"
    own_server.halt()
    for _ in range(3):  # on a connection that was there, and on new ones
        began = time.monotonic()
        outcomes = await asyncio.gather(
            *(command(client, "text") for _ in range(4)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 4
        assert LIMIT_SECONDS * 0.9 < time.monotonic() - began < LIMIT_SECONDS + 1
    own_server.resume()
    assert await command(client, "back") == b"back"
    await client.aclose()


@real_servers
async def test_scripts_in_order_on_a_server_that_halts_fail_in_time(
    own_server: RunningServer,
) -> None:
    client = connect(own_server.url, timeout_seconds=5, max_connections=2)
    connections = OrderedConnections(client, size=1, timeout_seconds=LIMIT_SECONDS)
    keys = ["a", "b", "c"]
    assert await SNAPSHOT.run(connections.execute, keys) == [[], [], []]
    own_server.halt()
    for _ in range(2):  # on the connection that was there, and on a new one
        began = time.monotonic()
        outcomes = await asyncio.gather(
            *(SNAPSHOT.run(connections.execute, keys) for _ in range(10)), return_exceptions=True
        )
        assert {type(translate(outcome)) for outcome in outcomes} == {StoreUnavailable}  # type: ignore[arg-type]
        assert time.monotonic() - began < LIMIT_SECONDS + 1
    own_server.resume()
    assert await SNAPSHOT.run(connections.execute, keys) == [[], [], []]
    await connections.close()
    await client.aclose()


@real_servers
@every_command
@pytest.mark.parametrize("ending", ["overdue", "cancelled"])
async def test_an_answer_that_comes_late_is_nobodys(
    relay: Relay, client: Redis, command: Command, ending: str
) -> None:
    assert await command(client, "first") == b"first"
    relay.close()
    late = asyncio.create_task(command(client, "late"))
    await until(lambda: relay.held > 0)
    if ending == "cancelled":
        late.cancel()
    await asyncio.wait([late])
    if ending == "cancelled":
        assert late.cancelled()
    else:
        assert isinstance(late.exception(), StoreUnavailable)
    relay.open()
    for number in range(5):
        text = f"own {number}"
        assert await command(client, text) == text.encode()


@real_servers
async def test_answers_stay_with_their_commands_however_often_some_come_late(
    relay: Relay, client: Redis
) -> None:
    async def ask(text: str) -> None:
        try:
            async with asyncio.timeout(0.02):
                assert await read(client, text) == text.encode()
        except (TimeoutError, StoreUnavailable):
            pass

    for round_ in range(20):
        relay.close()
        await ask(f"late {round_}")
        relay.open()
        await asyncio.gather(*(ask(f"{round_}-{number}") for number in range(5)))
    assert await read(client, "last") == b"last"

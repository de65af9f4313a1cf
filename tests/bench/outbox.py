"""What durability costs and gives: with and without the journal, with Redis away and back."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from sessiond.client import DaemonClient
from sessiond.model import NewMessage, NewSession, Written
from tests.api.servers import DurableServer, durable_server
from tests.bench.machinery import (
    Figure,
    RawClient,
    api_socket,
    daemon,
    figure,
    latencies,
    p50,
    p99,
    scratch,
    server,
    throughput,
)
from tests.system.observing import settled

_ROUNDS = 5
_ALONE = 1_000
_TOGETHER = 8_000
_CLIENTS = 16
_GROUP = 64
_BACKLOG_GROUPS = 400
_PACED_GROUPS = 600
_PACE = 10_000
"""Messages a second, twice of what is promised."""
_HEALS = 20


def figures() -> Iterator[Figure]:
    """Measure the outbox of real daemons."""
    with scratch() as folder, server(folder) as url:
        yield from uvloop.run(_cost(folder, url))
    with scratch() as folder, durable_server() as redis:
        yield from uvloop.run(_backlog(folder / "d", redis))
        yield from uvloop.run(_recovery(folder / "e", redis))


async def _cost(folder: Path, url: str) -> list[Figure]:
    """Appends with and without the journal, in turns."""
    alone: list[float] = []
    together: list[float] = []
    plain_flags, flags = ("--instance", "plain"), ("--instance", "durable")
    async with (
        daemon(folder / "a", "--redis-url", url, *flags) as (client, _),
        daemon(
            folder / "b", "--redis-url", url, *plain_flags, module="tests.bench.unjournaled"
        ) as (_, _),
    ):
        for name in ("a", "b"):
            await client.create(NewSession(session_id=f"ses_{name}"))
        for round_ in range(_ROUNDS):
            first = 1_000_000 * (round_ + 1)
            rates = {}
            lone = {}
            for name in ("a", "b") if round_ % 2 else ("b", "a"):
                lone[name], rates[name] = await _appends(folder / name, f"ses_{name}", first)
            alone.append(lone["a"] / lone["b"])
            together.append(rates["b"] / rates["a"])
    return [
        figure(
            "HTTP append, p50: with the journal / without", statistics.median(alone), "×", most=1.5
        ),
        figure("the same, time with 16 clients", statistics.median(together), "×", most=1.5),
    ]


async def _appends(folder: Path, session_id: str, first: int) -> tuple[float, float]:
    """Return the median seconds of appends one by one, and how many a second 16 clients make."""
    idle = [await RawClient.open(api_socket(folder)) for _ in range(_CLIENTS)]
    everyone = list(idle)

    async def append(index: int) -> None:
        mine = idle.pop()
        await mine.append(session_id, first + index)
        idle.append(mine)

    await latencies(200, append)
    lone = p50(await latencies(_ALONE, lambda index: append(1_000 + index)))
    rate = await throughput(_TOGETHER, _CLIENTS, lambda index: append(10_000 + index))
    for client in everyone:
        client.close()
    return lone, rate


async def _backlog(folder: Path, redis: DurableServer) -> list[Figure]:
    """Write while Redis is away; see how fast that is acknowledged, and then done."""
    async with daemon(folder, "--redis-url", redis.url) as (client, _):
        await client.create(NewSession(session_id="ses_backlog"))
        redis.kill()
        await _append(client, 0)  # finds out that Redis is away
        taken: list[float] = []

        async def append(index: int) -> None:
            began = time.perf_counter()
            written = await _append(client, index + 1)
            assert written.durability
            taken.append(time.perf_counter() - began)

        rate = _GROUP * await throughput(_BACKLOG_GROUPS, 4, append)
        saturated, taken = taken, []
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(_PACED_GROUPS):
                at = began + number * _GROUP / _PACE
                await asyncio.sleep(max(0, at - time.perf_counter()))
                group.create_task(append(_BACKLOG_GROUPS + number))
        redis.start()
        began = time.perf_counter()
        await settled(client, 120)
        replay = time.perf_counter() - began
        session = await client.page("ses_backlog", limit=1)
        assert session.messages
    groups = _BACKLOG_GROUPS + _PACED_GROUPS + 1
    return [
        figure("journaled over HTTP in groups of 64, Redis away", rate, "/s", least=5_000),
        figure("the same, p99 of a group", 1000 * p99(saturated), "ms", most=10),
        figure(f"at {_PACE:,} /s: p99 of a group", 1000 * p99(taken), "ms", most=10),
        figure("backlog → Redis", _GROUP * groups / replay, "/s", least=20_000),
    ]


async def _append(client: DaemonClient, index: int) -> Written:
    messages = [
        NewMessage(role="user", content="x" * 900, id=f"msg_{index}_{place}")
        for place in range(_GROUP)
    ]
    return await client.append("ses_backlog", messages)


async def _recovery(folder: Path, redis: DurableServer) -> list[Figure]:
    """Kill Redis, write, start it again: how long until the write is in it."""
    taken = []
    async with daemon(folder, "--redis-url", redis.url) as (client, _):
        await client.create(NewSession(session_id="ses_heal"))
        for number in range(_HEALS):
            redis.kill()
            await client.append("ses_heal", [NewMessage(role="user", content=str(number))])
            redis.start()
            began = time.perf_counter()
            await settled(client)
            taken.append(time.perf_counter() - began)
    return [
        figure("Redis back → nothing waits, p50", p50(taken), "s"),
        figure("the same, longest of 20", max(taken), "s", most=2),
    ]

"""What copies of sessions cost while Redis is there, and how fast they answer when it is away."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop
from redis.asyncio import Redis

from sessiond.client import DaemonClient
from sessiond.model import NewMessage, NewSession
from sessiond.service.status import Status
from sessiond.store.keys import Keys
from tests.api.servers import DurableServer, durable_server
from tests.bench.machinery import (
    Figure,
    RawClient,
    api_socket,
    daemon,
    figure,
    p50,
    scratch,
    server,
    throughput,
)
from tests.system.observing import until

_ROUNDS = 6
_TOGETHER = 20_000
_CLIENTS = 16
_LONG = 10_000
_GROUP = 64


def figures() -> Iterator[Figure]:
    """Measure daemons that keep copies, one beside another that keeps none."""
    with scratch() as folder, server(folder) as url:
        yield from uvloop.run(_cost(folder, url))
    with scratch() as folder, durable_server() as redis:
        yield from uvloop.run(_reading(folder / "d", redis))


async def _cost(folder: Path, url: str) -> list[Figure]:
    """Appends with and without copies, in turns; what a round leaves to copy counts for none."""
    without = folder / "without" / "sessiond"
    without.mkdir(mode=0o700, parents=True)
    (without / "sessions.yaml").write_text("replica:\n  limit_mib: 0\n", encoding="utf-8")
    ratios = []
    async with (
        daemon(folder / "with", "--redis-url", url, "--instance", "with") as (client, _),
        daemon(folder / "without", "--redis-url", url, "--instance", "without") as (_, _),
    ):
        for round_ in range(_ROUNDS):
            rates = {}
            for name in ("with", "without") if round_ % 2 else ("without", "with"):
                session_id = f"ses_{name}_{round_}"
                await client.create(NewSession(session_id=session_id))
                await _copied(client)
                rates[name] = await _appends(folder / name, session_id)
                await _copied(client)
                await client.delete(session_id)
            ratios.append(rates["without"] / rates["with"])
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})"
    found = figure(
        "HTTP append, time with 16 clients: with copies / without",
        statistics.median(ratios), "×", most=1.05,
    )  # fmt: skip
    found.measured += spread
    return [found]


async def _appends(folder: Path, session_id: str) -> float:
    """Return how many appends a second 16 clients make."""
    idle = [await RawClient.open(api_socket(folder)) for _ in range(_CLIENTS)]
    everyone = list(idle)

    async def append(index: int) -> None:
        mine = idle.pop()
        await mine.append(session_id, index)
        idle.append(mine)

    rate = await throughput(_TOGETHER, _CLIENTS, append)
    for each in everyone:
        each.close()
    return rate


async def _copied(client: DaemonClient) -> None:
    async def is_copied() -> bool:
        status: Status
        status, _ = await client.call("GET", "/v1/status", Status)
        is_behind = status.replica is None or status.replica.behind > 0
        return not (is_behind or status.outbox.waiting or status.outbox.in_doubt)

    await until(is_copied, 60)


async def _reading(folder: Path, redis: DurableServer) -> list[Figure]:
    async with daemon(folder, "--redis-url", redis.url) as (client, _):
        await client.create(NewSession(session_id="s"))
        said = [NewMessage(role="user", content="x" * 900) for _ in range(_GROUP)]
        for _ in range(_LONG // _GROUP):
            await client.append("s", said)
        online = await _load_seconds(client)
        await _copied(client)
        redis.kill()
        await client.append("s", said[:1])  # from now on it is known to be away
        offline = await _load_seconds(client)
        redis.start()
        await _copied(client)
        revived = await _revived_seconds(client, redis.url)
    return [
        figure(f"load {_LONG:,} messages through HTTP, Redis there, p50", online * 1e3, "ms"),
        figure("the same from the copy, Redis away, p50", offline * 1e3, "ms"),
        figure("Redis emptied → they are as they were, p50", p50(revived), "s"),
        figure("the same, longest of 10", max(revived), "s", most=2),
    ]


async def _revived_seconds(client: DaemonClient, url: str) -> list[float]:
    """Return how long it takes until an emptied Redis has the session again as it was."""
    key, taken = Keys().metadata("s"), []
    async with Redis.from_url(url) as redis:
        before = await redis.hmget(key, ["epoch", "version"])
        for _ in range(10):
            await redis.flushall()
            began = time.perf_counter()
            async with asyncio.timeout(60):
                while await redis.hmget(key, ["epoch", "version"]) != before:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            taken.append(time.perf_counter() - began)
            await _copied(client)
    return taken


async def _load_seconds(client: DaemonClient) -> float:
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        await client.load("s")
        taken.append(time.perf_counter() - began)
    return p50(taken)

"""What the JSON files cost those who write, and how far they are behind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from sessiond.client import DaemonClient
from sessiond.model import NewMessage, NewSession
from sessiond.service.status import Status
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
_ONE_BY_ONE = 3_000
_TOGETHER = 20_000
_CLIENTS = 16
_GROUP = 64
_LONG = 10_000


def figures() -> Iterator[Figure]:
    """Measure a daemon that keeps files beside one that keeps none, on one Redis."""
    with scratch() as folder, server(folder) as url:
        yield from uvloop.run(_cost(folder, url))


async def _cost(folder: Path, url: str) -> list[Figure]:
    """Appends with and without files, in turns; the writing goes on while they are measured."""
    _configure(folder / "with", mirror=True)
    _configure(folder / "without", mirror=False)
    single, together = list[float](), list[float]()
    async with (
        daemon(folder / "with", "--redis-url", url, "--instance", "with") as (client, _),
        daemon(folder / "without", "--redis-url", url, "--instance", "without") as (_, _),
    ):
        for round_ in range(_ROUNDS):
            took, rates = dict[str, float](), dict[str, float]()
            for name in ("with", "without") if round_ % 2 else ("without", "with"):
                session_id = f"ses_{name}_{round_}"
                await client.create(NewSession(session_id=session_id))
                await _written(client)
                took[name] = await _one_by_one(folder / name, session_id)
                rates[name] = await _all_at_once(folder / name, session_id)
                await client.delete(session_id)
                await _written(client)
            single.append(took["with"] / took["without"])
            together.append(rates["without"] / rates["with"])
        behind = await _behind_seconds(client)
    return [
        _ratio("HTTP append, p50: with files / without", single),
        _ratio("HTTP append, time with 16 clients: with files / without", together),
        figure(f"an append is in the file of {_LONG:,} messages after", behind, "s"),
    ]


def _configure(folder: Path, *, mirror: bool) -> None:
    place = folder / "sessiond"
    place.mkdir(mode=0o700, parents=True)
    folder.chmod(0o700)
    options = f"persistence:\n  mirror: {str(mirror).lower()}\n"
    (place / "sessions.yaml").write_text(options, encoding="utf-8")


def _ratio(name: str, ratios: list[float]) -> Figure:
    found = figure(name, statistics.median(ratios), "×", most=1.2)
    found.measured += f" ({min(ratios):.2f} to {max(ratios):.2f})"
    return found


async def _one_by_one(folder: Path, session_id: str) -> float:
    """Return the median time of one append, in seconds."""
    client = await RawClient.open(api_socket(folder))
    taken = []
    for index in range(_ONE_BY_ONE):
        began = time.perf_counter()
        await client.append(session_id, index)
        taken.append(time.perf_counter() - began)
    client.close()
    return p50(taken)


async def _all_at_once(folder: Path, session_id: str) -> float:
    """Return how many appends a second 16 clients make."""
    idle = [await RawClient.open(api_socket(folder)) for _ in range(_CLIENTS)]
    everyone = list(idle)

    async def append(index: int) -> None:
        mine = idle.pop()
        await mine.append(session_id, _ONE_BY_ONE + index)
        idle.append(mine)

    rate = await throughput(_TOGETHER, _CLIENTS, append)
    for each in everyone:
        each.close()
    return rate


async def _behind_seconds(client: DaemonClient) -> float:
    """Return how long an append takes into the file of a long session, when all is at rest."""
    await client.create(NewSession(session_id="long"))
    said = [NewMessage(role="user", content="x" * 900) for _ in range(_GROUP)]
    for _ in range(_LONG // _GROUP):
        await client.append("long", said)
    await _written(client)
    began = time.perf_counter()
    await client.append("long", said[:1])
    await _written(client)
    return time.perf_counter() - began


async def _written(client: DaemonClient) -> None:
    async def is_written() -> bool:
        status: Status
        status, _ = await client.call("GET", "/v1/status", Status)
        return status.files is not None and not status.files.behind

    await until(is_written, 60)

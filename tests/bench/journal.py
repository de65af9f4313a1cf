"""How fast a journal acknowledges, beside plain writes that are synced, on the same disk."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

from sessiond.journal import Journal
from tests.bench.machinery import Figure, body, figure, latencies, p50, p99, scratch, throughput

_WRITERS = 64
_APPENDS = 30_000
_LONE = 500


def figures() -> Iterator[Figure]:
    """Measure in a temporary folder: where that is no disk, the figures mean nothing."""
    with scratch() as folder:
        lone, batch = _plain(folder, body(0)), _plain(folder, body(0) * _WRITERS)
        yield figure("os.write + fdatasync of 1 KiB, p50", 1e6 * p50(lone), "µs")
        yield figure(f"the same of {_WRITERS} KiB, as appends", _WRITERS / p50(batch), "/s")
        yield figure("the same, p99", 1000 * p99(batch), "ms")
        yield from asyncio.run(_journal(folder, p50(lone)))


def _plain(folder: Path, content: bytes) -> list[float]:
    """Return the seconds that synced writes to the end of a file take."""
    descriptor = os.open(folder / "plain", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    taken = []
    for _ in range(_LONE):
        began = time.perf_counter()
        os.write(descriptor, content)
        os.fdatasync(descriptor)
        taken.append(time.perf_counter() - began)
    os.close(descriptor)
    return taken


async def _journal(folder: Path, lone_write: float) -> list[Figure]:
    journal = await Journal.open(folder / "journal")
    lone = p50(await latencies(_LONE, lambda index: journal.append("ses_0", [body(index)])))
    taken: list[float] = []

    async def append(index: int) -> None:
        began = time.perf_counter()
        await journal.append(f"ses_{index % _WRITERS}", [body(index)], key=f"key-{index}")
        taken.append(time.perf_counter() - began)

    rate = await throughput(_APPENDS, _WRITERS, append)
    read = 0
    began = time.perf_counter()
    async for page in journal.pending():
        read += len(page)
    reading = read / (time.perf_counter() - began)
    await journal.close()
    began = time.perf_counter()
    journal = await Journal.open(folder / "journal")
    opening = time.perf_counter() - began
    await journal.close()
    return [
        figure("journal: append of 1 KiB, alone, p50", 1e6 * lone, "µs"),
        figure("the same / os.write + fdatasync", lone / lone_write, "×"),
        figure(f"journal: {_WRITERS} writers, acknowledged appends", rate, "/s", least=5_000),
        figure("the same, p50", 1000 * p50(taken), "ms"),
        figure("the same, p99", 1000 * p99(taken), "ms", most=10),
        figure("journal: entries read for replay", reading, "/s", least=20_000),
        figure(f"journal: opened and verified, {read:,} entries", opening, "s"),
    ]

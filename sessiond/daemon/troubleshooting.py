"""Gathering what the doctor needs to tell what troubles sessions here; judged in `service`.

All of it takes some seconds at most: what does not fit in is said to be left out.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from sessiond.core import Core
from sessiond.errors import NotFound, StoreDamaged
from sessiond.service.finding import Finding, failed
from sessiond.service.health.scanning import Damage
from sessiond.service.health.troubles import (
    Speed,
    conflicts_finding,
    growth_finding,
    process_finding,
    scan_finding,
    speed_findings,
)
from sessiond.store.keys import SESSION_KINDS
from sessiond.store.workload import memory_of, slow_commands

_SCAN_SECONDS = 2.0
_NEWEST = 50
_TRIPS = 9
_SYNCS = 5
_WRITTEN_BYTES = 4096
_LOOP_SECONDS = 0.5
_LOOP_REMEMBERED = 120


class LoopLag:
    """Measures how late the event loop comes to what is due."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._now = now
        self._sleep = sleep
        self._late: deque[float] = deque(maxlen=_LOOP_REMEMBERED)

    @property
    def worst_ms(self) -> float:
        """How late it was at most within the last minute, in ms."""
        return max(self._late, default=0.0) * 1000

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            before = self._now()
            await self._sleep(_LOOP_SECONDS)
            self._late.append(max(0.0, self._now() - before - _LOOP_SECONDS))


class Troubleshooter:
    """Looks at the sessions of a Redis, and at what slows them down.

    Args:
        core: the services on that Redis.
        journal_folder: on the disk that writes wait for.
        lag: of this process's event loop.
    """

    def __init__(self, core: Core, journal_folder: Path, lag: LoopLag) -> None:
        self._core = core
        self._folder = journal_folder
        self._lag = lag

    async def findings(self) -> list[Finding]:
        """Return what is found.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        return [
            await _judged("sessions", self._scan()),
            await _judged("largest", self._growth()),
            process_finding(_resident_bytes()),
            await _judged("conflicts", self._conflicts()),
            *speed_findings(await self._speed()),
        ]

    async def _scan(self) -> Finding:
        """Scan the newest sessions, one at least, for a bounded time."""
        newest = await self._newest()
        deadline = time.monotonic() + _SCAN_SECONDS
        damage: list[Damage] = []
        scanned = 0
        for session_id in newest:
            try:
                damage += (await self._core.scanner.sessions([session_id])).damage
                scanned += 1
            except NotFound:  # listed, and not there yet or any more
                continue
            if time.monotonic() > deadline:
                break
        return scan_finding(scanned, damage, finished=scanned == len(newest))

    async def _growth(self) -> Finding:
        keys, newest = self._core.keys, await self._newest()
        names = [[keys.of_session(kind, name) for kind in SESSION_KINDS] for name in newest]
        sizes = await memory_of(self._core.redis, names)
        return growth_finding(None if sizes is None else dict(zip(newest, sizes, strict=True)))

    async def _conflicts(self) -> Finding:
        return conflicts_finding(await self._core.conflicts.of_all())

    async def _newest(self) -> list[str]:
        return [name for name, _ in await self._core.keyspace.newest(_NEWEST)]

    async def _speed(self) -> Speed:
        loop_ms = self._lag.worst_ms
        trips = [await _timed_ms(self._core.redis_answers) for _ in range(_TRIPS)]
        return Speed(
            trip_ms=median(trips),
            sync_ms=await asyncio.to_thread(_sync_ms, self._folder),
            loop_ms=loop_ms,
            slow=await slow_commands(self._core.redis, time.time()),
        )


async def _judged(check: str, looking: Awaitable[Finding]) -> Finding:
    """Return what a check found, also where it met damage that it was not looking for."""
    try:
        return await looking
    except StoreDamaged as error:
        return failed(check, error.detail, error.hint, code=error.code)


async def _timed_ms(work: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


def _sync_ms(folder: Path) -> float | None:
    """Return how long a small write takes until the disk has it; None where it cannot be made."""
    times = []
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(_SYNCS):
                began = time.perf_counter()
                os.write(file.fileno(), b"\0" * _WRITTEN_BYTES)
                os.fdatasync(file.fileno())
                times.append((time.perf_counter() - began) * 1000)
    except OSError:
        return None
    return median(times)


def _resident_bytes() -> int:
    """Return how much memory this process has, now, or at most where the system tells only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        import resource  # noqa: PLC0415 - of Unix alone

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * os.sysconf("SC_PAGE_SIZE")

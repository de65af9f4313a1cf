"""Time as the log writes it. The clock itself is handed in, so that tests can turn it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache

_SKEW_MS = 1000
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_LAST_MS = 253_402_300_799_000

Clock = Callable[[], int]
"""Returns milliseconds since 1970."""


def system_clock() -> int:
    """Return the machine's time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def steady_clock() -> int:
    """Return milliseconds of a clock that nobody can set; it goes on while the machine sleeps."""
    return time.clock_gettime_ns(_STEADY) // 1_000_000


class Skew:
    """How far this machine's clock is ahead of Redis's, which all machines share.

    What was measured holds until the clock is set. From that moment on it is corrected by as much
    as the clock was moved: a time taken for one of before would be wrong for ever. Clocks that
    agree to a second are taken as equal, so that times pass through unchanged. An answer says no
    more than that the server's time was taken between question and answer: a late one moves what
    was known only as far as that contradicts it.

    Args:
        clock: this machine's time, which can be set.
        steady: milliseconds since any moment, which cannot.
    """

    def __init__(self, clock: Clock = system_clock, steady: Clock = steady_clock) -> None:
        self._clock = clock
        self._steady = steady
        self._measured = 0
        self._gap = clock() - steady()

    async def measure(self, server_ms: Callable[[], Awaitable[int]]) -> None:
        """Ask the server for its time.

        Raises:
            StoreUnavailable: it does not answer; what was known holds.
        """
        known = self._measured + self._moved
        began = self._steady()
        gap = self._clock() - began
        server = await server_ms()
        least, most = began + gap - server, self._steady() + gap - server
        self._measured = min(max(known, least), most)
        self._gap = gap

    @property
    def has_jumped(self) -> bool:
        """Whether the clock was set since it was measured."""
        return self._moved != 0

    def ahead_ms(self) -> int:
        """Return how far the clock is ahead now; 0 when it is about right."""
        ahead = self._measured + self._moved
        return ahead if abs(ahead) >= _SKEW_MS else 0

    @property
    def _moved(self) -> int:
        moved = self._clock() - self._steady() - self._gap
        return moved if abs(moved) >= _SKEW_MS else 0


@lru_cache(maxsize=4)
def timestamp(ms: int) -> str:
    """Return milliseconds since 1970 as ISO 8601 in UTC: `2026-01-13T10:30:00.000Z`."""
    return moment(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_of(text: str) -> datetime:
    """Return what `timestamp` wrote as a datetime."""
    return datetime.fromisoformat(text)


def milliseconds(text: str) -> int:
    """Return what `timestamp` wrote in milliseconds since 1970."""
    return round(moment_of(text).timestamp() * 1000)


@lru_cache(maxsize=4)
def moment(ms: int) -> datetime:
    """Return milliseconds since 1970 as a datetime in UTC.

    A number that no calendar has becomes the nearest that it has: from 1970 to the year 9999.
    """
    return datetime.fromtimestamp(min(max(ms, 0), _LAST_MS) / 1000, UTC)

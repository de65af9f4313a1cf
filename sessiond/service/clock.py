"""Time as the log writes it. The clock itself is handed in, so that tests can turn it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

_LAST_MS = 253_402_300_799_000

Clock = Callable[[], int]
"""Returns milliseconds since 1970."""


def system_clock() -> int:
    """Return the machine's time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


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

"""Calls of a backend, repeated while what made them fail may pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sessiond.errors import SessiondError

Outcome = TypeVar("Outcome")

_TRIES = 5
_FIRST_PAUSE_SECONDS = 0.1


async def retried(call: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Repeat a call that failed for a passing reason; every write carries its own key."""
    pause = _FIRST_PAUSE_SECONDS
    for _ in range(_TRIES - 1):
        try:
            return await call()
        except SessiondError as error:
            if not error.temporary:
                raise
        await asyncio.sleep(pause)
        pause *= 2
    return await call()

"""Waiting for what other processes do."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

PATIENCE_SECONDS = 20.0


async def until(condition: Callable[[], T | Awaitable[T]], seconds: float = PATIENCE_SECONDS) -> T:
    """Ask again and again, and return the first answer that holds.

    Raises:
        AssertionError: none held in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        value = cast("T", await answer if inspect.isawaitable(answer) else answer)
        if value:
            return value
        assert time.monotonic() < deadline, f"still waiting: the last answer was {value!r}"
        await asyncio.sleep(0.01)

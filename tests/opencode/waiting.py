"""Waiting for what other processes do."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

PATIENCE_SECONDS = 20.0


@overload
async def until(condition: Callable[[], Awaitable[T]], seconds: float = ...) -> T: ...
@overload
async def until(condition: Callable[[], T], seconds: float = ...) -> T: ...
async def until(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Ask again and again, and return the first answer that holds.

    Raises:
        AssertionError: none held in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"still waiting: the last answer was {answer!r}"
        await asyncio.sleep(0.01)

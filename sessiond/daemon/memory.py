"""How the process gives memory back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE_BYTES = 1024 * 1024
_PERIOD_SECONDS = 5.0
_REST_SECONDS = 60.0
_WORTH_BYTES = 32 * 1024 * 1024
_STATM = Path("/proc/self/statm")


def give_large_blocks_back() -> bool:
    """Have glibc return the memory of what is larger than 1 MiB as soon as it is freed.

    It raises its own limit, 128 KiB, to the largest block that was ever freed: after a few large
    messages they lie in the heap, and what is small and lives on keeps it from shrinking.

    Returns:
        Whether the C library took it; others than glibc need no such thing.
    """
    mallopt = _function("mallopt")
    return bool(mallopt and mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))


async def give_the_rest_back() -> None:
    """Have glibc return what is free amid its heap, while the process is large; for ever.

    It does not by itself: after thousands of connections were closed, hundreds of MiB stay. Where
    little came of it, it is tried again a minute later.
    """
    trim = _function("malloc_trim")
    if trim is None:
        return
    usual = _resident_bytes()
    pause = _PERIOD_SECONDS
    while True:
        await asyncio.sleep(pause)
        before, pause = _resident_bytes(), _PERIOD_SECONDS
        if before - usual >= _WORTH_BYTES:
            gc.collect()  # closed connections are cycles, and an idle process makes no garbage
            await asyncio.to_thread(trim, 0)  # ctypes lets others run meanwhile
            if before - _resident_bytes() < _WORTH_BYTES:
                pause = _REST_SECONDS


def _function(name: str) -> Callable[..., int] | None:
    """Return a function of glibc; None where there is none."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), name, None)


def _resident_bytes() -> int:
    return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()

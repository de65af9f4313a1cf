"""How the process gives memory back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from typing import Any

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE_BYTES = 1024 * 1024
_PERIOD_SECONDS = 5.0
_WORTH_BYTES = 32 * 1024 * 1024


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
    """Have glibc return what is free amid its heap, whenever much was freed; for ever.

    It does not by itself: after thousands of connections were closed, hundreds of MiB stay.
    """
    trim, info = _function("malloc_trim"), _function("mallinfo2")
    if trim is None or info is None:
        return
    info.restype = _HeapInfo
    free = info().free_bytes
    while True:
        await asyncio.sleep(_PERIOD_SECONDS)
        free = min(free, info().free_bytes)
        if info().free_bytes - free >= _WORTH_BYTES:
            gc.collect()  # closed connections are cycles, and an idle process makes no garbage
            await asyncio.to_thread(trim, 0)  # ctypes lets others run meanwhile
            free = info().free_bytes  # what was returned counts as free as well


class _HeapInfo(ctypes.Structure):
    """What glibc's mallinfo2 tells: ten sizes, the ninth of what is free in its heaps."""

    _fields_ = (
        ("others", ctypes.c_size_t * 8),
        ("free_bytes", ctypes.c_size_t),
        ("at_its_top", ctypes.c_size_t),
    )


def _function(name: str) -> Any:
    """Return a function of glibc; None where there is none."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), name, None)

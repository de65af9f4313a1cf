"""How the process gives memory back."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE_BYTES = 1024 * 1024


def give_large_blocks_back() -> bool:
    """Have glibc return the memory of what is larger than 1 MiB as soon as it is freed.

    It raises its own limit, 128 KiB, to the largest block that was ever freed: after a few large
    messages they lie in the heap, and what is small and lives on keeps it from shrinking.

    Returns:
        Whether the C library took it; others than glibc need no such thing.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))

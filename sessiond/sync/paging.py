"""How much one answer holds: pages are limited by count, and by bytes. Pure."""

from __future__ import annotations

from collections.abc import Iterable

PAGE_BYTES = 8 * 1024 * 1024
"""How much JSON a page holds at most, but for one item that is longer by itself."""


def fitting(sizes: Iterable[int]) -> int:
    """Return how many items, from the first on, go into one page of `PAGE_BYTES`.

    One always does, so that whoever reads page after page gets on.
    """
    count = total = 0
    for size in sizes:
        total += size
        if count and total > PAGE_BYTES:
            break
        count += 1
    return count

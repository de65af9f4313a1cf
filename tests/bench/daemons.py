"""Daemons from outside: HTTP, events, loading, start and size."""

from __future__ import annotations

from tests.bench.machinery import Figure


def figures() -> list[Figure]:
    """Measure daemons."""
    return []

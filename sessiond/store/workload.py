"""What a server tells of its own load: how large keys are, and which commands were slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from sessiond.errors import ConfigurationError, StoreDamaged
from sessiond.store.connection import answered

_SAMPLES = 20
_LOOKED_AT = 64
_RECENT_SECONDS = 3600


async def memory_of(redis: Redis, names: Sequence[Sequence[str]]) -> list[int] | None:
    """Return about how many bytes keys take, for each group of names; None if that is not told."""
    async with redis.pipeline(transaction=False) as pipeline:
        for group in names:
            for name in group:
                pipeline.execute_command("MEMORY USAGE", name, "SAMPLES", _SAMPLES)
        try:
            sizes = iter(await answered(pipeline.execute()) if names else [])
        except (ConfigurationError, StoreDamaged):  # refused, or not known there
            return None
    return [sum(next(sizes) or 0 for _ in group) for group in names]


async def slow_commands(redis: Redis, now_s: float) -> Mapping[str, float] | None:
    """Return the slow commands of the last hour, the longest of each, in ms; None if not told.

    Their arguments stay in the server: what people wrote may be among them.
    """
    try:
        entries: Any = await answered(redis.slowlog_get(_LOOKED_AT))
    except (ConfigurationError, StoreDamaged):
        return None
    found: dict[str, float] = {}
    for entry in entries:
        if now_s - entry["start_time"] <= _RECENT_SECONDS:
            name = entry["command"].split(b" ", 1)[0].decode("ascii", "replace")
            found[name] = max(found.get(name, 0.0), entry["duration"] / 1000)
    return found

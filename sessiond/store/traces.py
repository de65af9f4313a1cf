"""Where daemons tell each other what became of a session's operations: a short, passing stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from redis.asyncio import Redis

from sessiond.store.connection import answered
from sessiond.store.keys import Keys

_MOST_EVENTS = 10_000
_KEPT_MS = 24 * 3600 * 1000


class TraceStore:
    """Writes and reads the traces of sessions.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def add(self, events: Mapping[str, Sequence[bytes]]) -> None:
        """Add events, JSON each, by session; the oldest of many go, and all after a day."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for session_id, texts in events.items():
                key = self._keys.trace(session_id)
                for text in texts:
                    pipeline.execute_command(
                        "XADD", key, "MAXLEN", "~", _MOST_EVENTS, "*", "json", text
                    )
                pipeline.pexpire(key, _KEPT_MS)
            await answered(pipeline.execute())

    async def read(self, session_id: str, limit: int) -> list[bytes]:
        """Return the newest events of a session, the oldest of them first."""
        entries = await answered(
            self._redis.execute_command(
                "XREVRANGE", self._keys.trace(session_id), "+", "-", "COUNT", limit
            )
        )
        return [fields[1] for _, fields in entries[::-1] if fields and fields[0] == b"json"]

"""How far each journal was written, as Redis remembers it, and which life of Redis this is."""

from __future__ import annotations

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.store.connection import answered
from sessiond.store.keys import Keys


class Watermark(Struct, frozen=True):
    """The last write of a journal: its incarnation and sequence."""

    incarnation: str
    sequence: int


class WatermarkStore:
    """Reads and notes watermarks.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def exchange(self, journal: str, now: Watermark) -> tuple[str, Watermark | None]:
        """Note how far a journal is written; return what was noted before, all at one moment.

        Returns:
            What tells this server and its history from others, and the watermark from before.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.info("server")
            pipeline.info("replication")
            pipeline.hget(self._keys.writers, journal)
            pipeline.hset(self._keys.writers, journal, f"{now.incarnation} {now.sequence}")
            server, replication, before, _ = await answered(pipeline.execute())
        life = f"{server.get('run_id', '')} {replication.get('master_replid', '')}"
        return life, _watermark(before)


def _watermark(value: bytes | None) -> Watermark | None:
    """Return what a field says; None where there is none, or something foreign."""
    incarnation, _, sequence = (value or b"").decode("ascii", "replace").partition(" ")
    if not (incarnation and sequence.isdecimal()):
        return None
    return Watermark(incarnation, int(sequence))

"""What a copy of a session has to have beside its log, and how a log goes on from a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.store.connection import answered
from sessiond.store.content import NOTHING, Hash, Stream, flat, hash_arguments, stream_arguments
from sessiond.store.keys import Keys
from sessiond.store.scripts import EXTEND
from sessiond.sync.position import Position
from sessiond.sync.unlogged import unlogged_lines

_WRITTEN = (
    *("conflicts", "conversation", "messages", "parts", "applied"),
    *("context", "preferences", "metadata"),
)
"""The kinds of keys that `extend` writes, in the order of `lua/extend.lua`."""


class Standing(Struct, frozen=True):
    """Where a log ends, and the lines that it does not tell of what is in it: see `Unlogged`.

    `position` is empty, and `lines` None, where the log is not there.
    """

    position: Position
    lines: dict[str, str] | None


class CopyStore:
    """Reads for copies, and writes what is put back from them.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def standing(self, session_id: str) -> Standing:
        """Return how a log stands, all of one moment."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            fields = ["epoch", "version", "archive"]
            pipeline.hmget(self._keys.metadata(session_id), fields)
            pipeline.hgetall(self._keys.applied(session_id))
            (epoch, version, archive), applied = await answered(pipeline.execute())
        if not (epoch and version and version.isdigit()):
            return Standing(Position("", 0), None)
        position = Position(_text(epoch), int(version))
        if archive is not None:
            return Standing(position, None)
        lines = {_text(name): _text(line) for name, line in applied.items()}
        return Standing(position, unlogged_lines(lines))

    async def conflicts(self, session_id: str, first: int, last: int) -> dict[int, list[bytes]]:
        """Return what is kept of conflicts between two offsets: offset → names and values."""
        key = self._keys.conflicts(session_id)
        found = await answered(
            self._redis.execute_command("XRANGE", key, f"{first}-0", f"{last}-0")
        )
        return {int(at.partition(b"-")[0]): list(fields) for at, fields in found}

    async def extend(
        self, session_id: str, end: Position, contents: Mapping[str, Hash | Stream]
    ) -> bool:
        """Write behind the end of a log, all at once.

        Args:
            session_id: whose log.
            end: where it ends; offset 0 where nothing is left of the session.
            contents: what comes to its keys, by their kinds; of documents, all that they hold.

        Returns:
            Whether it was done: it may end elsewhere by now.

        Raises:
            StoreDamaged: some key of the session is none of ours.
            StoreUnavailable: Redis is away, or full.
        """
        arguments: list[Any] = [end.epoch, end.offset] if end.offset else ["", ""]
        for kind in _WRITTEN:
            arguments += _arguments(contents.get(kind))
        keys = self._keys.log(session_id)
        return bool(await answered(EXTEND.run(self._redis.execute_command, keys, arguments)))


def _arguments(content: Hash | Stream | None) -> list[Any]:
    if not content:
        return NOTHING
    return hash_arguments(flat(content)) if isinstance(content, dict) else stream_arguments(content)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")  # something foreign is no line of ours

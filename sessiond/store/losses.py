"""What Redis lost of a log, put back as it was: at its end, all at once, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.model import DocumentName
from sessiond.store.connection import answered
from sessiond.store.content import (
    NOTHING,
    Hash,
    flat,
    hash_arguments,
    stream_arguments,
    stream_of,
)
from sessiond.store.keys import Keys
from sessiond.store.scripts import EXTEND
from sessiond.sync.aside import Aside
from sessiond.sync.entry import Entry
from sessiond.sync.position import Position


class Stretch(Struct, frozen=True):
    """Neighbouring entries of a log, and what the session's other keys hold behind them.

    Attributes:
        documents: all that they hold then.
        messages, parts, applied: the lines that are other ones than before.
        conflicts: what comes to them: offset → names and values.
    """

    entries: Sequence[Entry]
    documents: dict[DocumentName, Hash]
    messages: Hash
    parts: Hash
    applied: Hash
    conflicts: dict[int, list[bytes]]


class LossStore:
    """Reads what a log does not tell of itself, and puts back what is lost of one.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def aside(self, session_id: str, first: int, last: int) -> tuple[Position, Aside]:
        """Return where a log ends, and what it does not tell: the lines of all its entries.

        The position is empty where the session is not there.

        Args:
            session_id: whose log.
            first: offset of the first operation whose conflict is wanted.
            last: that of the last one.
        """
        keys = self._keys
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(keys.metadata(session_id), ["epoch", "version"])
            pipeline.hgetall(keys.applied(session_id))
            pipeline.execute_command(
                "XRANGE", keys.conflicts(session_id), f"{first}-0", f"{last}-0"
            )
            (epoch, version), applied, conflicts = await answered(pipeline.execute())
        end = Position(_text(epoch), int(version) if version and version.isdigit() else 0)
        lines = {_text(name): _text(line) for name, line in applied.items()}
        return end, Aside(lines, {int(at.partition(b"-")[0]): list(each) for at, each in conflicts})

    async def extend(self, session_id: str, end: Position, stretch: Stretch) -> bool:
        """Put entries back behind the end of a log, with all that belongs to them.

        Args:
            session_id: whose log.
            end: where it ends; offset 0 where nothing is left of the session.
            stretch: what follows there.

        Returns:
            Whether it was done: it may end elsewhere by now.
        """
        conflicts = [(f"{at}-0", each) for at, each in sorted(stretch.conflicts.items())]
        content: dict[str, list[Any]] = {
            self._keys.document(session_id, name): hash_arguments(flat(each))
            for name, each in stretch.documents.items()
        }
        content |= {
            self._keys.conversation(session_id): stream_arguments(stream_of(stretch.entries)),
            self._keys.messages(session_id): hash_arguments(flat(stretch.messages)),
            self._keys.parts(session_id): hash_arguments(flat(stretch.parts)),
            self._keys.applied(session_id): hash_arguments(flat(stretch.applied)),
            self._keys.conflicts(session_id): stream_arguments(conflicts),
        }
        keys = self._keys.log(session_id)
        arguments: list[Any] = [end.epoch, end.offset] if end.offset else ["", ""]
        for key in keys:
            arguments += content.get(key, NOTHING)
        return bool(await answered(EXTEND.run(self._redis.execute_command, keys, arguments)))


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")  # something foreign is no line of ours

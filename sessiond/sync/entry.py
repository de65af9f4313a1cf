"""One operation as the log keeps it, and as readers are told of it. Pure."""

from __future__ import annotations

from msgspec import Struct

from sessiond.codec.json import encode
from sessiond.sync.position import Position, entry_hash, fold


class Entry(Struct, frozen=True, gc=False, array_like=True):
    """One operation of a session's log; `json` is undecoded."""

    offset: int
    op: str
    at: str
    origin: str
    id: str
    epoch: str
    json: bytes

    @property
    def position(self) -> Position:
        """The position of a reader who has seen this entry."""
        return Position(self.epoch, self.offset)

    def follows(self, before: Position) -> bool:
        """Tell whether this is what was written behind a position, down to the last byte."""
        content = entry_hash(self.op, self.at, self.origin, self.id, self.json)
        return self.position == Position(fold(before.epoch, content), before.offset + 1)


class _Head(Struct, gc=False):
    """`model.Operation` without its body."""

    op: str
    session_id: str
    position: str
    at: str
    origin: str
    id: str


def operation_json(session_id: str, entry: Entry) -> bytes:
    """Return the entry as `model.Operation` in JSON; its body passes through undecoded."""
    position = f"{entry.epoch}:{entry.offset}"
    head = encode(_Head(entry.op, session_id, position, entry.at, entry.origin, entry.id))
    return b'%b,"body":%b}' % (head[:-1], entry.json)

"""One operation as the log keeps it, and as readers are told of it. Pure."""

from __future__ import annotations

from msgspec import Struct

from sessiond.codec.json import encode
from sessiond.sync.position import Position


class Entry(Struct, frozen=True, gc=False):
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


def operation_json(session_id: str, entry: Entry) -> bytes:
    """Return the entry as `model.Operation` in JSON; its body passes through undecoded."""
    head = encode(
        {
            "op": entry.op,
            "session_id": session_id,
            "position": f"{entry.epoch}:{entry.offset}",
            "at": entry.at,
            "origin": entry.origin,
            "id": entry.id,
        }
    )
    return b'%b,"body":%b}' % (head[:-1], entry.json)

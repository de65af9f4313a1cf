"""What this process wrote to logs, until it is copied.

It is known here at once; the copy of the log comes a moment later. In between, who reads without
Redis still sees what was acknowledged. A commit only notes its group: entries are made of it when
somebody reads.
"""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from sessiond.store.draft import Draft, origin_of
from sessiond.store.outcome import Committed
from sessiond.sync.entry import Entry
from sessiond.sync.position import Position

_GROUP_BYTES = 512
"""What a group counts for beside its JSON."""


class _Group(Struct, frozen=True, gc=False):
    drafts: list[Draft]
    committed: Committed
    size: int


class Written:
    """The last groups of many sessions.

    Args:
        writer: who writes here, as origins name it.
        limit_bytes: how much is kept, about; what was begun first goes first, a session at a time.
    """

    def __init__(self, writer: str, *, limit_bytes: int = 8 * 2**20) -> None:
        self._writer = writer
        self._limit_bytes = limit_bytes
        self._size = 0
        self._groups: dict[str, deque[_Group]] = {}

    @property
    def sessions(self) -> list[str]:
        """The sessions of which anything is kept."""
        return list(self._groups)

    def note(self, session_id: str, drafts: list[Draft], committed: Committed) -> None:
        """Take a group that was written."""
        if committed.duplicate:
            return
        size = _GROUP_BYTES + sum(len(draft.json) for draft in drafts)
        group = _Group(drafts, committed, size)
        self._groups.setdefault(session_id, deque()).append(group)
        self._size += size
        while self._size > self._limit_bytes:
            oldest = self._groups.pop(next(iter(self._groups)))
            self._size -= sum(group.size for group in oldest)

    def forget(self, session_id: str, offset: int) -> None:
        """Drop what was copied: a session's groups up to an offset."""
        groups = self._groups.get(session_id)
        if groups is None:
            return
        while groups and groups[0].committed.positions[-1].offset <= offset:
            self._size -= groups.popleft().size
        if not groups:
            del self._groups[session_id]

    def drop(self, session_id: str) -> None:
        """Forget a session that is not going to be copied."""
        self._size -= sum(group.size for group in self._groups.pop(session_id, ()))

    def after(self, session_id: str, position: Position) -> list[Entry]:
        """Return what follows at a position of a session's log, as far as that is known.

        Every entry is checked to follow on the one before: others write, and logs go back.
        """
        known = {
            entry.offset: entry
            for group in self._groups.get(session_id, ())
            for entry in self._entries(group)
        }
        found = list[Entry]()
        while (entry := known.get(position.offset + 1)) and entry.follows(position):
            found.append(entry)
            position = entry.position
        return found

    def _entries(self, group: _Group) -> list[Entry]:
        positions, first = group.committed.positions, group.committed.sequence
        return [
            Entry(
                offset=position.offset,
                op=draft.op,
                at=draft.at,
                origin=origin_of(draft, self._writer, first + place),
                id=draft.id,
                epoch=position.epoch,
                json=draft.json,
            )
            for place, (draft, position) in enumerate(zip(group.drafts, positions, strict=True))
        ]

"""What Redis lost of a session, put back from this machine's copy of its log, as it was.

Positions, order, conflicts and keys are those from before, so readers and writers go on as if
nothing had happened. Machines that do this at once come to the same: a stretch of the log is put
only where the log ends just before it. What no copy has is written again from the journals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog
from msgspec import Struct

from sessiond.codec import json
from sessiond.errors import (
    NotFound,
    ReplicaUnavailable,
    SessionDeleted,
    StoreDamaged,
)
from sessiond.model import DOCUMENTS
from sessiond.replica import Replica
from sessiond.service.clock import milliseconds
from sessiond.service.writing import Surroundings
from sessiond.store.losses import LossStore, Stretch
from sessiond.sync.aside import Aside
from sessiond.sync.derived import Derived, ids_of
from sessiond.sync.entry import Entry
from sessiond.sync.outline import Outline
from sessiond.sync.position import START, Position

_TRIES = 8
_TOGETHER = 256
_TOGETHER_BYTES = 2 * 1024 * 1024

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class _Copied(Struct):
    """A log as far as a copy of it is whole, and what it does not tell."""

    workspace: str
    entries: list[Entry]
    aside: Aside

    def goes_on_from(self, end: Position) -> bool:
        """Tell whether something follows in this on a position."""
        if end.offset >= len(self.entries):
            return False
        return end == (self.entries[end.offset - 1].position if end.offset else START)


class Revival:
    """Puts back what Redis lost.

    Args:
        around: the stores and the time.
        losses: puts a stretch of a log back.
        replica: this machine's copies.
    """

    def __init__(self, around: Surroundings, losses: LossStore, replica: Replica) -> None:
        self._around = around
        self._losses = losses
        self._replica = replica

    async def revive(self, session_id: str) -> bool:
        """Put back what Redis lost of a session; tell whether it has all of the copy then.

        It does not where there is no copy, where the log went on in another way, or where it is
        further than the copy.

        Raises:
            StoreUnavailable: Redis is away, or full: what is there then is a beginning of it.
        """
        for _ in range(_TRIES):
            try:
                done = await self._try(session_id)
            except (SessionDeleted, StoreDamaged):  # nothing is missed, or it is to be repaired
                return False
            if done is not None:
                return done
        return False

    async def _try(self, session_id: str) -> bool | None:
        """Do it once; None where somebody else wrote meanwhile."""
        end, copy = await self._end(session_id), self._replica.copies.get(session_id)
        if copy is None or end.offset >= copy.position.offset:
            return copy is not None and end == copy.position
        copied = await self._copied(session_id)
        if copied is None or not copied.goes_on_from(end):
            return False
        return await self._extend(session_id, copied, end) or None

    async def _copied(self, session_id: str) -> _Copied | None:
        """Return the copy of a session that was not deleted."""
        try:
            found = await self._replica.whole(session_id)
        except ReplicaUnavailable as error:
            _log.warning("session.not_revived", session_id=session_id, reason=error.detail)
            return None
        outline, entries, aside = found or (Outline(), [], Aside())
        if outline.deleted or not entries:
            return None
        return _Copied(outline.documents["metadata"]["workspace"], list(_whole(entries)), aside)

    async def _end(self, session_id: str) -> Position:
        try:
            return (await self._around.store.end(session_id)).position
        except NotFound:
            return START

    async def _extend(self, session_id: str, copied: _Copied, end: Position) -> bool:
        """Put back what is behind the end of a log; False where somebody else wrote there."""
        derived, entries = Derived(), copied.entries
        for stretch in _stretches(entries[: end.offset]):
            await _apply(stretch, derived)
        await self._list(session_id, copied)
        for stretch in _stretches(entries[end.offset :]):
            before = derived.position
            await _apply(stretch, derived)
            is_last = derived.offset == len(entries)
            aside = copied.aside.between(before.offset, derived.offset, is_last=is_last)
            if not await self._losses.extend(
                session_id, before, _with_the_rest(stretch, derived, aside)
            ):
                return False
        notice = {"session_id": session_id, "position": str(derived.position)}
        await self._around.store.publish(session_id, derived.workspace, json.encode(notice))
        count = len(entries) - end.offset
        _log.warning("session.revived", session_id=session_id, count=count, after=str(end))
        return True

    async def _list(self, session_id: str, copied: _Copied) -> None:
        """Enter a session in the indexes, before it is there: so no crash can hide it."""
        active_ms = milliseconds(max(entry.at for entry in copied.entries))
        await self._around.store.announce_creation(session_id, copied.workspace, active_ms)
        if copied.aside.conflicts:
            await self._around.conflicts.note(session_id, self._around.clock(), anew=True)


def _whole(entries: list[Entry]) -> Iterator[Entry]:
    """Yield the entries of a log from its beginning on, as far as it is what was written."""
    end = START
    for entry in entries:
        if not entry.follows(end):
            return
        yield entry
        end = entry.position


def _stretches(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Yield neighbours, as many as are put back at once."""
    stretch, size = list[Entry](), 0
    for entry in entries:
        if stretch and (len(stretch) == _TOGETHER or size + len(entry.json) > _TOGETHER_BYTES):
            yield stretch
            stretch, size = [], 0
        stretch.append(entry)
        size += len(entry.json)
    if stretch:
        yield stretch


async def _apply(stretch: list[Entry], derived: Derived) -> None:
    for entry in stretch:
        derived.apply(entry)
    await asyncio.sleep(0)  # others have their turn


def _with_the_rest(entries: list[Entry], derived: Derived, aside: Aside) -> Stretch:
    """Return entries with what the session's other keys hold behind them."""
    touched = {name.encode() for entry in entries for name in ids_of(entry)}
    lines = {
        kind: {name: line for name, line in derived.index_of(kind).items() if name in touched}
        for kind in ("messages", "parts")
    }
    applied = {
        writer.encode(): b"%d %d" % line
        for writer, line in derived.writers.items()
        if writer.encode() in touched
    }
    applied |= {name.encode(): line.encode() for name, line in aside.lines.items()}
    return Stretch(
        entries=entries,
        documents={name: derived.hash_of(name) for name in DOCUMENTS},
        messages=lines["messages"],
        parts=lines["parts"],
        applied=applied,
        conflicts=aside.conflicts,
    )

"""What Redis lost of a session, put back from this machine's copy of its log, as it was.

Positions, order, conflicts and keys are those from before, so readers and writers go on as if
nothing had happened. It is put back all at once, and only where the log ends just before it: so
machines that do this at once come to the same. What no copy has is written again from the journals.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import structlog
from msgspec import Struct

from sessiond.errors import (
    NotFound,
    SessionDeleted,
    StoreFull,
    StoreUnavailable,
    StoreWentBack,
    TooLarge,
)
from sessiond.model import DOCUMENTS
from sessiond.replica import Copy, Replica
from sessiond.service.clock import milliseconds
from sessiond.service.writing import Surroundings, commit
from sessiond.store.content import Hash, Stream, stream_of
from sessiond.store.copies import CopyStore
from sessiond.store.draft import Draft
from sessiond.sync.derived import Derived, ids_of, written_by
from sessiond.sync.entry import Entry
from sessiond.sync.position import START, Position
from sessiond.sync.unlogged import Unlogged

_TRIES = 8
_AT_ONCE = 2
_MOST_ENTRIES = 20_000
_MOST_BYTES = 16 * 1024 * 1024
"""More than that is not put back in one call, and so not at all."""
_MOST_FAILURES = 3
"""As often as that a call may fail, so that no session holds up all the others."""
_IN_ONE_TURN = 256

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Revive(Protocol):
    """Puts back what Redis lost of a session."""

    async def __call__(self, session_id: str, /, *, is_known: bool = True) -> bool:
        """Tell whether Redis has all of this machine's copy then.

        Args:
            session_id: which.
            is_known: whether Redis certainly had it; else nothing is put back where all is gone.
        """


async def leave_alone(_: str, /, *, is_known: bool = True) -> bool:  # noqa: ARG001 - as the others
    """Put nothing back: there are no copies."""
    return False


class _Outcome(Enum):
    """What came of a try. `CONTENDED`: somebody wrote meanwhile."""

    DONE = "done"
    IMPOSSIBLE = "impossible"
    CONTENDED = "contended"


class _Missing(Struct, frozen=True):
    """What a log lacks at its end, and the session as it is with it."""

    entries: Sequence[Entry]
    unlogged: Unlogged
    derived: Derived


class Revival:
    """Puts back what Redis lost.

    Args:
        around: the stores and the time.
        copies: writes what is put back.
        replica: this machine's copies.
    """

    def __init__(self, around: Surroundings, copies: CopyStore, replica: Replica) -> None:
        self._around = around
        self._copies = copies
        self._replica = replica
        self._few = asyncio.Semaphore(_AT_ONCE)
        self._failures: Counter[str] = Counter()

    async def revive(self, session_id: str, *, is_known: bool = True) -> bool:
        """Put back what Redis lost of a session; see `Revive`.

        It is left alone where there is no copy, where the log went on in another way or further
        than the copy, and where the copy is damaged.

        Raises:
            StoreUnavailable: Redis is away, or full.
        """
        async with self._few:  # a copy is wholly in memory meanwhile
            for _ in range(_TRIES):
                try:
                    outcome = await self._try(session_id, is_known=is_known)
                except SessionDeleted:  # nothing of it is missed
                    return False
                except StoreUnavailable:
                    raise
                except Exception as error:  # noqa: BLE001 - the journals must go on, whatever it is
                    reason = f"{type(error).__name__}: {error}"
                    _log.warning("session.not_revived", session_id=session_id, reason=reason)
                    return False
                if outcome is not _Outcome.CONTENDED:
                    return outcome is _Outcome.DONE
        return False

    async def _try(self, session_id: str, *, is_known: bool) -> _Outcome:
        copy, end = self._replica.copies.get(session_id), await self._end(session_id)
        if copy is None or (end == START and not is_known):
            return _Outcome.IMPOSSIBLE
        if copy.deleted:
            return await self._delete_again(copy, end)
        if end.offset >= copy.position.offset:
            return _Outcome.DONE if end == copy.position else _Outcome.IMPOSSIBLE
        missing = await _missing(*await self._replica.whole(session_id), end)
        if missing is None or self._failures[session_id] >= _MOST_FAILURES:
            return _Outcome.IMPOSSIBLE
        is_done = await self._extend(session_id, end, missing)
        is_all = missing.derived.position == copy.position
        if not is_done:
            await self._around.store.recall(session_id)  # an archived one is to be there first
            return _Outcome.CONTENDED
        return _Outcome.DONE if is_all else _Outcome.IMPOSSIBLE

    async def _end(self, session_id: str) -> Position:
        try:
            return (await self._around.store.end(session_id)).position
        except NotFound:
            return START

    async def _extend(self, session_id: str, end: Position, missing: _Missing) -> bool:
        store, derived = self._around.store, missing.derived
        size = sum(len(entry.json) for entry in missing.entries)
        if len(missing.entries) > _MOST_ENTRIES or size > _MOST_BYTES:
            raise TooLarge(
                f"{len(missing.entries)} operations of {size} bytes are too many at once"
            )
        active_ms = milliseconds(derived.last_activity)
        await store.announce_creation(session_id, derived.workspace, active_ms)
        if missing.unlogged.conflicts:
            await self._around.conflicts.note(session_id, self._around.clock(), at_once=True)
        try:
            is_done = await self._copies.extend(session_id, end, _contents(missing))
        except StoreFull:  # there is room for it later
            raise
        except StoreUnavailable:
            self._failures[session_id] += 1
            raise
        del self._failures[session_id]
        if not is_done:
            return False
        await store.announce_end(session_id, derived.workspace, derived.position)
        count = len(missing.entries)
        _log.warning("session.revived", session_id=session_id, count=count, after=str(end))
        return True

    async def _delete_again(self, copy: Copy, end: Position) -> _Outcome:
        """Delete a session that was deleted before Redis went back; not another one of its id."""
        session_id, store = copy.session_id, self._around.store
        (deletion,), _ = await self._replica.whole(session_id)
        if end == START:
            tombstone = _tombstone(copy, deletion)
            if not await self._copies.extend(session_id, end, tombstone):
                return _Outcome.CONTENDED
            await store.announce_end(session_id, copy.workspace, deletion.position)
        else:
            (first,) = await store.log.entries_at(session_id, [1])
            if first is None or first.epoch != copy.birth:
                return _Outcome.IMPOSSIBLE
            draft = Draft("session.delete", session_id, deletion.at, deletion.json)
            await store.forgive(session_id)
            try:
                await commit(self._around, session_id, [draft])
            except StoreWentBack:  # the journal has what was written here: it is looked for first
                return _Outcome.IMPOSSIBLE
        _log.warning("session.deleted_again", session_id=session_id)
        return _Outcome.DONE


async def _missing(entries: list[Entry], unlogged: Unlogged, end: Position) -> _Missing | None:
    """Return what a log that ends at a position lacks, as far as a copy is proven to have it.

    None where it lacks nothing, or where the copy is of another log.

    Raises:
        StoreDamaged: the copy holds what no log can.
    """
    derived = Derived()
    for entry in entries[: unlogged.end]:
        if not entry.follows(derived.position):
            break
        derived.apply(entry)
        if derived.offset == end.offset and derived.position != end:
            return None
        if derived.offset % _IN_ONE_TURN == 0:
            await asyncio.sleep(0)  # others have theirs
    if derived.offset <= end.offset:
        return None
    unlogged = unlogged.between(end.offset, derived.offset)
    return _Missing(entries[end.offset : derived.offset], unlogged, derived)


def _contents(missing: _Missing) -> dict[str, Hash | Stream]:
    """Return what comes to a session's keys, and what its documents hold."""
    derived, unlogged = missing.derived, missing.unlogged
    touched = {name.encode() for entry in missing.entries for name in ids_of(entry)}
    applied = {
        writer.encode(): b"%d %d" % line
        for writer, line in derived.writers.items()
        if writer.encode() in touched
    }
    applied |= {name.encode(): line.encode() for name, line in unlogged.lines.items()}
    conflicts = [(f"{at}-0", fields) for at, fields in sorted(unlogged.conflicts.items())]
    contents: dict[str, Hash | Stream] = {
        "conversation": stream_of(missing.entries),
        "conflicts": conflicts,
        "applied": applied,
    }
    for kind in ("messages", "parts"):
        lines = derived.index_of(kind)
        contents[kind] = {name: line for name, line in lines.items() if name in touched}
    return contents | {name: derived.hash_of(name) for name in DOCUMENTS}


def _tombstone(copy: Copy, deletion: Entry) -> dict[str, Hash | Stream]:
    """Return what is left of a deleted session; see `lua/delete.lua`."""
    writer, sequence = written_by(deletion.origin)
    metadata = {
        "session_id": copy.session_id,
        "status": "deleted",
        "workspace": copy.workspace,
        "deleted_at": deletion.at,
        "deleted_by": deletion.origin,
        "epoch": deletion.epoch,
        "version": str(deletion.offset),
        "last_activity": deletion.at,
        "total_messages": "0",
        "amendments": "0",
    }
    return {
        "conversation": stream_of([deletion]),
        "applied": {writer.encode(): b"%d %d" % (sequence, deletion.offset)},
        "metadata": {name.encode(): value.encode() for name, value in metadata.items()},
    }

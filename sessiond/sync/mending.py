"""Making a damaged log whole: from what is left of it, and from a copy of it. Pure.

The chain decides what may stand at a place: only what was written there has the epoch that follows
from the one before. Where nothing does, an operation that changes nothing takes the place of what
is lost, so that all later ones keep their offsets. From there on the epochs are new: to readers the
log is another one, as after a rollback of Redis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from sessiond.errors import StoreDamaged
from sessiond.sync.derived import Derived
from sessiond.sync.entry import Entry
from sessiond.sync.position import NO_EPOCH, Position, entry_hash, fold

_EPOCH = re.compile(r"[0-9a-f]{14}")
_SCATTERED = 16


class Mended(Struct):
    """A log made whole.

    Attributes:
        entries: all of it.
        derived: what it makes of the session.
        restored: offset → where the entry came from, if it is not what Redis holds.
        unproven: offsets of entries whose predecessor is lost: they are well-formed, no more.
        lost: offset → what is lost there.
    """

    entries: list[Entry] = field(default_factory=list)
    derived: Derived = field(default_factory=Derived)
    restored: dict[int, str] = field(default_factory=dict)
    unproven: list[int] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)


class Remains(Struct, frozen=True):
    """What is left of a log, by offset: in Redis, and in a copy.

    `known`: where the log ended, as the session's metadata says, if it does.
    """

    held: Mapping[int, Entry]
    copy: Mapping[int, Entry]
    known: Position | None

    @property
    def last(self) -> int:
        """The offset up to which the log is to be mended; what is beyond must link to it."""
        offsets = {*self.held, *self.copy}
        if self.known:
            return min(self.known.offset, max(offsets, default=0))
        likely = 2 * len(offsets) + _SCATTERED  # what others put there may have any offset
        return max((offset for offset in offsets if offset <= likely), default=0)

    def proven(self, offset: int, before: str | None) -> tuple[Entry, str] | None:
        """Return the entry of an offset that follows from the epoch before, and where it was."""
        if before is None:
            return None
        for entry, place in ((self.held.get(offset), ""), (self.copy.get(offset), "the copy")):
            if entry and _folded(before, entry) == entry.epoch:
                return entry, place
        return None

    def with_its_epoch(self, offset: int, before: str | None) -> Entry | None:
        """Return what Redis holds at an offset, if what follows proves all but its epoch."""
        entry = self.held.get(offset)
        if entry is None or before is None:
            return None
        epoch = _folded(before, entry)
        if self.proven(offset + 1, epoch) or self.known == Position(epoch, offset):
            return replace(entry, epoch=epoch)
        return None

    def epoch_at(self, offset: int) -> str | None:
        """Return the epoch of a damaged entry, if that at least is what was written."""
        entry = self.held.get(offset)
        if entry is None or not _EPOCH.fullmatch(entry.epoch):
            return None
        is_linked = self.proven(offset + 1, entry.epoch) or self.known == entry.position
        return entry.epoch if is_linked else None


def mend(remains: Remains, origin: str) -> Mended | None:
    """Return the log made whole; None where its beginning is lost, and so the session.

    Args:
        remains: what is left.
        origin: of what stands for lost operations.
    """
    mended = Mended()
    before: str | None = NO_EPOCH
    offset, last = 0, remains.last
    while offset < last or remains.proven(offset + 1, before):
        offset += 1
        entry, place = remains.proven(offset, before) or (None, "")
        if entry is None:
            entry = remains.with_its_epoch(offset, before)
            place = "what follows it" if entry else ""
        if entry is None and before is None and (entry := remains.held.get(offset)):
            mended.unproven.append(offset)
        is_known = entry is not None and _EPOCH.fullmatch(entry.epoch)
        before = entry.epoch if entry and is_known else remains.epoch_at(offset)
        if place:
            mended.restored[offset] = place
        if not _add(mended, offset, entry, origin) and offset == 1:
            return None
    if mended.unproven and mended.lost:
        mended.unproven = [place for place in mended.unproven if place not in mended.lost]
    return mended if mended.entries else None


def _add(mended: Mended, offset: int, entry: Entry | None, origin: str) -> bool:
    """Add an entry, or what stands for it; tell whether it is the entry."""
    why = "cannot be restored"
    if entry:
        try:
            entry = replace(entry, epoch=_folded(mended.derived.epoch, entry))
            mended.derived.apply(entry)
        except StoreDamaged as error:
            why = error.detail
        else:
            mended.entries.append(entry)
            return True
    if offset > 1:
        what = f" ({entry.op} {entry.id!r})" if entry else ""
        mended.lost[offset] = f"operation {offset}{what}: {why}"
        stand_in = _filler(offset, mended.entries[-1].at, origin)
        stand_in = replace(stand_in, epoch=_folded(mended.derived.epoch, stand_in))
        mended.derived.apply(stand_in)
        mended.entries.append(stand_in)
    return False


def _filler(offset: int, at: str, origin: str) -> Entry:
    """Return an operation that changes nothing, to stand where another one was lost."""
    json = b'{"set":{},"unset":[]}'
    return Entry(offset, "document.change", at, origin, "context", "", json)


def _folded(before: str, entry: Entry) -> str:
    return fold(before, entry_hash(entry.op, entry.at, entry.origin, entry.id, entry.json))

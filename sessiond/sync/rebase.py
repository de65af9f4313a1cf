"""A change of a document carried over to what others wrote since its base. Pure.

The log tells who wrote which field last, so each field's sides carry the stamps of those who wrote
them, not of whoever wrote the document last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import UNSET, Struct, structs

from sessiond.sync.merge import Conflict, merge
from sessiond.sync.rules import Fields
from sessiond.sync.sides import Side


class Writing(Struct, frozen=True):
    """What one operation of the log did to a document.

    Attributes:
        fields: field → value; UNSET for one that was removed.
        at: when, in milliseconds since 1970, by the writer's clock.
        offset: the operation's place in the log.
        origin: who wrote it.
    """

    fields: Mapping[str, Any]
    at: int
    offset: int
    origin: str

    def side(self, name: str) -> Side:
        """Return one field of it, as a side of a merge."""
        return Side(self.fields[name], self.at, self.offset, self.origin)


class Contest(Struct, frozen=True):
    """A conflict, and the stamps of both sides; their values stand in the conflict."""

    conflict: Conflict
    ours: Side
    theirs: Side


class Rebased(Struct, frozen=True):
    """A change as it looks on top of what others wrote, and what is not in it of either side."""

    value: dict[str, Any]
    contests: tuple[Contest, ...] = ()


def document_before(
    current: Mapping[str, Any], since: Iterable[Writing], earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a document as it was before some writings.

    Args:
        current: the document after them.
        since: the writings.
        earlier: the value that each field they touched had before; UNSET for none.
    """
    touched = touched_fields(since)
    before = {name: value for name, value in current.items() if name not in touched}
    return before | {name: earlier[name] for name in touched if earlier[name] is not UNSET}


def touched_fields(writings: Iterable[Writing]) -> set[str]:
    """Return the names of all fields that some writings set or removed."""
    return {name for writing in writings for name in writing.fields}


def rebased(
    base: Mapping[str, Any] | None,
    ours: Side,
    current: Mapping[str, Any],
    since: Sequence[Writing],
    rules: Fields,
) -> Rebased:
    """Merge a change of a document into the current one.

    Args:
        base: the document that the change was made on. None when nobody knows any more: then what
            both have the same stays; what only one has stays, too, for nobody can tell that it was
            removed; of what differs the later side stands and the other is a conflict (`rules`
            should be `LAST_WRITER`: no strategy can tell what was added to what).
        ours: the whole document as changed, and when and by whom.
        current: the document as it stands.
        since: what others wrote between the two, oldest first.
        rules: those of this document.
    """
    before = base or {}
    last = {name: writing for writing in since for name in writing.fields}
    value: dict[str, Any] = {}
    contests: list[Contest] = []
    for name in dict.fromkeys((*current, *ours.value)):
        mine, theirs = ours.value.get(name, UNSET), current.get(name, UNSET)
        writing = last.get(name)
        other = writing.side(name).holding(theirs) if writing else Side(theirs)
        own = ours.holding(mine)
        merged = merge(before.get(name, UNSET), own, other, rules.below(name))
        if merged.value is not UNSET:
            value[name] = merged.value
        contests += [
            Contest(structs.replace(one, path=(name, *one.path)), own, other)
            for one in merged.conflicts
        ]
    return Rebased(value, tuple(contests))

"""Two changes of one document made at once, merged field by field by stated rules. Pure.

Both sides began at the same base. What only one of them changed is taken as it is, so a clock
never decides against a change that knew of the other: the strategies judge only between changes
that did not. Every such pair is part of the value, or a conflict says what is not.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct

from sessiond.codec.json import MAX_DEPTH
from sessiond.sync.rules import Fields
from sessiond.sync.sequences import merged_order
from sessiond.sync.sides import Outcome, Path, Side, is_later, same
from sessiond.sync.strategies import MANUAL, between


class Conflict(Struct, frozen=True, kw_only=True):
    """A field that both sides changed, where a part of one is not in the merged value.

    Attributes:
        path: where; the document itself is the empty path. `rules.dotted` writes it for people.
        base, ours, theirs: the field before, and as each side had it; UNSET where it was not
            there (and then absent from the JSON, unlike null).
        strategy: the name of the strategy that decided.
        outcome: whose value stands now.
    """

    path: Path
    base: Any = UNSET
    ours: Any = UNSET
    theirs: Any = UNSET
    strategy: str
    outcome: Outcome

    @property
    def is_open(self) -> bool:
        """Whether a person is to decide (`manual`); until then the last writer's value stands."""
        return self.strategy == MANUAL.name


class Merged(Struct, frozen=True):
    """A document out of two; UNSET when it is removed. Conflicts stand in the order of paths."""

    value: Any
    conflicts: tuple[Conflict, ...] = ()


def merge(base: Any, ours: Side, theirs: Side, rules: Fields) -> Merged:
    """Merge two changes of one value, of JSON as `codec.json` decodes it.

    Objects merge field by field. So do lists in which every entry is an object with an `id` of
    its own; the path then goes on with the id. All else is decided as a whole by the strategy of
    its path. Custom strategies take objects and lists as a whole, too, and so does every strategy
    below `MAX_DEPTH` levels. The order of fields in the sides does not matter; nothing given is
    changed, but the result may share parts with it.

    Args:
        base: what both sides began with; UNSET when it was not there.
        ours: what we made of it.
        theirs: what the others made of it.
        rules: those of this document, `Rules.of(document)`.
    """
    if ours.stamp == theirs.stamp and same(ours.value, theirs.value):
        return Merged(ours.value)
    merging = _Merging(ours, theirs)
    value = merging.field((), rules, base, ours.value, theirs.value)
    return Merged(value, tuple(sorted(merging.conflicts, key=lambda conflict: conflict.path)))


class _Merging:
    """One merge on its way: the stamps of its sides, and the conflicts found so far."""

    def __init__(self, ours: Side, theirs: Side) -> None:
        self.conflicts: list[Conflict] = []
        self._ours = ours
        self._theirs = theirs

    def field(self, path: Path, rules: Fields, base: Any, ours: Any, theirs: Any) -> Any:
        if same(ours, base):
            return theirs
        if same(theirs, base):
            return ours
        if not rules.strategy.takes_whole and len(path) < MAX_DEPTH:
            if isinstance(ours, dict) and isinstance(theirs, dict):
                before = base if isinstance(base, dict) else {}
                return self._fields(path, rules, before, ours, theirs)
            if isinstance(ours, list) and isinstance(theirs, list):
                entries, others = _by_id(ours), _by_id(theirs)
                if entries is not None and others is not None:
                    return self._entries(path, rules, base, entries, others)
        return self._whole(path, rules, base, ours, theirs)

    def _fields(
        self,
        path: Path,
        rules: Fields,
        base: dict[str, Any],
        ours: dict[str, Any],
        theirs: dict[str, Any],
    ) -> dict[str, Any]:
        """Merge objects; fields keep the base's order, new ones follow by name."""
        merged: dict[str, Any] = {}
        new = sorted(name for name in {**ours, **theirs} if name not in base)
        for name in (*base, *new):
            before = base.get(name, UNSET)
            one, other = ours.get(name, UNSET), theirs.get(name, UNSET)
            if one is before or other is before:  # the most frequent case, without a call
                value = other if one is before else one
            else:
                value = self.field((*path, name), rules.below(name), before, one, other)
            if value is not UNSET:
                merged[name] = value
        return merged

    def _entries(
        self, path: Path, rules: Fields, base: Any, ours: dict[str, Any], theirs: dict[str, Any]
    ) -> list[Any]:
        """Merge lists of objects by their ids, as if these were the names of fields."""
        before = _by_id(base) or {}
        merged = self._fields(path, rules, before, ours, theirs)
        lists = [*ours.values()], [*theirs.values()]
        sides = self._ours.holding(lists[0]), self._theirs.holding(lists[1])
        ours_is_later = is_later(*sides)
        earlier, later = (theirs, ours) if ours_is_later else (ours, theirs)
        order = merged_order(list(before), list(earlier), list(later))
        names = dict.fromkeys(str(name) for name in order.items if name in merged)
        value = [merged[name] for name in [*names, *(each for each in merged if each not in names)]]
        if order.disputed:
            self._add(path, rules, (base, *lists), "ours" if ours_is_later else "theirs")
        return value[-(rules.strategy.cap or 0) :]

    def _whole(self, path: Path, rules: Fields, base: Any, ours: Any, theirs: Any) -> Any:
        sides = self._ours.holding(ours), self._theirs.holding(theirs)
        verdict = between(rules.strategy, base, *sides)
        if verdict.outcome is not None:
            self._add(path, rules, (base, ours, theirs), verdict.outcome)
        return verdict.value

    def _add(
        self, path: Path, rules: Fields, values: tuple[Any, Any, Any], outcome: Outcome
    ) -> None:
        base, ours, theirs = values
        name = rules.strategy.name
        self.conflicts.append(
            Conflict(path=path, base=base, ours=ours, theirs=theirs, strategy=name, outcome=outcome)
        )


def _by_id(value: Any) -> dict[str, Any] | None:
    """Return the entries of a list by their ids; None unless each is an object with its own."""
    if not isinstance(value, list):
        return None
    entries = {}
    for entry in value:
        name = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in entries:
            return None
        entries[name] = entry
    return entries

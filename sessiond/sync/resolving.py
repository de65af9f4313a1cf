"""What becomes of two changes of one value, by each strategy. Pure.

Each function takes the base and two sides that both differ from it. A strategy has values it is
for (lists, numbers, texts); where a side made something else of the field, or removed it, the
last writer wins and the other side is a conflict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from fractions import Fraction
from typing import Any, TypeAlias

from sessiond.sync.sequences import matches, merged_order, overlap
from sessiond.sync.sides import Outcome, Side, Verdict, canonical, is_later, same
from sessiond.sync.text_merge import merged_text

LARGEST_WHOLE_NUMBER = 2**63 - 1
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

Resolve: TypeAlias = Callable[[Any, Side, Side], Verdict]
"""(base, ours, theirs) → verdict."""

Rank: TypeAlias = tuple[Any, ...]
"""What a value is compared by; the first item is its kind."""


def last_writer(_base: Any, ours: Side, theirs: Side) -> Verdict:
    """Take the side written later: see `sides.is_later`."""
    if same(ours.value, theirs.value):
        return Verdict(ours.value)
    if is_later(ours, theirs):
        return Verdict(ours.value, "ours")
    return Verdict(theirs.value, "theirs")


def ours(_base: Any, ours: Side, _theirs: Side) -> Verdict:
    """Take our side."""
    return Verdict(ours.value, "ours")


def theirs(_base: Any, _ours: Side, theirs: Side) -> Verdict:
    """Take their side."""
    return Verdict(theirs.value, "theirs")


def union(base: Any, ours: Side, theirs: Side) -> Verdict:
    """Take an ordered set without what either removed, with what either added; see merged_order."""
    if not (isinstance(ours.value, list) and isinstance(theirs.value, list)):
        return last_writer(base, ours, theirs)
    before = _by_key(_listed(base))
    one, other = _by_key(ours.value), _by_key(theirs.value)
    earlier, later = (other, one) if is_later(ours, theirs) else (one, other)
    order = merged_order(list(before), list(earlier), list(later))
    known = before | one | other
    value = [known[key] for key in order.items]
    return Verdict(value, _whose(value, ours, theirs) if order.disputed else None)


def append(cap: int | None = None) -> Resolve:
    """Return what takes what both kept, then what each added, the earlier side's first.

    Beyond the cap the oldest entries go: that is the rule, and no conflict.
    """

    def resolve(base: Any, ours: Side, theirs: Side) -> Verdict:
        if not (isinstance(ours.value, list) and isinstance(theirs.value, list)):
            return last_writer(base, ours, theirs)
        earlier, later = (theirs, ours) if is_later(ours, theirs) else (ours, theirs)
        before = _listed(base)
        kept, added = _appended(before, earlier.value)
        kept_later, added_later = _appended(before, later.value)
        stays = [item for index, item in enumerate(before) if index in kept & kept_later]
        return Verdict([*stays, *added, *added_later][-cap if cap else 0 :])

    return resolve


def _appended(before: list[Any], after: list[Any]) -> tuple[set[int], list[Any]]:
    """Return which places of a list were kept, and what was added.

    A list with a cap loses its oldest entries as it grows, which a comparison alone would not
    see: repeated entries look alike.
    """
    keys, keys_after = [_key(item) for item in before], [_key(item) for item in after]
    pairs = matches(keys, keys_after)
    length = overlap(keys, keys_after)
    if length > len(pairs):
        return set(range(len(before) - length, len(before))), after[length:]
    taken = {place for _, place in pairs}
    return {place for place, _ in pairs}, [
        item for index, item in enumerate(after) if index not in taken
    ]


def counter(base: Any, ours: Side, theirs: Side) -> Verdict:
    """Add what each side added; a base that is no number counts as 0."""
    if not (_is_countable(ours.value) and _is_countable(theirs.value)):
        return last_writer(base, ours, theirs)
    start = base if _is_countable(base) else 0
    if isinstance(start, int) and isinstance(ours.value, int) and isinstance(theirs.value, int):
        return Verdict(ours.value + theirs.value - start)
    # As decimals, exactly: 0.1 and 0.2 make 0.3. Rounded once, at the end.
    total = sum(Fraction(str(value)) for value in (ours.value, theirs.value)) - Fraction(str(start))
    try:
        return Verdict(float(total))
    except OverflowError:
        return last_writer(base, ours, theirs)


def text(base: Any, ours: Side, theirs: Side) -> Verdict:
    """Merge line by line; where both touched the same lines, the later side's stand."""
    if not (isinstance(ours.value, str) and isinstance(theirs.value, str)):
        return last_writer(base, ours, theirs)
    before = base if isinstance(base, str) else ""
    earlier, later = (theirs, ours) if is_later(ours, theirs) else (ours, theirs)
    merged = merged_text(before, earlier.value, later.value)
    outcome = _whose(merged.text, ours, theirs) if merged.overlapping else None
    return Verdict(merged.text, outcome)


def greatest(rank: Callable[[Any], Rank | None], *, least: bool = False) -> Resolve:
    """Return what takes the side of the greatest rank; `rank` is None for what has none.

    Ranks of different kinds (their first item) do not compare; then the last writer wins. A side
    beaten on its way up is part of the winner's way. One that had gone the other way is not: that
    is a conflict.
    """

    def resolve(base: Any, ours: Side, theirs: Side) -> Verdict:
        start, one, other = rank(base), rank(ours.value), rank(theirs.value)
        if one is None or other is None or one[0] != other[0]:
            return last_writer(base, ours, theirs)
        ours_wins = one < other if least else one > other
        winner, beaten = (ours, other) if ours_wins else (theirs, one)
        if start is None or start[0] != beaten[0]:
            return Verdict(winner.value)
        turned = beaten > start if least else beaten < start
        return Verdict(winner.value, ("ours" if ours_wins else "theirs") if turned else None)

    return resolve


def size(value: Any) -> Rank | None:
    """Rank numbers among numbers, and texts among texts; moments (RFC 3339) by when they are."""
    if _is_number(value):
        return "number", value, canonical(value)
    if not isinstance(value, str):
        return None
    moment = _moment(value)
    return ("text", 0, value) if moment is None else ("text", 1, moment, value)


def _moment(text: str) -> datetime | None:
    if not _RFC_3339.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError:  # the 32nd of a month
        return None


def place_in(order: Sequence[str]) -> Callable[[Any], Rank | None]:
    """Return what ranks the words of an order, the weakest first."""
    ranks = {word: ("word", rank) for rank, word in enumerate(order)}
    return lambda value: ranks.get(value) if isinstance(value, str) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_countable(value: Any) -> bool:
    return _is_number(value) and abs(value) <= (
        LARGEST_WHOLE_NUMBER if isinstance(value, int) else float("inf")
    )


def _listed(base: Any) -> list[Any]:
    return base if isinstance(base, list) else []


def _key(item: Any) -> Hashable:
    return item if isinstance(item, str) else canonical(item)


def _by_key(items: list[Any]) -> dict[Hashable, Any]:
    return {item if isinstance(item, str) else canonical(item): item for item in items}


def _whose(value: Any, ours: Side, theirs: Side) -> Outcome:
    if same(value, ours.value):
        return "ours"
    return "theirs" if same(value, theirs.value) else "merged"

"""Texts merged line by line, as diff3 does. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sessiond.sync.sequences import matches


class MergedText(NamedTuple):
    """A text out of two; `overlapping` when both had changed the same lines, differently."""

    text: str
    overlapping: bool


class _Change(NamedTuple):
    """Lines of the base, from `begin` to before `end`, and what one side put in their place."""

    begin: int
    end: int
    lines: list[str]
    by_later: bool


def merged_text(base: str, earlier: str, later: str) -> MergedText:
    """Merge two texts that were one: every change of lines that only one side touched is taken.

    Where both touched the same lines, or added lines at the same place, and not to the same
    effect, the later side's lines stand.
    """
    lines = base.split("\n")
    changes = sorted(
        [
            *_changes(lines, earlier.split("\n"), by_later=False),
            *_changes(lines, later.split("\n"), by_later=True),
        ]
    )
    merged: list[str] = []
    overlapping = False
    done = 0
    for group in _groups(changes):
        begin, end = group[0].begin, max(change.end for change in group)
        merged += lines[done:begin]
        one, other = (
            _applied(lines, begin, end, [each for each in group if each.by_later is by_later])
            for by_later in (False, True)
        )
        alone = len({change.by_later for change in group}) == 1
        overlapping = overlapping or not (alone or one == other)
        merged += other if not alone or group[0].by_later else one
        done = end
    return MergedText("\n".join([*merged, *lines[done:]]), overlapping)


def _changes(base: list[str], side: list[str], *, by_later: bool) -> Iterator[_Change]:
    begin = side_begin = 0
    for place, side_place in [*matches(base, side), (len(base), len(side))]:
        if begin < place or side_begin < side_place:
            yield _Change(begin, place, side[side_begin:side_place], by_later)
        begin, side_begin = place + 1, side_place + 1


def _groups(changes: Sequence[_Change]) -> Iterator[list[_Change]]:
    """Put together the changes that touch the same lines, or add at the same place."""
    group: list[_Change] = []
    end = -1
    for change in changes:
        at_the_same_place = bool(group) and change.begin == change.end == group[0].begin == end
        if group and not (change.begin < end or at_the_same_place):
            yield group
            group, end = [], -1
        group.append(change)
        end = max(end, change.end)
    if group:
        yield group


def _applied(lines: list[str], begin: int, end: int, changes: list[_Change]) -> list[str]:
    applied: list[str] = []
    for change in changes:
        applied += [*lines[begin : change.begin], *change.lines]
        begin = change.end
    return [*applied, *lines[begin:end]]

"""Sequences compared and merged: what two have in common, and one order out of two. Pure.

The time is near to linear whatever they hold, unlike that of `difflib`, whose worst case a
message could be made of.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

_DEPTH = 16
"""How often stretches between matches are compared anew."""

Pair: TypeAlias = tuple[int, int]


class _Stretch(NamedTuple):
    """Parts of both sequences that are to be compared: from, to; from, to."""

    begin: int
    end: int
    other_begin: int
    other_end: int


class Order(NamedTuple):
    """One order out of two; `disputed` when both sides moved what was there, differently."""

    items: list[Hashable]
    disputed: bool


def matches(one: Sequence[Hashable], other: Sequence[Hashable]) -> list[Pair]:
    """Return the places of what two sequences have in common, in order (a patience diff).

    Equal beginnings and ends match; between them, what occurs once in each; and so on between
    those. A stretch without anything that occurs once is taken as changed altogether.
    """
    return list(_matches(one, other, _Stretch(0, len(one), 0, len(other)), _DEPTH))


def _matches(
    one: Sequence[Hashable], other: Sequence[Hashable], within: _Stretch, depth: int
) -> Iterator[Pair]:
    begin, end, other_begin, other_end = within
    while begin < end and other_begin < other_end and one[begin] == other[other_begin]:
        yield begin, other_begin
        begin, other_begin = begin + 1, other_begin + 1
    tail = 0
    while begin < end and other_begin < other_end and one[end - 1] == other[other_end - 1]:
        end, other_end, tail = end - 1, other_end - 1, tail + 1
    middle = _Stretch(begin, end, other_begin, other_end)
    anchors = _anchors(one, other, middle) if depth else []
    if anchors:
        for anchor in [*anchors, (end, other_end)]:
            gap = _Stretch(begin, anchor[0], other_begin, anchor[1])
            yield from _matches(one, other, gap, depth - 1)
            if anchor[0] < end:
                yield anchor
            begin, other_begin = anchor[0] + 1, anchor[1] + 1
    for index in range(tail):
        yield end + index, other_end + index


def _anchors(
    one: Sequence[Hashable], other: Sequence[Hashable], within: _Stretch
) -> list[tuple[int, int]]:
    """Return the longest run of matches, rising on both sides, of what occurs once in each."""
    begin, end, other_begin, other_end = within
    counts = Counter(one[begin:end])
    other_counts = Counter(other[other_begin:other_end])
    places = {one[i]: i for i in range(begin, end) if counts[one[i]] == 1}
    pairs = [
        (places[other[j]], j)
        for j in range(other_begin, other_end)
        if other_counts[other[j]] == 1 and other[j] in places
    ]
    return _rising(pairs)


def _rising(pairs: list[Pair]) -> list[Pair]:
    """Return a longest part of the pairs whose first numbers rise, as their second ones do."""
    tops: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for index, (place, _) in enumerate(pairs):
        pile = bisect_left(tops, place)
        before.append(ends[pile - 1] if pile else -1)
        if pile == len(tops):
            tops.append(place)
            ends.append(index)
        else:
            tops[pile], ends[pile] = place, index
    rising: list[Pair] = []
    index = ends[-1] if ends else -1
    while index >= 0:
        rising.append(pairs[index])
        index = before[index]
    return rising[::-1]


def overlap(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Return the length of the longest end of one that the other begins with."""
    length = min(len(one), len(other))
    pattern = other[:length]
    fallback = _borders(pattern)
    matched = 0
    for item in one[len(one) - length :]:
        while matched and (matched == length or pattern[matched] != item):
            matched = fallback[matched - 1]
        if matched < length and pattern[matched] == item:
            matched += 1
    return matched


def _borders(pattern: Sequence[Hashable]) -> list[int]:
    """Return for every beginning of it the longest shorter one that it ends with (KMP)."""
    borders = [0] * len(pattern)
    matched = 0
    for index in range(1, len(pattern)):
        while matched and pattern[matched] != pattern[index]:
            matched = borders[matched - 1]
        matched += pattern[matched] == pattern[index]
        borders[index] = matched
    return borders


def merged_order(
    base: Sequence[Hashable], earlier: Sequence[Hashable], later: Sequence[Hashable]
) -> Order:
    """Merge two ordered sets that were one: without what either removed, with what either added.

    What stays keeps the order of the side that moved it, the later one if both did. What was
    added follows, the earlier side's first. Each item occurs once in each sequence.
    """
    if earlier in (base, later):
        return Order(list(later), disputed=False)
    if later == base:
        return Order(list(earlier), disputed=False)
    before = set(base)
    both = before.intersection(earlier).intersection(later)
    kept, kept_earlier, kept_later = (
        [item for item in side if item in both] for side in (base, earlier, later)
    )
    disputed = kept not in (kept_earlier, kept_later) and kept_earlier != kept_later
    order = kept_earlier if kept_later == kept else kept_later
    added = dict.fromkeys(item for item in [*earlier, *later] if item not in before)
    return Order([*order, *added], disputed)

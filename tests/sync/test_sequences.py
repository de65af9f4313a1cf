"""What two sequences have in common, and one order out of two."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sessiond.sync.sequences import matches, merged_order, overlap

sequences = st.lists(st.sampled_from("abcdefgh"), max_size=12)
orders = st.lists(st.sampled_from("abcdefgh"), max_size=8, unique=True)


@given(sequences, sequences)
def test_matches_are_equal_and_rise_on_both_sides(one: list[str], other: list[str]) -> None:
    found = matches(one, other)
    assert all(one[place] == other[other_place] for place, other_place in found)
    for side in (0, 1):
        places = [pair[side] for pair in found]
        assert places == sorted(set(places))


@given(sequences, sequences, sequences)
def test_a_common_beginning_and_end_match(
    begin: list[str], middle: list[str], end: list[str]
) -> None:
    found = matches([*begin, *end], [*begin, *middle, *end])
    assert len(found) == len(begin) + len(end)


@given(orders, orders)
def test_without_repetition_the_matches_are_the_most_possible(
    one: list[str], other: list[str]
) -> None:
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, item in enumerate(one, 1):
        for j, counterpart in enumerate(other, 1):
            longer = lengths[i - 1][j - 1] + 1
            skipped = max(lengths[i - 1][j], lengths[i][j - 1])
            lengths[i][j] = longer if item == counterpart else skipped
    assert len(matches(one, other)) == lengths[-1][-1]


@given(st.lists(st.sampled_from("ab"), max_size=10), st.lists(st.sampled_from("ab"), max_size=10))
def test_the_overlap_is_the_longest_end_that_the_other_begins_with(
    one: list[str], other: list[str]
) -> None:
    lengths = [
        length
        for length in range(min(len(one), len(other)) + 1)
        if one[len(one) - length :] == other[:length]
    ]
    assert overlap(one, other) == max(lengths)


@given(orders, orders, orders)
def test_an_order_holds_what_neither_removed_and_what_either_added(
    base: list[str], earlier: list[str], later: list[str]
) -> None:
    order = merged_order(base, earlier, later)
    removed = (set(base) - set(earlier)) | (set(base) - set(later))
    assert sorted(map(str, order.items)) == sorted(
        (set(base) | set(earlier) | set(later)) - removed
    )


@given(orders, orders)
def test_an_order_that_one_side_changed_is_that_sides(base: list[str], side: list[str]) -> None:
    for pair in ((base, side), (side, base), (side, side)):
        assert merged_order(base, *pair) == (side, False)


@given(orders, orders, orders)
def test_who_is_later_decides_about_an_order_only_in_a_dispute(
    base: list[str], one: list[str], other: list[str]
) -> None:
    order, turned = merged_order(base, one, other), merged_order(base, other, one)
    assert order.disputed == turned.disputed
    before = set(base)
    kept, kept_turned = ([x for x in each.items if x in before] for each in (order, turned))
    assert order.disputed or kept == kept_turned

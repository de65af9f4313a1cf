"""Texts merged line by line."""

from __future__ import annotations

import pytest
from hypothesis import given

from sessiond.sync.text_merge import merged_text
from tests.sync.merging import lines


@pytest.mark.parametrize(
    ("base", "earlier", "later", "text", "overlapping"),
    [
        ("a", "a", "b", "b", False),
        ("a", "b", "a", "b", False),
        ("a", "b", "b", "b", False),
        ("a", "b", "c", "c", True),
        ("a\nb\nc", "A\nb\nc", "a\nb\nC", "A\nb\nC", False),
        ("a\nb", "A\nb", "a\nB", "A\nB", False),
        ("a\nb", "a\nnew\nb", "a\nB", "a\nnew\nB", False),
        ("a\nb", "a\nnew\nb", "A\nb", "A\nnew\nb", False),
        ("a\nb", "a\none\nb", "a\ntwo\nb", "a\ntwo\nb", True),
        ("a\nb", "a\none\nb", "a\none\nb", "a\none\nb", False),
        ("a", "a\none", "a\ntwo", "a\ntwo", True),
        ("a", "one\na", "a\ntwo", "one\na\ntwo", False),
        ("a\nb\nc\nd", "a\nd", "a\nb\nnew\nc\nd", "a\nb\nnew\nc\nd", True),
        ("a\nb\nc\nd", "A\nb\nc\nD", "x\nb\nc\nd", "x\nb\nc\nD", True),
        ("a\nb\nc\n", "a\nc\n", "a\nb\nc\nd\n", "a\nc\nd\n", False),
        ("", "a", "b", "b", True),
        ("", "", "b\r\nc", "b\r\nc", False),
    ],
)
def test_lines_that_one_side_touched_are_taken_and_the_later_sides_of_both(
    base: str, earlier: str, later: str, text: str, *, overlapping: bool
) -> None:
    assert merged_text(base, earlier, later) == (text, overlapping)


@given(lines, lines)
def test_a_side_that_changed_nothing_has_no_say(base: str, side: str) -> None:
    assert merged_text(base, base, side) == (side, False)
    assert merged_text(base, side, base) == (side, False)
    assert merged_text(base, side, side) == (side, False)


@given(lines, lines, lines)
def test_who_is_later_matters_only_where_they_overlap(base: str, one: str, other: str) -> None:
    merged, turned = merged_text(base, one, other), merged_text(base, other, one)
    assert merged.overlapping == turned.overlapping
    assert merged.overlapping or merged == turned


@given(lines, lines, lines)
def test_changes_far_from_each_other_both_stand(base: str, one: str, other: str) -> None:
    middle = "\n--- a line that stays ---\n"
    merged = merged_text(base + middle + base, one + middle + base, base + middle + other)
    assert merged == (one + middle + other, False)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("line", ["\n", "a\n", "a\nb\n", "a\nb\nb\n"])
def test_repetitive_texts_take_no_longer_than_others(line: str) -> None:
    base = line * 20_000
    merged_text(base, base[9:-3] + line, "b\n" + base.replace("b", "a", 5_000))

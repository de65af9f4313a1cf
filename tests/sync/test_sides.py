"""Values compared as JSON does, and which side counts as the later."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from msgspec import UNSET

from sessiond.sync.sides import canonical, is_later, same
from tests.sync.merging import fields, side

DIFFERENT: list[Any] = [
    0,
    0.0,
    -0.0,
    False,
    None,
    "",
    "0",
    [],
    {},
    UNSET,
    [0],
    [False],
    {"a": None},
]


@pytest.mark.parametrize(("one", "other"), [*combinations(DIFFERENT, 2)])
def test_values_that_json_tells_apart_are_different_however_deep(one: Any, other: Any) -> None:
    assert not same(one, other)
    if UNSET not in (one, other):
        assert not same([{"deep": one}], [{"deep": other}])


def test_the_order_of_fields_makes_no_difference_and_that_of_lists_does() -> None:
    assert same({"a": [1], "b": {}}, {"b": {}, "a": [1]})
    assert not same([1, 2], [2, 1])


@given(fields, fields)
def test_same_is_what_json_writes_the_same(one: Any, other: Any) -> None:
    assert same(one, other) == (canonical(one) == canonical(other))


@given(fields, fields)
def test_of_two_different_sides_exactly_one_is_later(one: Any, other: Any) -> None:
    for at in (1, 2):
        ours, theirs = side(one, 1, "o"), side(other, at, "o")
        equal = at == 1 and same(one, other)
        assert is_later(ours, theirs) + is_later(theirs, ours) == (0 if equal else 1)

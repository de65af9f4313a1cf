"""Which entries become a block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond.policy.compression import BlockRules, block_length

RULES = BlockRules(kept=10, entries=4, size=100)
SMALL = [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "first", "end", "length"),
    [
        (SMALL, 1, 13, 0),  # one too few
        (SMALL, 1, 14, 4),
        (SMALL, 1, 1000, 4),
        (SMALL, 991, 1003, 0),
        (SMALL, 991, 1004, 4),
        (SMALL, 991, 500, 0),  # not settled
        (SMALL[:3], 1, 1000, 0),  # the stream has no more
        ([60, 40, 1, 1], 1, 14, 2),
        ([60, 41, 1, 1], 1, 14, 1),
        ([500, 1, 1, 1], 1, 14, 1),
        ([60, 41], 1, 12, 1),  # large ones need not wait
        ([], 1, 1000, 0),
    ],
)
def test_a_block_is_full_or_large_and_the_newest_stay(
    sizes: list[int], first: int, end: int, length: int
) -> None:
    assert block_length(sizes, first, end, RULES) == length


@given(
    sizes=st.lists(st.integers(0, 120), max_size=4),
    first=st.integers(1, 50),
    end=st.integers(0, 100),
)
def test_no_block_takes_more_than_it_may(sizes: list[int], first: int, end: int) -> None:
    length = block_length(sizes, first, end, RULES)
    assert 0 <= length <= len(sizes)
    assert length == 0 or first + length - 1 <= end - RULES.kept
    assert length <= 1 or sum(sizes[:length]) <= RULES.size

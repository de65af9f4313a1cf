"""How much goes into one page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond.sync.paging import PAGE_BYTES, fitting

MOST = PAGE_BYTES


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ([], 0),
        ([1, 2, 3], 3),
        ([MOST], 1),
        ([MOST, 1], 1),
        ([MOST - 1, 1, 1], 2),
        ([2 * MOST, 1], 1),
        ([1, 2 * MOST], 1),
    ],
)
def test_a_page_is_full_before_it_is_too_large(sizes: list[int], count: int) -> None:
    assert fitting(sizes) == count


@given(st.lists(st.integers(0, 2 * MOST), min_size=1))
def test_one_item_always_fits_and_no_other_makes_it_too_large(sizes: list[int]) -> None:
    count = fitting(sizes)
    assert count >= 1
    assert count == 1 or sum(sizes[:count]) <= MOST
    assert count == len(sizes) or sum(sizes[: count + 1]) > MOST

"""Time as the log writes it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from sessiond.service.clock import moment, system_clock, timestamp

moments = st.integers(0, 4_102_444_800_000)


def test_times_are_written_in_utc_with_milliseconds() -> None:
    assert timestamp(1_768_300_200_000) == "2026-01-13T10:30:00.000Z"
    assert timestamp(1_768_300_200_007) == "2026-01-13T10:30:00.007Z"


@given(moments)
def test_what_is_written_is_the_moment_to_the_millisecond(ms: int) -> None:
    read = datetime.fromisoformat(timestamp(ms))
    assert read == moment(ms)
    assert round((read - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000) == ms


@given(moments, moments)
def test_written_times_sort_as_the_times_do(one: int, other: int) -> None:
    assert (timestamp(one) < timestamp(other)) == (one < other)


def test_the_system_clock_counts_milliseconds_since_1970() -> None:
    before = time.time() * 1000
    assert before - 1 <= system_clock() <= time.time() * 1000 + 1

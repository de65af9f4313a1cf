"""Time as the log writes it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from sessiond.service.clock import Skew, moment, steady_clock, system_clock, timestamp

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


class Machine:
    """A machine whose clock can be set, and a server whose clock is right."""

    def __init__(self, ahead: int = 0) -> None:
        self.passed, self.ahead = 50_000, ahead

    def wall(self) -> int:
        return self.passed + self.ahead

    def steady(self) -> int:
        return self.passed

    async def server(self) -> int:
        return self.passed


@given(ahead=st.integers(-10_000_000, 10_000_000), by=st.integers(-10_000_000, 10_000_000))
async def test_a_clock_that_is_set_is_corrected_from_that_moment_on(ahead: int, by: int) -> None:
    machine = Machine(ahead)
    skew = Skew(machine.wall, machine.steady)
    await skew.measure(machine.server)
    assert abs(skew.ahead_ms() - ahead) < 1000
    machine.passed += 3000
    assert not skew.has_jumped
    machine.ahead += by
    assert abs(skew.ahead_ms() - machine.ahead) < 2000
    assert skew.has_jumped == (abs(by) >= 1000)
    await skew.measure(machine.server)
    assert not skew.has_jumped
    assert abs(skew.ahead_ms() - machine.ahead) < 1000


@given(
    ahead=st.integers(-10_000_000, 10_000_000), late=st.integers(0, 60_000), share=st.floats(0, 1)
)
async def test_a_late_answer_never_makes_it_worse(ahead: int, late: int, share: float) -> None:
    """However long the question or the answer was under way, as with a server that was stopped."""
    machine = Machine(ahead)
    skew = Skew(machine.wall, machine.steady)
    await skew.measure(machine.server)
    known = skew.ahead_ms()

    async def stopped() -> int:
        machine.passed += round(late * share)
        server = machine.passed
        machine.passed += late - round(late * share)
        return server

    await skew.measure(stopped)
    assert skew.ahead_ms() == known


async def test_the_first_answer_is_late_and_the_next_one_sets_it_right() -> None:
    machine = Machine(5000)
    skew = Skew(machine.wall, machine.steady)

    async def late() -> int:
        server = machine.passed
        machine.passed += 3000
        return server

    await skew.measure(late)
    assert 5000 <= skew.ahead_ms() <= 8000
    await skew.measure(machine.server)
    assert skew.ahead_ms() == 5000


async def test_clocks_that_agree_to_a_second_are_equal() -> None:
    machine = Machine(999)
    skew = Skew(machine.wall, machine.steady)
    await skew.measure(machine.server)
    assert skew.ahead_ms() == 0


def test_the_steady_clock_goes_on() -> None:
    before = steady_clock()
    assert 0 <= steady_clock() - before < 60_000

"""Races are tried again, a bounded number of times; retries are recognised."""

from __future__ import annotations

import pytest

from sessiond.errors import Contended, NotFound, VersionMismatch
from sessiond.service.writing import (
    PLAIN,
    Request,
    Surroundings,
    attempt,
    check_expected,
    idempotency_key,
    now,
)
from sessiond.store.conflicts import ConflictStore
from sessiond.store.outcome import KeyUsed
from tests.store.support import Services


class Race:
    """A change that loses a number of times, and the pauses between its tries."""

    def __init__(self, *losses: Exception) -> None:
        self._losses = list(losses)
        self.tries = 0
        self.pauses: list[float] = []

    async def change(self) -> str:
        self.tries += 1
        if self._losses:
            raise self._losses.pop(0)
        return "done"

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def around(self, core: Services) -> Surroundings:
        return Surroundings(
            core.store, ConflictStore(core.redis, core.keys), clock=core.clock, sleep=self.sleep
        )


async def test_a_lost_race_is_run_again(core: Services) -> None:
    race = Race(VersionMismatch("1"), KeyUsed("k"), VersionMismatch("2"))
    assert await attempt(race.around(core), "ses_1", "context", PLAIN, race.change) == "done"
    assert race.tries == 4
    assert len(race.pauses) == 2


async def test_who_named_a_version_hears_of_the_mismatch_at_once(core: Services) -> None:
    race = Race(VersionMismatch("1"))
    with pytest.raises(VersionMismatch):
        await attempt(race.around(core), "ses_1", "context", Request(expected="1"), race.change)
    assert race.tries == 1


async def test_after_many_lost_races_the_caller_is_told_to_try_later(core: Services) -> None:
    race = Race(*[VersionMismatch("1") for _ in range(100)])
    with pytest.raises(Contended) as contended:
        await attempt(race.around(core), "ses_1", "context", PLAIN, race.change)
    assert contended.value.temporary
    assert race.tries == 32
    assert max(race.pauses) <= 0.05


async def test_other_errors_are_not_tried_again(core: Services) -> None:
    race = Race(NotFound("x"))
    with pytest.raises(NotFound):
        await attempt(race.around(core), "ses_1", "context", PLAIN, race.change)
    assert race.tries == 1


@pytest.mark.parametrize("expected", ["", "00f3a9c1d2e4b7:12", "12"])
def test_the_current_version_may_be_named_in_full_or_by_its_offset(expected: str) -> None:
    check_expected(expected, "00f3a9c1d2e4b7:12")


@pytest.mark.parametrize("expected", ["00f3a9c1d2e4b7:11", "2", "0", "00f3a9c1d2e4b7", "1012"])
def test_any_other_version_is_a_mismatch_that_names_the_current_one(expected: str) -> None:
    with pytest.raises(VersionMismatch, match="00f3a9c1d2e4b7:12"):
        check_expected(expected, "00f3a9c1d2e4b7:12")


def test_a_key_stands_for_one_content() -> None:
    assert idempotency_key(PLAIN, b"x") is None
    one, same, other = (
        idempotency_key(Request(key="k"), content) for content in (b"x", b"x", b"y")
    )
    assert one == same != other
    assert one is not None
    assert one.name == "key:k"


async def test_the_time_of_a_write_is_when_it_was_asked_for(core: Services) -> None:
    core.clock.ms += 1
    around = Surroundings(core.store, ConflictStore(core.redis, core.keys), clock=core.clock)
    assert now(around, PLAIN) == "2026-01-13T10:30:00.001Z"
    assert now(around, Request(at_ms=core.clock.ms - 1)) == "2026-01-13T10:30:00.000Z"

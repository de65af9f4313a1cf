"""Schedules of faults on the real thing; and daemons with a planted bug, each of which is found.

`python -m tests.system.faults` runs thousands; `--planted all` says how many each bug needed.
"""

from __future__ import annotations

import asyncio
import warnings

import pytest

from tests.system.faults.planted import BUGS
from tests.system.faults.runs import Outcome, run_seeds

SCHEDULES = 60
FIRST = 1_000
REVEALING = {
    "no_fsync": 1,
    "no_dedupe": 2,
    "counter_epoch": 1,
    "trust_the_ack": 1,
    "forget_what_waits": 1,
    "retry_without_waiting": 1,
    "retry_overtakes": 3,
}
"""Planted bug → the seed of a schedule that reveals it."""
TRIES = 4


def told(outcomes: list[Outcome]) -> str:
    """What did not hold, and how to run it once more."""
    return "\n".join(
        f"{violation}\npython -m tests.system.faults --seed {outcome.schedule.seed}\n"
        f"{outcome.schedule}"
        for outcome in outcomes
        for violation in outcome.violations
    )


def is_only_slow(outcome: Outcome) -> bool:
    """Tell whether all that did not hold is the time until the daemons came to rest."""
    slow = ("recovery took", "the daemons do not come to rest")
    return all(violation.startswith(slow) for violation in outcome.violations)


@pytest.mark.timeout(600)
async def test_whatever_happens_nothing_that_was_acknowledged_is_lost() -> None:
    """A busy machine may be too slow to come to rest in time: such a seed is run twice more.

    What is lost, doubled, out of order or different is never excused.
    """
    outcomes = await run_seeds(range(FIRST, FIRST + SCHEDULES), jobs=2)
    assert len(outcomes) == SCHEDULES
    failed = [outcome for outcome in outcomes if outcome.violations]
    wrong = [outcome for outcome in failed if not is_only_slow(outcome)]
    assert not wrong, told(wrong)
    if failed:
        warnings.warn(told(failed), stacklevel=1)
        seeds = [outcome.schedule.seed for outcome in failed for _ in range(2)]
        again = await run_seeds(seeds, jobs=1)
        assert not told(again), told(again)
    acknowledged = sum(len(outcome.told) for outcome in outcomes)
    assert acknowledged > 100 * SCHEDULES, "hardly anything was written: this proves little"


@pytest.mark.timeout(300)
async def test_bugs_that_a_known_schedule_reveals_are_found() -> None:
    """A minute's worth of the soak's search below: each bug's own schedule, some times if need be.

    Daemons that lost something may never come to rest: they are not waited for.
    """
    at_once = asyncio.Semaphore(2)

    async def found(bug: str, seed: int) -> bool:
        async with at_once:
            for _ in range(TRIES):
                (outcome,) = await run_seeds([seed], bug=bug, settle_seconds=4)
                if not is_only_slow(outcome):
                    return True
        return False

    names = await asyncio.gather(*(found(bug, seed) for bug, seed in REVEALING.items()))
    assert dict(zip(REVEALING, names, strict=True)) == dict.fromkeys(REVEALING, True)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS)
async def test_a_planted_bug_is_found(bug: str) -> None:
    outcomes = await run_seeds(range(1, 41), bug=bug, until_violation=True)
    assert outcomes[-1].violations, f"{bug} was not found by {len(outcomes)} schedules"

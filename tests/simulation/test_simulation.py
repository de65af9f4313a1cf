"""Thousands of schedules of the real replication code, in virtual time.

`python -m tests.simulation` runs more; `--planted all` says how many each planted bug needed.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.__main__ import ALL_BUGS, MOST_SCHEDULES
from tests.simulation.nemeses import NEMESES
from tests.simulation.runs import run_seeds
from tests.simulation.schedule import FINAL, KINDS, schedule

SCHEDULES = 2_000
FIRST = 10_000
LONGEST_RECOVERY_SECONDS = 2.0
"""Of virtual time, within which 99 of 100 schedules are to be at rest."""


@pytest.mark.timeout(900)
def test_whatever_happens_nothing_that_was_acknowledged_is_lost() -> None:
    outcomes = list(run_seeds(range(FIRST, FIRST + SCHEDULES), jobs=2))
    assert len(outcomes) == SCHEDULES
    told = "\n".join(
        f"{violation}\npython -m tests.simulation --seed {outcome.seed}\n{schedule(outcome.seed)}"
        for outcome in outcomes
        for violation in outcome.violations
    )
    assert not told, told
    acknowledged = sum(sum(outcome.told.values()) for outcome in outcomes)
    assert acknowledged > 30 * SCHEDULES, "hardly anything was written: this proves little"
    recovery = sorted(outcome.recovery_seconds for outcome in outcomes)
    assert recovery[int(SCHEDULES * 0.99)] <= LONGEST_RECOVERY_SECONDS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", ALL_BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    outcomes = list(run_seeds(range(1, MOST_SCHEDULES + 1), bug=bug, until_violation=True))
    assert outcomes[-1].violations, f"{bug} was not found by {len(outcomes)} schedules"


def traced(seed: int, hash_seed: str) -> str:
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--trace"]
    environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("seed", [3, 7, 11])
def test_a_seed_takes_the_same_course_in_every_process(seed: int) -> None:
    course = traced(seed, "1")
    assert course.count("\n") > 300
    assert traced(seed, "2") == course


def test_another_seed_takes_another_course() -> None:
    assert traced(3, "1") != traced(7, "1")


def test_every_kind_of_fault_is_scheduled_and_can_be_done() -> None:
    kinds = {step.kind for seed in range(500) for step in schedule(seed).steps}
    assert kinds == set(KINDS) == set(NEMESES)
    assert set(FINAL) <= kinds


def test_a_seed_has_one_schedule() -> None:
    assert schedule(5) == schedule(5)
    assert len({str(schedule(seed)) for seed in range(100)}) == 100

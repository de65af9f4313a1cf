"""Many schedules, in processes of their own, several at once."""

from __future__ import annotations

import gc
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

import structlog
from msgspec import Struct

from tests.simulation.schedule import schedule
from tests.simulation.simulation import Course, simulate
from tests.system.faults.checks import violations
from tests.system.faults.planted import BUGS, COPY_BUGS

_SEEDS_AT_ONCE = 10


class Outcome(Struct, frozen=True):
    """What came of a schedule.

    Attributes:
        told: how many operations were acknowledged, by their durability.
        recovery_seconds: from the end of all faults until all were at rest, of virtual time.
        virtual_seconds: how long all of it took by the simulated clock.
    """

    seed: int
    told: dict[str, int]
    violations: list[str]
    recovery_seconds: float
    virtual_seconds: float


def run_seeds(
    seeds: Iterable[int], *, jobs: int = 1, bug: str = "", until_violation: bool = False
) -> Iterator[Outcome]:
    """Run the schedules of seeds; yields what came of each, in their order.

    Bugs are planted where no copies are kept, which would make up for most of them; those of copies
    are not.

    Args:
        seeds: which.
        jobs: processes at once.
        bug: planted in these processes; see tests.system.faults.planted.
        until_violation: stop behind the first schedule in which something does not hold.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=_begin, initargs=(bug,)) as pool:
        run = partial(run_seed, may_keep_copies=bug not in BUGS)
        for outcome in pool.imap(run, seeds, chunksize=1 if bug else _SEEDS_AT_ONCE):
            yield outcome
            if until_violation and outcome.violations:
                return


def run_seed(seed: int, *, may_keep_copies: bool = True) -> Outcome:
    """Run the schedule of a seed in this process."""
    course = course_of(seed, may_keep_copies=may_keep_copies)
    history = course.history
    told = Counter(told.durability for told in history.told)
    found = violations(history)
    return Outcome(seed, dict(told), found, history.recovery_seconds, course.trace[-1][0])


def course_of(seed: int, *, may_keep_copies: bool = True) -> Course:
    """Return the course that the schedule of a seed takes.

    What nobody refers to any more is not looked for meanwhile: when that happens is chance.
    """
    gc.disable()
    try:
        planned = schedule(seed)
        return simulate(planned, keeps_copies=planned.keeps_copies and may_keep_copies)
    finally:
        gc.enable()
        gc.collect()


def be_silent() -> None:
    """Log nothing: thousands of faults would be told."""
    silent = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=silent)


def _begin(bug: str) -> None:
    be_silent()
    if bug:
        (BUGS | COPY_BUGS)[bug]()
    gc.freeze()

"""Run schedules: `python -m tests.simulation --schedules 2000 --from-seed 1 --jobs 2`."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter

from tests.simulation.runs import Outcome, be_silent, course_of, run_seeds
from tests.simulation.schedule import schedule
from tests.system.faults.checks import violations
from tests.system.faults.planted import BUGS, COPY_BUGS

ALL_BUGS = BUGS | COPY_BUGS
MOST_SCHEDULES = 400
"""Within which a planted bug is to be found."""


def main() -> int:
    """Run what the command line asks for; 1 when something did not hold."""
    options = _parser().parse_args()
    if options.planted:
        names = list(ALL_BUGS) if options.planted == "all" else [options.planted]
        return max(_planted(name, options.from_seed) for name in names)
    if options.seed is not None:
        return _one(options.seed, is_traced=options.trace)
    began = time.monotonic()
    seeds = range(options.from_seed, options.from_seed + options.schedules)
    outcomes = []
    for outcome in run_seeds(seeds, jobs=options.jobs):
        outcomes.append(outcome)
        for violation in outcome.violations:
            print(f"seed {outcome.seed}: {violation}", file=sys.stderr, flush=True)
    _summary(outcomes, time.monotonic() - began)
    return 1 if any(outcome.violations for outcome in outcomes) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="run and print this schedule")
    parser.add_argument("--trace", action="store_true", help="with --seed: all that happened")
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--from-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--planted", help=f"run with a bug: {', '.join(ALL_BUGS)}, or all")
    return parser


def _one(seed: int, *, is_traced: bool) -> int:
    be_silent()
    course = course_of(seed)
    print(schedule(seed))
    if is_traced:
        for event in course.trace:
            print(*event)
    found = violations(course.history)
    for violation in found:
        print(violation)
    print(f"acknowledged: {len(course.history.told)}, violations: {len(found)}")
    return 1 if found else 0


def _planted(name: str, first: int) -> int:
    seeds = range(first, first + MOST_SCHEDULES)
    for number, outcome in enumerate(run_seeds(seeds, bug=name, until_violation=True), start=1):
        if outcome.violations:
            print(f"{name}: found by schedule {number}: {outcome.violations[0]}", flush=True)
            return 0
    print(f"{name}: NOT FOUND in {MOST_SCHEDULES} schedules", flush=True)
    return 1


def _summary(outcomes: list[Outcome], seconds: float) -> None:
    faults = Counter(step.kind for each in outcomes for step in schedule(each.seed).steps)
    told: Counter[str] = Counter()
    for outcome in outcomes:
        told.update(outcome.told)
    recovery = sorted(outcome.recovery_seconds for outcome in outcomes)
    p99 = recovery[int(len(recovery) * 0.99)]
    virtual = sum(outcome.virtual_seconds for outcome in outcomes)
    print(f"schedules: {len(outcomes)}, {seconds:.0f} s for {virtual:.0f} s of virtual time")
    print("faults: " + ", ".join(f"{kind} {count}" for kind, count in faults.most_common()))
    print(f"acknowledged: {told['committed']} committed, {told['journaled']} journaled")
    print(f"violations: {sum(len(outcome.violations) for outcome in outcomes)}")
    print(
        f"recovery: p50 {statistics.median(recovery):.2f} s, p99 {p99:.2f} s, "
        f"longest {recovery[-1]:.2f} s, of virtual time"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Run schedules: `python -m tests.system.faults --schedules 1000 --from-seed 1 --jobs 2`."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections import Counter
from pathlib import Path

from tests.system.faults.planted import BUGS
from tests.system.faults.runs import Outcome, run_seeds

_MOST_SCHEDULES = 40


def main() -> int:
    """Run what the command line asks for; 1 when something did not hold."""
    options = _parser().parse_args()
    if options.planted:
        names = list(BUGS) if options.planted == "all" else [options.planted]
        return max(_planted(name, options) for name in names)
    count = 1 if options.seed is not None else options.schedules
    first = options.seed if options.seed is not None else options.from_seed
    kinds = tuple(options.faults.split(",")) if options.faults else None
    outcomes = asyncio.run(
        run_seeds(
            range(first, first + count),
            jobs=options.jobs,
            kinds=kinds,
            tell=_tell,
            keep=options.keep,
        )
    )
    if options.seed is not None:
        print(outcomes[0].schedule)
    _summary(outcomes)
    return 1 if any(outcome.violations for outcome in outcomes) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.system.faults")
    parser.add_argument("--seed", type=int, help="run and print this schedule")
    parser.add_argument("--schedules", type=int, default=60)
    parser.add_argument("--from-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="laboratories at once")
    parser.add_argument("--faults", help="only these, separated by commas")
    parser.add_argument("--keep", type=Path, help="folder for what is known of failed runs")
    parser.add_argument("--planted", help=f"run with a bug: {', '.join(BUGS)}, or all")
    return parser


def _planted(name: str, options: argparse.Namespace) -> int:
    seeds = range(options.from_seed, options.from_seed + _MOST_SCHEDULES)
    outcomes = asyncio.run(run_seeds(seeds, jobs=1, bug=name, until_violation=True))
    found = outcomes[-1].violations
    told = f"found by schedule {len(outcomes)}: {found[0]}" if found else "NOT FOUND"
    print(f"{name}: {told}", flush=True)
    return 0 if found else 1


def _tell(outcome: Outcome) -> None:
    for violation in outcome.violations:
        print(f"seed {outcome.schedule.seed}: {violation}", file=sys.stderr, flush=True)
    if outcome.violations:
        print(outcome.schedule, file=sys.stderr, flush=True)


def _summary(outcomes: list[Outcome]) -> None:
    faults = Counter(step.kind for outcome in outcomes for step in outcome.schedule.steps)
    told = Counter(told.durability for outcome in outcomes for told in outcome.told)
    print(f"schedules: {len(outcomes)}")
    print("faults: " + ", ".join(f"{kind} {count}" for kind, count in faults.most_common()))
    print(f"acknowledged: {told['committed']} committed, {told['journaled']} journaled")
    print(f"violations: {sum(len(outcome.violations) for outcome in outcomes)}")
    for keeps_copies in (True, False):
        if some := [each for each in outcomes if each.schedule.keeps_copies == keeps_copies]:
            _tell_recovery(some, "with copies" if keeps_copies else "without copies")


def _tell_recovery(outcomes: list[Outcome], what: str) -> None:
    recovery = sorted(outcome.recovery_seconds for outcome in outcomes)
    p99 = recovery[int(len(recovery) * 0.99)]
    print(
        f"recovery {what}: p50 {statistics.median(recovery):.2f} s, p99 {p99:.2f} s, "
        f"longest {recovery[-1]:.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())

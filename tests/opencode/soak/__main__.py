"""Soak: `python -m tests.opencode.soak --minutes 12 --seed 1`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.opencode.binary import opencode_binary
from tests.opencode.soak.soak import Outcome, Plan, soak


def main() -> int:
    """Run, print what was found, and return 1 if anything was."""
    asked = _arguments()
    plan = Plan(
        seed=asked.seed,
        seconds=60 * asked.minutes,
        round_seconds=asked.round,
        faults=tuple(asked.faults),
        actions=tuple(asked.actions),
        keep=asked.keep,
        clock=asked.clock,
    )
    outcome = asyncio.run(soak(opencode_binary(), plan))
    _print(outcome)
    return 1 if outcome.violations else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--round", type=float, default=45.0, help="seconds between two judgements")
    parser.add_argument("--faults", nargs="*", default=[], help="only these; `none` for none")
    parser.add_argument("--actions", nargs="*", default=[], help="only these")
    parser.add_argument("--keep", type=Path, help="where to keep all databases and logs")
    parser.add_argument("--clock", action="store_true", help="set the clock of one machine, too")
    return parser.parse_args()


def _print(outcome: Outcome) -> None:
    print("\n".join(outcome.journal))
    print(f"\n{outcome.prompts} prompts, {outcome.answered} answered, {outcome.requests} requests")
    print(", ".join(f"{name} {count}" for name, count in sorted(outcome.done.items())))
    print(f"{len(outcome.violations)} violations")
    print("\n".join(outcome.violations))


if __name__ == "__main__":
    sys.exit(main())

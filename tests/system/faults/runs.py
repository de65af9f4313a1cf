"""Many schedules, in one laboratory or several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from msgspec import Struct

from tests.system.faults.checks import violations
from tests.system.faults.history import Told
from tests.system.faults.laboratory import laboratory
from tests.system.faults.schedule import KINDS, Schedule, schedule

_SCHEDULES_EACH = 8


class Outcome(Struct):
    """What came of a schedule."""

    schedule: Schedule
    told: list[Told]
    violations: list[str]
    recovery_seconds: float


async def run_seeds(
    seeds: Iterable[int],
    *,
    jobs: int = 1,
    kinds: tuple[str, ...] | None = None,
    module: str = "sessiond",
    until_violation: bool = False,
    tell: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Run the schedules of seeds; a laboratory begins anew now and then, and after a violation.

    A Redis that is emptied gets the sessions of all schedules before it again: not too many.

    Args:
        seeds: which.
        jobs: laboratories at once.
        kinds: only these faults.
        module: what runs as a daemon.
        until_violation: stop at the first.
        tell: told of each.
    """
    waiting = iter(seeds)
    outcomes: list[Outcome] = []

    async def work() -> None:
        while not (until_violation and outcomes and outcomes[-1].violations):
            async with laboratory(module) as found:
                for done, seed in enumerate(waiting, start=1):
                    planned = schedule(seed, kinds or KINDS)
                    outcome = Outcome(planned, [], [], 0.0)
                    try:
                        history = await found.run(planned)
                        outcome = Outcome(
                            planned, history.told, violations(history), history.recovery_seconds
                        )
                    except (RuntimeError, TimeoutError, AssertionError) as error:
                        outcome.violations.append(f"the run failed: {error!r}")
                    outcomes.append(outcome)
                    tell(outcome)
                    if outcome.violations or done == _SCHEDULES_EACH:
                        break
                else:
                    return

    await asyncio.gather(*(work() for _ in range(jobs)))
    return outcomes

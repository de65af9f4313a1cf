"""Many schedules, in one laboratory or several at once."""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from tests.system.faults.checks import violations
from tests.system.faults.history import History, Told
from tests.system.faults.laboratory import Laboratory
from tests.system.faults.machines import Machines, machines
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
    bug: str = "",
    until_violation: bool = False,
    settle_seconds: float = 25.0,
    tell: Callable[[Outcome], None] = lambda _: None,
    keep: Path | None = None,
) -> list[Outcome]:
    """Run the schedules of seeds; the machines begin anew now and then, and after a violation.

    A Redis that is emptied gets the sessions of all schedules before it again: not too many. Bugs
    are planted where no copies are kept, which would make up for most of them.

    Args:
        seeds: which.
        jobs: laboratories at once.
        kinds: only these faults.
        bug: what is planted in the daemons; empty for nothing.
        until_violation: stop at the first.
        settle_seconds: how long daemons may take to come to rest.
        tell: told of each.
        keep: where to keep what there is about a run in which something did not hold.
    """
    planned = [schedule(seed, kinds or KINDS) for seed in seeds]
    waiting = deque(sorted(planned, key=lambda each: _keeps_copies(each, bug)))
    outcomes: list[Outcome] = []

    async def work() -> None:
        while waiting and not (until_violation and outcomes and outcomes[-1].violations):
            keeps_copies = _keeps_copies(waiting[0], bug)
            async with machines(bug, keeps_copies=keeps_copies) as found:
                laboratory = Laboratory(found, settle_seconds)
                for _ in range(_SCHEDULES_EACH):
                    if not waiting or _keeps_copies(waiting[0], bug) != keeps_copies:
                        break
                    outcome = await run(laboratory, waiting.popleft())
                    outcomes.append(outcome)
                    tell(outcome)
                    if outcome.violations:
                        break

    async def run(laboratory: Laboratory, planned: Schedule) -> Outcome:
        history = await laboratory.run(planned)
        outcome = Outcome(planned, history.told, violations(history), history.recovery_seconds)
        if outcome.violations and keep:
            keep_evidence(keep, planned, history, laboratory.machines)
        return outcome

    await asyncio.gather(*(work() for _ in range(jobs)))
    return outcomes


def _keeps_copies(planned: Schedule, bug: str) -> bool:
    return planned.keeps_copies and not bug


def keep_evidence(folder: Path, planned: Schedule, history: History, found: Machines) -> None:
    """Write a run's schedule and history into a folder, and copy the logs of its daemons."""
    folder = folder / f"seed-{planned.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schedule.txt").write_text(f"{planned}\n", encoding="utf-8")
    (folder / "history.json").write_bytes(msgspec.json.encode(history))
    for number, machine in enumerate(found.each):
        shutil.copy(machine.sidecar.folder / "log", folder / f"sidecar{number}.log")

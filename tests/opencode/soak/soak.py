"""A soak: rounds of work and faults at random, each followed by a judgement."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.opencode.machines import Team
from tests.opencode.model import Model
from tests.opencode.soak.actions import ACTIONS, attempt
from tests.opencode.soak.checks import violations
from tests.opencode.soak.faults import FAULTS
from tests.opencode.soak.machinery import Scene

NAMES = ("ana", "ben", "cleo")
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

_AT_ONCE = 6
_LONGEST_PAUSE_SECONDS = 0.8
_FAULT_PAUSES = (2.0, 14.0)


@dataclass
class Outcome:
    """What a soak found, and how much it did."""

    violations: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    prompts: int = 0
    answered: int = 0
    requests: int = 0
    journal: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """How long, in seconds, and how rough. Without a name, all faults are allowed."""

    seed: int
    seconds: float
    round_seconds: float = 45.0
    faults: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    keep: Path | None = None
    clock: bool = False


async def soak(binary: Path, plan: Plan) -> Outcome:
    """Work on three machines, and return what came of it."""
    model = Model()
    model.delay = 0.05
    team = Team(binary, model.url)
    try:
        scene = await _scene(team, model, plan)
        outcome = Outcome(journal=scene.journal)
        end = time.monotonic() + plan.seconds
        while time.monotonic() < end:
            wrong = await _round(scene, plan, min(plan.round_seconds, end - time.monotonic()))
            wrong += await violations(scene)
            _note(scene, outcome, wrong)
        if plan.keep:
            _keep(team, scene, plan.keep)
        outcome.done = scene.ledger.done
        outcome.prompts = len(scene.ledger.prompts)
        outcome.answered = sum(prompt.is_answered for prompt in scene.ledger.prompts.values())
        outcome.requests = len(model.turn_requests())
        return outcome
    finally:
        await team.stop()
        model.close()


async def _scene(team: Team, model: Model, plan: Plan) -> Scene:
    """Start the machines, with two sessions; the last one's clock can be set."""
    clock = team.folder / "clock"
    clock.write_text("+0\n")
    for name in NAMES:
        environ = _settable(clock) if plan.clock and name == NAMES[-1] else {}
        machine = team.add(name, environ=environ)
        machine.sidecar.environ |= environ
    for machine in team.machines:
        await machine.start()
    scene = Scene(team.machines, model, random.Random(plan.seed), clock if plan.clock else None)
    for machine in team.machines[:2]:
        session = await machine.opencode.create_session(f"of {machine.name}")
        scene.ledger.sessions.append(session)
    return scene


def _settable(clock: Path) -> dict[str, str]:
    assert FAKETIME, "a clock can be set with libfaketime only (Debian: apt-get install faketime)"
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",  # s: read each time, the file slows a sidecar by far
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # else each change of threads takes 20 ms
    }


async def _round(scene: Scene, plan: Plan, seconds: float) -> list[str]:
    """Let people work while things break, and return what failed when all have ended."""
    end = time.monotonic() + seconds
    breaking = asyncio.create_task(_break(scene, plan, end))
    running: set[asyncio.Task[str]] = set()
    wrong: list[str] = []
    while time.monotonic() < end:
        if len(running) < _AT_ONCE and scene.standing():
            running.add(asyncio.create_task(_act(scene, plan)))
        await asyncio.sleep(scene.chance.uniform(0.02, _LONGEST_PAUSE_SECONDS))
        ended = {task for task in running if task.done()}
        wrong += [told for task in ended if (told := task.result())]
        running -= ended
    wrong += [told for told in await asyncio.gather(*running) if told]
    await breaking
    return wrong


async def _act(scene: Scene, plan: Plan) -> str:
    machine = scene.chance.choice(scene.standing())
    allowed = [a for a in ACTIONS if not plan.actions or _name(a) in plan.actions]
    action = scene.chance.choices(allowed, [ACTIONS[each] for each in allowed])[0]
    return await attempt(scene, action, machine, scene.chance.choice(scene.living()))


async def _break(scene: Scene, plan: Plan, end: float) -> None:
    """Break one thing after the other, and have all whole at the end."""
    allowed = [each for each in FAULTS if not plan.faults or _name(each) in plan.faults]
    while allowed:
        pause = scene.chance.uniform(*_FAULT_PAUSES)
        if time.monotonic() + pause > end:
            return
        await asyncio.sleep(pause)
        await scene.chance.choice(allowed)(scene, scene.chance.choice(scene.machines))


def _name(function: Callable[..., Awaitable[None]]) -> str:
    return str(getattr(function, "__name__", ""))


def _note(scene: Scene, outcome: Outcome, wrong: list[str]) -> None:
    """Take note of what was not known before."""
    scene.tell("CHECKED", f"{len(wrong)} violations")
    for told in wrong:
        if told not in outcome.violations:
            outcome.violations.append(told)
            scene.tell("VIOLATION", told)


def _keep(team: Team, scene: Scene, folder: Path) -> None:
    """Keep databases and logs, to find the cause."""
    shutil.copytree(
        team.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock", "cache")
    )
    (folder / "journal").write_text("\n".join(scene.journal), encoding="utf-8")

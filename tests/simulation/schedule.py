"""What goes wrong when in a simulation: derived from a seed alone."""

from __future__ import annotations

from random import Random

from tests.system.faults.schedule import Schedule, Step

SIDECARS = 2
SECONDS = 2.0
_LONGEST_SECONDS = 1.0
_FINAL_SHARE = 0.3

_WEIGHTS = {
    "crash sidecar": 3,
    "crash twice": 2,
    "late request": 2,
    "wrong clock": 1,
    "full disk": 1,
    "slow disk": 1,
    "kill client": 1,
    "slow": 1,
    "requests stall": 1,
    "answers stall": 1,
    "answers lost": 2,
    "refuse": 1,
    "reset": 2,
    "partition": 2,
    "kill redis": 2,
    "pause redis": 1,
    "lose tail": 3,
    "older copy": 1,
    "restore": 2,
    "flush": 1,
    "promote": 1,
    "full memory": 1,
}
KINDS = tuple(_WEIGHTS)
FINAL = ("lose tail", "older copy", "restore", "flush", "promote", "kill redis", "crash sidecar")
"""Faults that may be the very last thing that happens."""


def schedule(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    random = Random(f"schedule {seed}")
    steps = [
        _step(random, at, random.choices(KINDS, list(_WEIGHTS.values()))[0])
        for at in sorted(random.uniform(0.1, SECONDS) for _ in range(random.randint(1, 4)))
    ]
    if random.random() < _FINAL_SHARE:
        steps.append(_step(random, SECONDS + 0.1, random.choice(FINAL)))
    return Schedule(seed, steps)


def _step(random: Random, at: float, kind: str) -> Step:
    lasts = round(random.uniform(0.1, _LONGEST_SECONDS), 3)
    return Step(at=round(at, 3), kind=kind, sidecar=random.randrange(SIDECARS), lasts=lasts)

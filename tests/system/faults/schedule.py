"""What goes wrong when: derived from a seed alone, so that it can be run once more."""

from __future__ import annotations

from random import Random

from msgspec import Struct

SIDECARS = 2
SECONDS = 2.5
FINAL = ("rollback", "flush", "kill redis", "promote")
"""Faults that may be the very last thing that happens."""

_WEIGHTS = {
    "kill sidecar": 3,
    "pause sidecar": 2,
    "late request": 2,
    "torn tail": 2,
    "wrong clock": 1,
    "full disk": 1,
    "kill client": 1,
    "slow consumer": 1,
    "slow": 1,
    "requests stall": 1,
    "answers stall": 1,
    "answers lost": 2,
    "refuse": 1,
    "cut answer": 2,
    "kill redis": 2,
    "pause redis": 1,
    "rollback": 3,
    "flush": 1,
    "full memory": 1,
    "demote": 1,
    "promote": 1,
}
KINDS = tuple(_WEIGHTS)


class Step(Struct, frozen=True):
    """One fault: when it begins, at which sidecar, and how long it lasts, in seconds."""

    at: float
    kind: str
    sidecar: int
    lasts: float

    def __str__(self) -> str:
        return f"{self.at:5.2f} s  {self.kind}, sidecar {self.sidecar}, for {self.lasts:.2f} s"


class Schedule(Struct, frozen=True):
    """The faults of a run, and the seed that its clients draw from."""

    seed: int
    steps: list[Step]

    @property
    def keeps_copies(self) -> bool:
        """Whether sidecars keep copies of sessions; without, all depends on their journals."""
        return self.seed % 3 != 0

    def __str__(self) -> str:
        copies = "copies" if self.keeps_copies else "no copies"
        return "\n".join([f"seed {self.seed}, {copies}", *map(str, self.steps)])


def schedule(seed: int, kinds: tuple[str, ...] = KINDS) -> Schedule:
    """Return the schedule of a seed; `kinds` leaves some faults out."""
    random = Random(seed)
    weights = [_WEIGHTS[kind] for kind in kinds]
    times = sorted(random.uniform(0.2, SECONDS) for _ in range(random.randint(1, 4)))
    steps = [
        Step(
            at=round(at, 2),
            kind=random.choices(kinds, weights)[0],
            sidecar=random.randrange(SIDECARS),
            lasts=round(random.uniform(0.1, 1.2), 2),
        )
        for at in times
    ]
    final = [kind for kind in FINAL if kind in kinds]
    if final and random.random() < 0.3:
        kind = random.choice(final)
        steps.append(
            Step(at=SECONDS + 0.1, kind=kind, sidecar=0, lasts=round(random.uniform(0.1, 1.2), 2))
        )
    return Schedule(seed, steps)

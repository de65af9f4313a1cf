"""What the actions and the faults of a soak share."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.opencode.machines import Machine
from tests.opencode.model import Model
from tests.opencode.soak.ledger import Fault, Ledger


@dataclass
class Scene:
    """Three machines at work, and what is known of it.

    `down` are machines whose opencode does not run now; `clock` is the file by which the last
    machine's clock is set, if it can be.
    """

    machines: list[Machine]
    model: Model
    chance: random.Random
    clock: Path | None = None
    ledger: Ledger = field(default_factory=Ledger)
    down: set[str] = field(default_factory=set)
    taken: set[tuple[str, str]] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)
    journal: list[str] = field(default_factory=list)

    def tell(self, *words: object) -> None:
        """Write down what happened, with the second."""
        self.journal.append(f"{self.now():8.2f}  " + "  ".join(map(str, words)))

    def now(self) -> float:
        return time.monotonic() - self.began

    def standing(self) -> list[Machine]:
        """Return the machines whose opencode runs."""
        return [machine for machine in self.machines if machine.name not in self.down]

    def living(self) -> list[str]:
        """Return the sessions that nobody deleted."""
        return [name for name in self.ledger.sessions if name not in self.ledger.deleted]

    @contextmanager
    def fault(self, kind: str, machine: str) -> Iterator[None]:
        """Note a fault for as long as the block lasts."""
        fault = Fault(kind, machine, time.monotonic())
        self.ledger.faults.append(fault)
        self.ledger.done[f"fault: {kind}"] += 1
        self.tell("FAULT", kind, machine)
        yield
        fault.ended = time.monotonic()
        self.tell("fault over", kind, machine)


def redis_pid(machine: Machine) -> int:
    """Return the process of the Redis that a machine's sidecar owns."""
    told = subprocess.run(
        ["redis-cli", "-s", machine.sidecar.redis_socket, "info", "server"],
        capture_output=True,
        check=True,
        text=True,
        timeout=10,
    ).stdout
    return int(next(line for line in told.splitlines() if line.startswith("process_id:"))[11:])

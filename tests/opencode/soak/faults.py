"""What is broken on purpose, and repaired again."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.opencode.machines import Machine
from tests.opencode.soak.machinery import Scene, redis_pid

_AWAY_SECONDS = 10.0
_FROZEN_SECONDS = 3.0
_CLOCKS = (0, 60, -60, 3600, -3600)


async def kill_opencode(scene: Scene, machine: Machine) -> None:
    with scene.fault("opencode", machine.name):
        scene.down.add(machine.name)
        await machine.opencode.kill()
        await machine.opencode.start()
        await machine.attached()
        scene.down.discard(machine.name)


async def kill_sidecar(scene: Scene, machine: Machine) -> None:
    with scene.fault("sidecar", machine.name):
        await asyncio.to_thread(machine.sidecar.kill)
        await machine.start_sidecar()
        await machine.attached()


async def stop_sidecar(scene: Scene, machine: Machine) -> None:
    with scene.fault("sidecar away", machine.name):
        await asyncio.to_thread(machine.sidecar.stop)
        await asyncio.sleep(_AWAY_SECONDS)
        await machine.start_sidecar()
        await machine.attached()


async def kill_redis(scene: Scene, machine: Machine) -> None:
    owner = scene.machines[0]
    pid = await asyncio.to_thread(redis_pid, owner)
    with scene.fault("redis", owner.name):
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(_FROZEN_SECONDS)


async def freeze_redis(scene: Scene, machine: Machine) -> None:
    owner = scene.machines[0]
    pid = await asyncio.to_thread(redis_pid, owner)
    with scene.fault("redis frozen", owner.name):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(_FROZEN_SECONDS)
        os.kill(pid, signal.SIGCONT)


async def set_clock(scene: Scene, machine: Machine) -> None:
    """Set the clock of the last machine, whichever was meant."""
    if scene.clock is None:
        return
    seconds = scene.chance.choice(_CLOCKS)
    with scene.fault("clock", scene.machines[-1].name):
        scene.tell("clock", scene.machines[-1].name, seconds)
        scene.ledger.unsteady.add(scene.machines[-1].name)
        scene.clock.with_name("next").write_text(f"{seconds:+d}\n")
        scene.clock.with_name("next").replace(scene.clock)


FAULTS = (kill_opencode, kill_sidecar, stop_sidecar, kill_redis, freeze_redis, set_clock)

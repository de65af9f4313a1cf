"""What can be done to a simulated world, each by its name in a schedule; each undoes itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

from msgspec import Struct

from tests.simulation.network import Link
from tests.simulation.server import RedisServer
from tests.simulation.sidecar import Sidecar
from tests.system.faults.schedule import Step

_SLOW_SECONDS = (0.03, 0.3)
_HOUR_MS = 3_600_000
_FEW_WRITES = 12
_LOOKS, _LOOK_SECONDS = 200, 0.001


class World(Struct, frozen=True):
    """What faults happen to; `clients` are the tasks that write."""

    server: RedisServer
    sidecars: list[Sidecar]
    clients: list[asyncio.Task[None]]
    random: Random
    redis_lock: asyncio.Lock
    """Held by whoever ends or starts Redis."""


Nemesis = Callable[[World, Step], Awaitable[None]]


async def strike(world: World, step: Step) -> None:
    """Let a step of a schedule happen, and return when it is over."""
    await NEMESES[step.kind](world, step)


# Sidecars


async def _crash_sidecar(world: World, step: Step) -> None:
    async with _alone(world, step) as sidecar:
        await sidecar.crash()
        await asyncio.sleep(step.lasts / 4)
        await sidecar.start()


async def _crash_twice(world: World, step: Step) -> None:
    """In the middle of a write; the second life works without Redis, and crashes, too."""
    async with _alone(world, step) as sidecar:
        for _ in range(_LOOKS):
            if sidecar.disk.is_busy:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        await sidecar.crash()
        sidecar.link.refuses = True
        await sidecar.start()
        await asyncio.sleep(step.lasts / 2)
        await sidecar.crash()
        sidecar.link.calm()
        await sidecar.start()


async def _late_request(world: World, step: Step) -> None:
    """What a sidecar had on its way to Redis arrives when its next life has gone on."""
    async with _alone(world, step) as sidecar:
        sidecar.link.holds_requests = True
        await asyncio.sleep(step.lasts / 4)
        await sidecar.crash()
        held, sidecar.link.holds_requests = sidecar.link.take_requests(), False
        await sidecar.start()
        await asyncio.sleep(step.lasts / 4)
        for arrive in held:
            arrive()


async def _wrong_clock(world: World, step: Step) -> None:
    """A clock is set, and set right again."""
    sidecar = world.sidecars[step.sidecar]
    sidecar.ahead_ms = world.random.choice((-_HOUR_MS, _HOUR_MS, -1500, 1500))
    await asyncio.sleep(step.lasts)
    sidecar.ahead_ms = 0


async def _full_disk(world: World, step: Step) -> None:
    disk = world.sidecars[step.sidecar].disk
    disk.is_full = True
    await asyncio.sleep(step.lasts)
    disk.is_full = False


async def _slow_disk(world: World, step: Step) -> None:
    disk = world.sidecars[step.sidecar].disk
    usual, disk.seconds = disk.seconds, _SLOW_SECONDS
    await asyncio.sleep(step.lasts)
    disk.seconds = usual


async def _kill_client(world: World, step: Step) -> None:
    world.clients[step.sidecar].cancel()


# The way to Redis


async def _slow(world: World, step: Step) -> None:
    async with _disturbed(world, step) as link:
        link.seconds = _SLOW_SECONDS


async def _requests_stall(world: World, step: Step) -> None:
    async with _disturbed(world, step) as link:
        link.holds_requests = True


async def _answers_stall(world: World, step: Step) -> None:
    async with _disturbed(world, step) as link:
        link.holds_answers = True


async def _answers_lost(world: World, step: Step) -> None:
    """What is asked is done, and then the connection breaks off."""
    async with _disturbed(world, step) as link:
        link.loses_answers = True


async def _refuse(world: World, step: Step) -> None:
    async with _disturbed(world, step) as link:
        link.refuses = True
        link.reset()


async def _reset(world: World, step: Step) -> None:
    """Connections break off, again and again."""
    link = world.sidecars[step.sidecar].link
    for _ in range(5):
        link.reset()
        await asyncio.sleep(step.lasts / 5)


async def _partition(world: World, step: Step) -> None:
    async with _disturbed(world, step) as link:
        link.holds_requests = link.holds_answers = True


# Redis


async def _kill_redis(world: World, step: Step) -> None:
    await _restart(world, step, lost=0)


async def _lose_tail(world: World, step: Step) -> None:
    """A crash rolls the newest writes back."""
    await _restart(world, step, lost=world.random.randint(1, _FEW_WRITES))


async def _older_copy(world: World, step: Step) -> None:
    """It is started with a copy from any time before."""
    await _restart(world, step, lost=_some(world))


async def _restore(world: World, step: Step) -> None:
    """Its machine goes back to a snapshot, under the same run and replication id."""
    async with world.redis_lock:
        world.server.kill(_some(world))
        await asyncio.sleep(step.lasts / 10)
        world.server.start(same_life=True)


async def _promote(world: World, step: Step) -> None:
    """A replica that was behind takes its place."""
    async with world.redis_lock:
        world.server.kill(world.random.randint(0, _FEW_WRITES))
        await asyncio.sleep(step.lasts / 4)
        world.server.start(new_history=True)


async def _flush(world: World, _: Step) -> None:
    world.server.database.execute_together([[b"FLUSHALL"]])


async def _pause_redis(world: World, step: Step) -> None:
    world.server.pause()
    await asyncio.sleep(step.lasts)
    world.server.resume()


async def _full_memory(world: World, step: Step) -> None:
    world.server.database.is_full = True
    await asyncio.sleep(step.lasts)
    world.server.database.is_full = False


async def _restart(world: World, step: Step, *, lost: int) -> None:
    async with world.redis_lock:
        world.server.kill(lost)
        await asyncio.sleep(step.lasts / 4)
        world.server.start()


def _some(world: World) -> int:
    """Return any number of the writes that there are."""
    return world.random.randint(1, max(1, len(world.server.database.log)))


@asynccontextmanager
async def _alone(world: World, step: Step) -> AsyncIterator[Sidecar]:
    """Have a sidecar that runs, and that nobody else ends or starts."""
    sidecar = world.sidecars[step.sidecar]
    async with sidecar.lock:
        yield sidecar


@asynccontextmanager
async def _disturbed(world: World, step: Step) -> AsyncIterator[Link]:
    """Disturb a link for the time of a step."""
    link = world.sidecars[step.sidecar].link
    yield link
    await asyncio.sleep(step.lasts)
    link.calm()


NEMESES: dict[str, Nemesis] = {
    "crash sidecar": _crash_sidecar,
    "crash twice": _crash_twice,
    "late request": _late_request,
    "wrong clock": _wrong_clock,
    "full disk": _full_disk,
    "slow disk": _slow_disk,
    "kill client": _kill_client,
    "slow": _slow,
    "requests stall": _requests_stall,
    "answers stall": _answers_stall,
    "answers lost": _answers_lost,
    "refuse": _refuse,
    "reset": _reset,
    "partition": _partition,
    "kill redis": _kill_redis,
    "pause redis": _pause_redis,
    "lose tail": _lose_tail,
    "older copy": _older_copy,
    "restore": _restore,
    "flush": _flush,
    "promote": _promote,
    "full memory": _full_memory,
}

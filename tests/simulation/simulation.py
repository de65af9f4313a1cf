"""One schedule from beginning to end: clients work, faults happen, all is looked at."""

from __future__ import annotations

import asyncio
import random as global_random
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from sessiond.codec import json
from sessiond.errors import NotFound, SessionDeleted, SessiondError
from sessiond.model import NewSession
from sessiond.service.durable.waiting import Journaled
from sessiond.service.status import OutboxStatus
from sessiond.service.writes import Create
from sessiond.sync.entry import Entry, operation_json
from tests.simulation.client import LocalClient, LocalWatcher
from tests.simulation.loop import Endless, VirtualLoop, run_virtually
from tests.simulation.nemeses import World, strike
from tests.simulation.network import Link, Network
from tests.simulation.schedule import SECONDS, SIDECARS
from tests.simulation.server import RedisServer
from tests.simulation.sidecar import Life, Sidecar, count_tasks
from tests.system.faults.history import FinalSession, History, Seen
from tests.system.faults.schedule import Schedule, Step
from tests.system.faults.workload import Habits, Writer

WRITERS = 3
_HABITS = Habits({10: 90.0, 3_000: 9.0, 40_000: 1.0}, 0.2)
_SETTLE_SECONDS = 40.0
_QUIET_SECONDS = 1.3
_CATCH_UP_SECONDS = 8.0
_LOOK_SECONDS = 0.1
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own in it

Trace = list[tuple[Any, ...]]
"""What happened in order: time in seconds, kind, and what belongs to it."""


class Course(Struct):
    """What came of a schedule."""

    history: History
    trace: Trace


def simulate(planned: Schedule, *, keeps_copies: bool) -> Course:
    """Run a schedule; the same one always takes the same course.

    Args:
        planned: the schedule.
        keeps_copies: whether the sidecars keep copies of sessions.
    """
    course = Course(History(), [])
    folder = Path(tempfile.mkdtemp(prefix="sim-", dir=_MEMORY if _MEMORY.is_dir() else None))

    async def run(loop: VirtualLoop) -> None:
        await _Simulation(loop, planned, folder, course, keeps_copies=keeps_copies).run()

    try:
        run_virtually(run)
    except Endless as error:
        course.history.failures.append(str(error))
    finally:
        shutil.rmtree(folder)
    return course


class _Simulation:
    def __init__(
        self,
        loop: VirtualLoop,
        planned: Schedule,
        folder: Path,
        course: Course,
        *,
        keeps_copies: bool,
    ) -> None:
        self._loop, self._planned = loop, planned
        self._history, self._trace = course.history, course.trace
        global_random.seed(planned.seed)  # spreads retries: see service/writing.py
        self._server = RedisServer(loop.time, self._random("redis"), self._note)
        network = loop.hosts = Network(self._server, self._random("network"))
        count_tasks(loop)
        self._sidecars: list[Sidecar] = []
        for name in (f"side{number}" for number in range(SIDECARS)):
            network.links[name] = link = Link()
            self._sidecars.append(
                Sidecar(name, link, folder / name, self._random(name), keeps_copies=keeps_copies)
            )

    async def run(self) -> None:
        await asyncio.gather(*(sidecar.start() for sidecar in self._sidecars))
        sessions = ["ses-a", "ses-b"]
        for session_id in sessions:
            await self._create(session_id)
        watchers = {
            session_id: [LocalWatcher(sidecar, session_id)]
            for session_id, sidecar in zip(sessions, self._sidecars, strict=True)
        }
        healed = await self._work(sessions)
        await self._settle(healed)
        names = [*sessions, *(told.session_id for told in self._history.told)]
        for name in dict.fromkeys(names):
            self._history.final[name] = await self._final(name)
        await self._caught_up(watchers)
        for session_id, some in watchers.items():
            for watcher in some:
                await watcher.stop()
            self._history.observed[session_id] = [watcher.seen for watcher in some]
        for told in self._history.told:
            self._note("told", told)
        for sidecar in self._sidecars:
            await sidecar.crash()

    def _random(self, what: str) -> Random:
        return Random(f"{self._planned.seed} {what}")

    def _note(self, *what: Any) -> None:
        self._trace.append((round(self._loop.time(), 6), *what))

    async def _create(self, session_id: str) -> None:
        write = Create(session_id=session_id, new=NewSession(session_id=session_id))
        outcome = await self._sidecars[0].ask(lambda life: life.durable.outbox.submit(write))
        if isinstance(outcome, Journaled):
            self._history.failures.append("Redis does not answer although nothing is wrong")

    async def _work(self, sessions: list[str]) -> float:
        """Let clients write while faults happen; returns when all faults were over."""
        writers = [self._writer(number, sessions) for number in range(WRITERS)]
        clients = [asyncio.create_task(writer.run()) for writer in writers]
        world = World(self._server, self._sidecars, clients, self._random("faults"), asyncio.Lock())
        began = self._loop.time()

        async def do(step: Step) -> None:
            await asyncio.sleep(max(0.0, began + step.at - self._loop.time()))
            self._note("fault", step)
            await strike(world, step)

        usual = [step for step in self._planned.steps if step.at <= SECONDS]
        await asyncio.gather(*(do(step) for step in usual))
        await asyncio.sleep(max(0.0, began + SECONDS - self._loop.time()))
        for step in self._planned.steps[len(usual) :]:
            await do(step)
        for writer in writers:
            writer.stop()
        for sidecar in self._sidecars:
            sidecar.link.calm()
        healed = self._loop.time()
        self._note("healed")
        await asyncio.gather(*clients, return_exceptions=True)
        for client in clients:
            if not client.cancelled() and (error := client.exception()):
                self._history.failures.append(f"a client gave up: {error!r}")
        return healed

    def _writer(self, number: int, sessions: list[str]) -> Writer:
        name = f"w{number}"
        client = LocalClient(name, self._sidecars[number % SIDECARS], self._random(name))
        seed = self._planned.seed
        return Writer(name, client, sessions, self._history, seed=seed, habits=_HABITS)

    async def _settle(self, healed: float) -> None:
        """Wait until no sidecar has anything to write any more, and note how long that took."""
        busy = self._loop.time()
        end = busy + _SETTLE_SECONDS
        while self._loop.time() < busy + _QUIET_SECONDS:
            states = [await self._outbox(sidecar) for sidecar in self._sidecars]
            if self._loop.time() > end:
                self._history.failures.append(f"the sidecars do not come to rest: {states}")
                break
            if not all(state and not state.waiting and not state.in_doubt for state in states):
                busy = self._loop.time()
            await asyncio.sleep(_LOOK_SECONDS)
        self._history.recovery_seconds = max(0.0, busy - healed)

    async def _outbox(self, sidecar: Sidecar) -> OutboxStatus | None:
        with suppress(SessiondError):
            return await sidecar.ask(lambda life: life.durable.outbox.status())
        return None

    async def _final(self, session_id: str) -> FinalSession:
        final = FinalSession()
        for sidecar in self._sidecars:
            try:
                loaded, entries = await sidecar.ask(lambda life: _loaded(life, session_id))
                final.loads.append(loaded)
                final.log = [_seen(entry) for entry in entries]
                encoded = [operation_json(session_id, entry) for entry in entries]
                final.operations = [msgspec.json.decode(each) for each in encoded]
            except SessionDeleted:
                final.deleted = True
            except NotFound:
                final.missing = True
            except SessiondError as error:
                self._history.failures.append(f"{session_id} cannot be read: {error!r}")
            with suppress(SessiondError):
                found = await sidecar.ask(lambda life: life.core.conflicts.of_session(session_id))
                final.conflicts = msgspec.json.decode(json.encode(found))
        return final

    async def _caught_up(self, watchers: dict[str, list[LocalWatcher]]) -> None:
        """Give observers the time that they need to connect again."""
        deadline = self._loop.time() + _CATCH_UP_SECONDS
        for session_id, some in watchers.items():
            log = self._history.final[session_id].log
            for watcher in some:
                while log and self._loop.time() < deadline and not _holds(watcher, log[-1]):
                    await asyncio.sleep(_LOOK_SECONDS)


async def _loaded(life: Life, session_id: str) -> tuple[Any, list[Entry]]:
    """Return a session as a sidecar loads it from Redis, and its log."""
    session = msgspec.json.decode(await life.core.sessions.load(session_id))
    pages = life.core.store.log.pages(session_id)
    return session, [entry async for page in pages for entry in page.entries]


def _seen(entry: Entry) -> Seen:
    return Seen(0, entry.offset, entry.epoch, entry.op, entry.id)


def _holds(watcher: LocalWatcher, end: Seen) -> bool:
    last = watcher.seen[-1] if watcher.seen else None
    return last is not None and (last.offset, last.epoch) == (end.offset, end.epoch)

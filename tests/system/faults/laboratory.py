"""One run after the other on the same machines: clients work, faults happen, all is looked at."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from sessiond.client import DaemonClient
from sessiond.codec import json
from sessiond.errors import NotFound, SessionDeleted, SessiondError
from sessiond.model import NewSession, Operation, Session
from sessiond.retrying import retried
from sessiond.service.status import OutboxStatus
from tests.system.faults.history import FinalSession, History, Seen
from tests.system.faults.machines import Machine, Machines
from tests.system.faults.nemeses import Targets, strike
from tests.system.faults.schedule import SECONDS, SIDECARS, Schedule, Step
from tests.system.faults.workload import Watcher, Writer, seen_in

WRITERS = 4
_WATCHERS = 2
_QUIET_SECONDS = 1.3
_CATCH_UP_SECONDS = 8.0
_PAGE = 1_000


class Laboratory:
    """Runs schedules; each has sessions of its own.

    Args:
        machines: where.
        settle_seconds: how long daemons may take to come to rest.
    """

    def __init__(self, machines: Machines, settle_seconds: float = 25.0) -> None:
        self.machines = machines
        self._settle_seconds = settle_seconds
        self._numbers = itertools.count(1)

    async def run(self, schedule: Schedule) -> History:
        """Let clients work while a schedule's faults happen; return what came of it."""
        history = History()
        name = f"s{schedule.seed}-{next(self._numbers)}"
        sessions = [f"{name}-a", f"{name}-b"]
        await self._create(sessions)
        self.machines.redis.forget_copies()
        await self.machines.redis.copy()
        async with self._watched(sessions, history) as watchers:
            healed = await self._work(schedule, sessions, history)
            await self._settle(healed, history)
            names = dict.fromkeys([*sessions, *(told.session_id for told in history.told)])
            for name in names:
                try:
                    history.final[name] = await self._final(name)
                except TimeoutError:
                    history.failures.append(f"{name} cannot be read from Redis")
            await _caught_up(watchers, history)
        return history

    async def _work(self, schedule: Schedule, sessions: list[str], history: History) -> float:
        """Let clients write while faults happen, and have their last answers.

        Returns:
            When all faults were over (`time.monotonic`): recovery begins there, with clients that
            still wait.
        """
        writers = [
            Writer(
                name := f"w{number}",
                DaemonClient(socket=self._socket(number), name=name),
                sessions,
                history,
                seed=schedule.seed,
            )
            for number in range(WRITERS)
        ]
        clients = [asyncio.create_task(writer.run()) for writer in writers]
        targets = Targets(self.machines, clients, sessions)
        began = time.monotonic()

        async def do(step: Step) -> None:
            await asyncio.sleep(max(0.0, began + step.at - time.monotonic()))
            await strike(targets, step)

        usual = [step for step in schedule.steps if step.at <= SECONDS]
        final = [step for step in schedule.steps if step.at > SECONDS]
        await asyncio.gather(*(do(step) for step in usual))
        for step in final:
            await do(step)
        for writer in writers:
            writer.stop()
        await self.machines.heal()
        healed = time.monotonic()
        await asyncio.gather(*clients, return_exceptions=True)
        for client in clients:
            if not client.cancelled() and (error := client.exception()):
                history.failures.append(f"a client gave up: {error!r}")
        return healed

    async def _settle(self, healed: float, history: History) -> None:
        """Wait until no daemon has anything to write any more, and note how long that took.

        Every daemon looks at Redis each second; so long nothing must come up again.
        """
        states: list[OutboxStatus | None] = []
        busy = time.monotonic()
        end = busy + self._settle_seconds
        while time.monotonic() < busy + _QUIET_SECONDS:
            if time.monotonic() > end:
                history.failures.append(f"the daemons do not come to rest: {states}")
                break
            states = [await self._outbox(machine) for machine in self.machines.each]
            if not all(state and not state.waiting and not state.in_doubt for state in states):
                busy = time.monotonic()
            await asyncio.sleep(0.02)
        history.recovery_seconds = max(0.0, busy - healed)

    async def _final(self, session_id: str) -> FinalSession:
        final = FinalSession()
        for machine in self.machines.each:
            async with _client(machine.socket) as client:
                try:
                    session = await _fresh(client, session_id)
                    final.loads.append(msgspec.json.decode(json.encode(session)))
                    operations = await _operations(client, session_id)
                    encoded = [json.encode(operation) for operation in operations]
                    final.operations = [msgspec.json.decode(each) for each in encoded]
                    final.log = [seen_in(each, 0) for each in encoded]
                except SessionDeleted:
                    final.deleted = True
                except (NotFound, TimeoutError):
                    final.missing = True
                with contextlib.suppress(SessiondError):
                    conflicts = json.encode(await client.conflicts(session_id))
                    final.conflicts = msgspec.json.decode(conflicts)
        return final

    @asynccontextmanager
    async def _watched(
        self, sessions: list[str], history: History
    ) -> AsyncIterator[dict[str, list[Watcher]]]:
        watchers = {
            session_id: [Watcher(self._socket(number), session_id) for number in range(_WATCHERS)]
            for session_id in sessions
        }
        try:
            yield watchers
        finally:
            for session_id, some in watchers.items():
                for watcher in some:
                    await watcher.stop()
                history.observed[session_id] = [watcher.seen for watcher in some]

    async def _create(self, sessions: list[str]) -> None:
        async with _client(self._socket(0)) as client:
            for session_id in sessions:
                await client.create(NewSession(session_id=session_id))

    async def _outbox(self, machine: Machine) -> OutboxStatus | None:
        with contextlib.suppress(SessiondError):
            async with _client(machine.socket) as client:
                status: OutboxStatus
                status, _ = await client.call("GET", "/v1/journal", OutboxStatus)
                return status
        return None

    def _socket(self, number: int) -> str:
        return self.machines.each[number % SIDECARS].socket


@asynccontextmanager
async def _client(socket: str) -> AsyncIterator[DaemonClient]:
    client = DaemonClient(socket=socket)
    try:
        yield client
    finally:
        await client.close()


async def _fresh(client: DaemonClient, session_id: str) -> Session:
    """Load a session from Redis.

    A daemon that found Redis slow, or has a connection from before its restart, may answer from a
    copy of its own, or that Redis is away.

    Raises:
        TimeoutError: it does so again and again.
    """
    async with asyncio.timeout(_CATCH_UP_SECONDS):
        while True:
            try:
                session = await client.load(session_id)
            except SessiondError as error:
                if not error.temporary:
                    raise
            else:
                if not session.stale_seconds:
                    return session
            await asyncio.sleep(0.05)


async def _operations(client: DaemonClient, session_id: str) -> list[Operation]:
    log: list[Operation] = []
    after = "0"
    while True:
        page = await retried(partial(client.operations, session_id, after=after, limit=_PAGE))
        log += page.operations
        if not page.more:
            return log
        after = page.position


async def _caught_up(watchers: dict[str, list[Watcher]], history: History) -> None:
    """Give observers the time that they need to connect again."""
    deadline = time.monotonic() + _CATCH_UP_SECONDS
    for session_id, some in watchers.items():
        log = history.final.get(session_id, FinalSession()).log
        for watcher in some:
            while log and time.monotonic() < deadline and not _holds(watcher, log[-1]):
                await asyncio.sleep(0.02)


def _holds(watcher: Watcher, end: Seen) -> bool:
    last = watcher.seen[-1] if watcher.seen else None
    return last is not None and (last.offset, last.epoch) == (end.offset, end.epoch)

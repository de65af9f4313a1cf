"""A machine with a simulated opencode: what it writes goes out, what comes in is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from sessiond.errors import InstanceGone, SessiondError
from sessiond.opencode.difference import LoggedState, difference
from sessiond.opencode.mapping import FIELD, Machine
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.service.clock import moment_of
from sessiond.service.durable.reviving import Revive, leave_alone
from sessiond.service.opencode.lane import Lane
from sessiond.service.opencode.outbox import Outbox, Replica, Target
from sessiond.store.log import LogPage
from sessiond.store.opencode import OpencodeStore
from sessiond.sync.position import START, Position
from tests.opencode.simulated import PROJECT, SimulatedOpencode
from tests.store.support import Services

SESSION = "ses_1"


class TurnRuns(SessiondError):
    """A local turn runs."""

    temporary = True


class Site:
    """One machine: an opencode, its outbox, and the lane of one session.

    `busy`: a turn runs, known to the sidecar; `holding`: one that only the plugin knows of.
    `failures`: how many of the next attempts to reach the plugin fail.
    """

    def __init__(self, core: Services, name: str = "oc-here", worktree: str = "/here") -> None:
        self.core = core
        self.replica = name
        self.opencode = SimulatedOpencode(worktree=worktree)
        self.private: set[str] = set()
        self.busy = False
        self.holding = False
        self.failures = 0
        self.shown: list[OpencodeEvent] = []
        self.batches: list[list[OpencodeEvent]] = []
        self.refused: list[str] = []
        self.position = START
        self.reconciled = 0
        self.revivals: list[Revive] = [leave_alone]
        self._machine = Machine(PROJECT, worktree)
        self.outbox = self.new_outbox()
        self.lane = Lane(SESSION, self)

    def new_outbox(self, read: Callable[..., Any] | None = None) -> Outbox:
        core = self.core
        store = OpencodeStore(core.redis, core.keys, core.store.recall)
        return Outbox(
            Replica(self.replica, "default", PROJECT),
            read or self.read,
            Target(
                core.sessions, core.store, store, core.documents, core.clock, revive=self.revive
            ),
            self.machine,
            lambda session_id: session_id not in self.private,
            unlike=self.doubt,
            progressed=lambda: None,
        )

    async def revive(self, session_id: str, /, *, is_known: bool = True) -> bool:
        return await self.revivals[-1](session_id, is_known=is_known)

    def restart(self) -> None:
        """Lose all that is only remembered."""
        self.lane.close()
        self.outbox = self.new_outbox()
        self.lane = Lane(SESSION, self, self.position)

    def close(self) -> None:
        self.lane.close()
        self.opencode.close()

    async def read(self, question: Callable[..., Any]) -> Any:
        await asyncio.sleep(0)  # as long as a thread takes
        return question(self.opencode.database)

    async def catch_up(self) -> None:
        async with asyncio.timeout(10):
            await self.lane.ask("catch-up")

    def doubt(self, session_id: str) -> None:  # noqa: ARG002 - a site has one session
        self.position = START
        self.lane.doubt()

    # What a lane stands on

    def machine(self) -> Machine:
        return self._machine

    def now(self) -> int:
        return self.core.clock()

    def holds_back(self, session_id: str) -> bool:  # noqa: ARG002 - a site has one session
        return self.busy

    def show(self, events: Sequence[OpencodeEvent]) -> None:
        self.shown += events

    def moved(self, lane: Lane) -> None:
        if lane is self.lane:
            self.position = lane.position

    def pages(self, session_id: str, after: Position) -> AsyncIterator[LogPage]:
        return self.core.store.log.pages(session_id, after)

    async def apply(
        self, session_id: str, events: Sequence[OpencodeEvent], *, announce: bool
    ) -> bool:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise InstanceGone("it went away")
        if announce:
            self.shown += events
        if self.busy or self.holding:
            return False
        self.batches.append(list(events))
        self.refused += self.opencode.replay(session_id, events)
        return True

    async def last_event(self, session_id: str, record_id: str) -> str | None:
        found: str | None = await self.read(lambda d: d.last_event(session_id, record_id))
        return found

    async def local_info(self, session_id: str) -> dict[str, Any]:
        return self.opencode.database.info(session_id) or {"id": session_id}

    async def session_record(self, session_id: str) -> dict[str, Any] | None:
        store = OpencodeStore(self.core.redis, self.core.keys, self.core.store.recall)
        found = await store.context_fields([session_id], FIELD)
        return msgspec.json.decode(found[session_id], type=dict[str, Any]) if found else None

    async def reconcile(self, session_id: str) -> Position:
        """As the sidecar does it, without its waiting."""
        self.reconciled += 1
        await self.outbox.flush(session_id)
        logged, position = await logged_state(self.core, session_id)
        local = self.opencode.database.state(session_id)
        if logged.session is None:
            return position
        found = difference(session_id, logged, local, self._machine, self.now())
        if found.unknown_messages or found.unknown_parts:
            await self.outbox.put_records(session_id, found.unknown_messages, found.unknown_parts)
        if found.missing and not await self.apply(session_id, found.missing, announce=True):
            raise TurnRuns("a turn runs")
        return position


async def logged_state(core: Services, session_id: str = SESSION) -> tuple[LoggedState, Position]:
    """The records as the log has them, and its end."""
    logged, position = LoggedState(), START
    async for page in core.store.log.pages(session_id, START):
        for entry in page.entries:
            at_ms = round(moment_of(entry.at).timestamp() * 1000)
            body = msgspec.json.decode(entry.json)
            logged.take(entry.op, entry.id, body, (entry.epoch, entry.offset, at_ms))
        position = page.position
    return logged, position


async def texts(core: Services, session_id: str = SESSION) -> dict[str, Any]:
    """The text of every record that the log has."""
    logged, _ = await logged_state(core, session_id)
    return {name: (w.change.body or {}).get("text") for name, w in logged.records.items()}


def local_texts(site: Site, session_id: str = SESSION) -> dict[str, Any]:
    """The text of every record that a machine has, in the words of the log."""
    records = site.opencode.records(session_id)
    return {name: site.machine().neutral(record.get("text")) for name, record in records.items()}

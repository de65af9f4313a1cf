"""What arrives for one session, taken in the order of its log into one opencode database.

A lane knows up to which position everything is there. Operations of the database's own outbox are
there already. While a local turn runs nothing is written: opencode's turn loop would take a
foreign message for one it has to answer. The views are told at once in any case.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, Protocol

import structlog
from msgspec import MsgspecError, Raw, Struct, json

from sessiond.errors import SessiondError
from sessiond.opencode.mapping import (
    Change,
    Machine,
    change_of_operation,
    event_of_change,
    replayed_id,
    replayed_offset,
    title_given,
)
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.service.clock import moment_of
from sessiond.service.live.feed import LIVE, Event
from sessiond.store.log import LogPage
from sessiond.sync.entry import Entry
from sessiond.sync.position import START, Position

_BATCH = 50
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
_ANY = json.Decoder()
_SESSION_OPERATIONS = ("session.create", "session.delete", "document.change")

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Surroundings(Protocol):
    """What a lane stands on: one opencode database, and the log."""

    @property
    def replica(self) -> str:
        """The client under which the database's own operations stand in the log."""

    def machine(self) -> Machine:
        """Return what is peculiar to this machine now."""

    def now(self) -> int:
        """Return this machine's time (ms)."""

    def holds_back(self, session_id: str) -> bool:
        """Tell whether nothing may be written into a session now."""

    def show(self, events: Sequence[OpencodeEvent]) -> None:
        """Show events to the views."""

    def moved(self, lane: Lane) -> None:
        """Take note of a lane's new position."""

    def pages(self, session_id: str, after: Position) -> AsyncIterator[LogPage]:
        """Read the log after a position."""

    async def apply(
        self, session_id: str, events: Sequence[OpencodeEvent], *, announce: bool
    ) -> bool:
        """Have opencode take events; False when a local turn runs, and they were only shown."""

    async def last_event(self, session_id: str, record_id: str) -> str | None:
        """Return the id of the event by which opencode last wrote a record."""

    async def local_info(self, session_id: str) -> dict[str, Any]:
        """Return the session's record as opencode has it."""

    async def session_record(self, session_id: str) -> dict[str, Any] | None:
        """Return the session's record as Redis has it now."""

    async def reconcile(self, session_id: str) -> Position:
        """Make opencode's records those of the log, and return the log's end."""


Wish = Literal["catch-up", "reconcile", "release"]


class _Ask(Struct, eq=False):
    wish: Wish
    done: asyncio.Future[None]


class _Operation(Struct):
    op: str
    position: str
    at: str
    origin: str
    id: str
    body: Raw


class LiveBody(Struct):
    """What passes by from an opencode: events, or the word that a turn has ended."""

    opencode: list[OpencodeEvent] = []
    turn: str = ""


class LiveEvent(Struct):
    """A live event that came from an opencode."""

    origin: str
    body: LiveBody


_OPERATION = json.Decoder(_Operation)
_LIVE = json.Decoder(LiveEvent)


class Lane:
    """The way of one session's operations into one opencode database.

    Args:
        session_id: the session.
        around: the database and the log.
        position: everything up to here is in the database.
    """

    def __init__(self, session_id: str, around: Surroundings, position: Position = START) -> None:
        self.session_id = session_id
        self.position = position
        self._around = around
        self._read = position
        self._waiting: deque[Event | _Ask] = deque()
        self._held: list[OpencodeEvent] = []
        self._begun_at = position.offset  # what was foreign up to here is not remembered
        self._foreign: dict[str, int] = {}  # record → offset of the last writing of others
        self._covered: list[Entry] = []
        self._is_doubted = False
        self._worker: asyncio.Task[None] | None = None

    def hear(self, event: Event) -> None:
        """Take an event of the session's feed."""
        self._enqueue(event)

    async def ask(self, wish: Wish) -> None:
        """Have something done after what was heard before, and return when it is done.

        `catch-up`: read the log to its end. `reconcile`: compare states. `release`: a local
        turn has ended, what was held back may go in.
        """
        asked = _Ask(wish, asyncio.get_running_loop().create_future())
        self._enqueue(asked)
        await asyncio.shield(asked.done)

    def doubt(self) -> None:
        """Have states compared: the database lacks something that was in it.

        Until that is done there is no position from which to go on.
        """
        self._is_doubted = True
        self.position = START
        self._compare_later()

    @property
    def waiting(self) -> int:
        """How much is heard but not yet in the database."""
        return len(self._waiting) + len(self._held)

    def close(self) -> None:
        """Stop; what was not taken is found again from the position."""
        if self._worker:
            self._worker.cancel()

    def _enqueue(self, item: Event | _Ask) -> None:
        self._waiting.append(item)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while self._waiting:
            try:
                await self._step()
            except SessiondError as error:
                await _log.ainfo(
                    "opencode.lane_waits", session_id=self.session_id, error=error.code
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - what comes next must not wait for it
                await _log.aexception("opencode.lane_failed", session_id=self.session_id)
                self._give_up(error)
            else:
                pause = _FIRST_PAUSE_SECONDS

    def _give_up(self, error: Exception) -> None:
        """Leave out what cannot be taken; comparing states makes up for it."""
        first = self._waiting.popleft()
        if isinstance(first, _Ask):
            if not first.done.done():
                first.done.set_exception(error)
        elif not any(isinstance(item, _Ask) for item in self._waiting):
            self._compare_later()

    def _compare_later(self) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self._enqueue(_Ask("reconcile", done))

    async def _step(self) -> None:
        """Work off the first of what waits, together with what is like it."""
        first = self._waiting[0]
        if isinstance(first, _Ask):
            await self._fulfil(first.wish)
            count = 1
            if not first.done.done():
                first.done.set_result(None)
        else:
            run = self._run_of(first.name == LIVE)
            if first.name == LIVE:
                self._show_live(run)
            else:
                await self._take([_entry(event) for event in run])
            count = len(run)
        for _ in range(count):
            self._waiting.popleft()

    def _run_of(self, live: bool) -> list[Event]:  # noqa: FBT001 - private, and one call
        run: list[Event] = []
        for item in self._waiting:
            if isinstance(item, _Ask) or (item.name == LIVE) != live or len(run) == _BATCH:
                break
            run.append(item)
        return run

    async def _fulfil(self, wish: Wish) -> None:
        match wish:
            case "catch-up":
                await self._catch_up()
            case "reconcile":
                await self._reconcile()
            case "release":
                await self._release()

    def _show_live(self, run: list[Event]) -> None:
        machine = self._around.machine()
        events = []
        for event in run:
            try:
                live = _LIVE.decode(event.data)
            except MsgspecError:
                continue  # a program's own words, not opencode's
            if live.origin.startswith(f"{self._around.replica}@"):
                continue  # the other processes on this database were told directly
            for told in live.body.opencode:
                properties = machine.local(told.properties)
                events.append(OpencodeEvent(type=told.type, properties=properties))
        self._around.show(events)

    async def _take(self, entries: list[Entry]) -> None:
        """Take operations that follow what was read; read the log where they do not."""
        fresh = [entry for entry in entries if entry.offset > self._read.offset]
        if fresh and fresh[0].offset != self._read.offset + 1:
            await self._catch_up()
        elif fresh:
            await self._bring_all(fresh)

    async def _catch_up(self) -> None:
        if self._is_doubted:
            await self._reconcile()
            return
        async for page in self._around.pages(self.session_id, self._read):
            if page.reset:
                await self._reconcile()
                return
            await self._bring_all(page.entries)  # all there is: a deletion leaves only itself

    async def _bring_all(self, entries: list[Entry]) -> None:
        events: list[OpencodeEvent] = []
        for entry in entries:
            if entry.op == "session.delete":
                self._covered.clear()  # told again afterwards, it would bring the session back
            if self._may_lie_below(entry):  # what lies above it must be there to be seen
                await self._bring(events)
                events = []
            event = await self._event(entry)
            events += [event] if event else []
        await self._bring(events)
        self._read = entries[-1].position
        self._note_position()

    async def _reconcile(self) -> None:
        self._held.clear()
        self._foreign.clear()
        self._covered.clear()
        self._is_doubted = False  # unless doubt comes up meanwhile
        try:
            self._read = await self._around.reconcile(self.session_id)
        except BaseException:
            self._is_doubted = True
            raise
        self._begun_at = self._read.offset
        self._note_position()

    async def _release(self) -> None:
        """Have taken what was held back, unless a local turn runs again."""
        while self._held:
            batch = self._held[:_BATCH]
            if self._around.holds_back(self.session_id):
                return
            if not await self._around.apply(self.session_id, batch, announce=False):
                return
            del self._held[: len(batch)]
        while self._covered:
            if self._around.holds_back(self.session_id):
                return
            entry = self._covered[0]
            if await self._lies_below(_record(entry), entry.offset):
                event = await self._told(entry)
                if event and not await self._around.apply(self.session_id, [event], announce=True):
                    return
            del self._covered[0]
        self._note_position()

    async def _bring(self, events: list[OpencodeEvent]) -> None:
        """Have events taken, or hold them back while a local turn runs."""
        for start in range(0, len(events), _BATCH):
            batch = events[start : start + _BATCH]
            if self._held or self._around.holds_back(self.session_id):
                self._around.show(batch)
                self._held += batch
            elif not await self._around.apply(self.session_id, batch, announce=True):
                self._held += batch

    def _note_position(self) -> None:
        if not (self._held or self._covered or self._is_doubted):
            self.position = self._read
            self._around.moved(self)

    async def _event(self, entry: Entry) -> OpencodeEvent | None:
        """Return what opencode is to be told of an operation; None when it knows."""
        record = _record(entry)
        if not self._is_own(entry):
            self._foreign[record] = entry.offset
            return await self._told(entry)
        if not self._may_lie_below(entry):
            return None
        if self._held or self._around.holds_back(self.session_id):
            self._covered.append(entry)  # by then it may have been written again
            return None
        if not await self._lies_below(record, entry.offset):
            self._foreign[record] = 0
            return None
        return await self._told(entry)

    def _is_own(self, entry: Entry) -> bool:
        return entry.origin.startswith(f"{self._around.replica}@")

    def _may_lie_below(self, entry: Entry) -> bool:
        """Tell whether somebody else wrote a record before this own writing of it."""
        foreign = self._foreign.get(_record(entry), self._begun_at)
        return self._is_own(entry) and 0 < foreign < entry.offset

    async def _told(self, entry: Entry) -> OpencodeEvent | None:
        """Return the event by which opencode takes an operation; None when it means nothing."""
        change = await self._change(entry)
        if change is None:
            return None
        name = replayed_id(entry.epoch, entry.offset)
        around = self._around
        event = event_of_change(self.session_id, change, around.machine(), around.now(), name)
        if change.kind == "session.delete":
            event.properties["info"] = await around.local_info(self.session_id)
        return event

    async def _change(self, entry: Entry) -> Change | None:
        body = _ANY.decode(entry.json)
        at_ms = round(moment_of(entry.at).timestamp() * 1000)
        if (entry.op, entry.id) != ("document.change", "metadata"):
            return change_of_operation(entry.op, entry.id, body, at_ms)
        title = title_given(body)
        info = await self._around.session_record(self.session_id) if title is not None else None
        if info is None or info.get("title") == title:
            return None
        return Change(kind="session.put", id="", body=info | {"title": title}, at_ms=at_ms)

    async def _lies_below(self, record: str, offset: int) -> bool:
        """Tell whether an own writing lies below a foreign one that the log has before it.

        Both sides wrote the record at the same time: here the foreign one came later, in the
        log earlier. The log decides, so the own one is brought in again.
        """
        last = await self._around.last_event(self.session_id, record)
        brought = replayed_offset(last) if last else None
        return brought is not None and brought < offset


def _record(entry: Entry) -> str:
    return "" if entry.op in _SESSION_OPERATIONS else entry.id


def _entry(event: Event) -> Entry:
    given = _OPERATION.decode(event.data)
    epoch, _, offset = given.position.partition(":")
    return Entry(int(offset), given.op, given.at, given.origin, given.id, epoch, bytes(given.body))

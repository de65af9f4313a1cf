"""One project of one opencode database, shared in a workspace: its outbox, its lanes, its turns.

Several opencode processes may use the database at once. What comes in is written through one of
them; the views of all are told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
from msgspec import Struct

from sessiond.codec import json
from sessiond.errors import (
    DatabaseUnreadable,
    InstanceGone,
    NotFound,
    SessionDeleted,
    SessiondError,
    StoreUnavailable,
)
from sessiond.model import Live
from sessiond.opencode.database import Database
from sessiond.opencode.difference import LoggedState, difference
from sessiond.opencode.mapping import (
    DURABLE,
    FIELD,
    Change,
    Machine,
    event_of_change,
    replayed_id,
)
from sessiond.opencode.protocol import Holder, OpencodeEvent, Turn
from sessiond.opencode.records import SessionRow, SessionState
from sessiond.opencode.saved import Cursor, SavedShare
from sessiond.service.clock import moment_of
from sessiond.service.feed import RESET, Event
from sessiond.service.feeds import POSITIONS, Feeds
from sessiond.service.leases import Leases
from sessiond.service.opencode.instance import Instance
from sessiond.service.opencode.lane import Lane, Wish
from sessiond.service.opencode.outbox import Outbox, Replica, Target
from sessiond.store.log import LogPage
from sessiond.sync.position import START, Position, parse_position

Outcome = TypeVar("Outcome")

_BATCH = 50
_ATTACHED_POLL_SECONDS = 0.25
_IDLE_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_TOGETHER = 2
_REMOTE_TURN_SECONDS = 15.0
_MENDING_SECONDS = 30.0
_AFTERMATH_SECONDS = 0.1
_WORTH_TELLING = 5

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class TurnRuns(SessiondError):
    """A local turn runs in a session: it is tried again."""

    temporary = True


class _Head(Struct):
    session_id: str = ""
    op: str = ""
    sessions: dict[str, str] = {}


_HEAD = msgspec.json.Decoder(_Head)
_ANY = msgspec.json.Decoder()


class Services(Struct, frozen=True):
    """What every share works with."""

    target: Target
    feeds: Feeds
    leases: Leases
    machine: str
    writer: str
    clock_ahead_ms: Callable[[], int]
    save: Callable[[SavedShare], None]


class Share:
    """One project of one opencode database.

    Args:
        saved: what is remembered of it.
        services: what it works with.
    """

    def __init__(self, saved: SavedShare, services: Services) -> None:
        self.saved = saved
        self.instances: dict[str, Instance] = {}
        self.failures = 0
        self._services = services
        self._database = Database(Path(saved.database))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="opencode-database")
        self._machine = Machine(saved.project_id, saved.worktree)
        self._lanes: dict[str, Lane] = {}
        self._turns: defaultdict[str, set[str]] = defaultdict(set)
        self._remote_turns: dict[str, float] = {}
        self._local: dict[str, SessionRow] = {}
        self._urgent: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._places = asyncio.Semaphore(_TOGETHER)
        self._tasks: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._changed = False
        self.outbox = Outbox(
            Replica(saved.replica, saved.workspace, saved.project_id),
            self.read,
            services.target,
            self.machine,
            self.is_shared,
        )

    # What a lane stands on

    @property
    def replica(self) -> str:
        """The client under which the database's operations stand in the log."""
        return self.saved.replica

    def machine(self) -> Machine:
        """Return what is peculiar to this machine now."""
        self._machine.clock_ahead_ms = self._services.clock_ahead_ms()
        return self._machine

    def now(self) -> int:
        """Return this machine's time (ms)."""
        return self._services.target.clock()

    def holds_back(self, session_id: str) -> bool:
        """Tell whether nothing may be written into a session now: a turn runs there."""
        return bool(self._turns.get(session_id)) or session_id in self._remote_turns

    def show(self, events: Sequence[OpencodeEvent]) -> None:
        """Show events to the views of every process."""
        by_process = {one.attachment.pid: one for one in self.instances.values()}
        for instance in by_process.values():
            instance.notify(events)

    def moved(self, lane: Lane) -> None:
        """Remember how far a lane is."""
        row = self._local.get(lane.session_id)
        self.saved.cursors[lane.session_id] = Cursor(
            lane.position.epoch, lane.position.offset, row.seq if row else -1
        )
        self._changed = True

    def pages(self, session_id: str, after: Position) -> AsyncIterator[LogPage]:
        """Read a session's log."""
        return self._services.target.store.log.pages(session_id, after)

    async def apply(
        self, session_id: str, events: Sequence[OpencodeEvent], *, announce: bool
    ) -> bool:
        """Have events written through one of the processes; False when a local turn runs there.

        Raises:
            InstanceGone: no process is attached, or the one went away.
        """
        if not self.instances:
            raise InstanceGone("no opencode is attached")
        instance = next(iter(self.instances.values()))
        answer = await instance.apply(session_id, events, announce=announce)
        if answer.outcome == "failed":
            self.failures += 1
            await _log.awarning("opencode.refused", session_id=session_id, error=answer.error)
            self._spawn(self._mend(session_id))
        if announce:
            self._tell_siblings(instance, events)
        return answer.outcome != "held"

    async def last_event(self, session_id: str, record_id: str) -> str | None:
        """Return the id of the event by which opencode last wrote a record."""
        return await self.read(lambda database: database.last_event(session_id, record_id))

    async def local_info(self, session_id: str) -> dict[str, Any]:
        """Return a session's record as opencode has it."""
        return await self.read(lambda database: database.info(session_id)) or {"id": session_id}

    async def session_record(self, session_id: str) -> dict[str, Any] | None:
        """Return a session's record as Redis has it now."""
        found = await self._services.target.opencode.context_fields([session_id], FIELD)
        record: dict[str, Any] | None = _ANY.decode(found[session_id]) if found else None
        return record

    async def reconcile(self, session_id: str) -> Position:
        """Make opencode's records those of the log, and the other way round."""
        async with self._place(session_id):
            await self._until_free(session_id)
            await self.outbox.flush(session_id)
            logged, position = await self._logged(session_id)
            local = await self.read(lambda database: database.state(session_id))
            await self._bring(session_id, logged, local)
            return position

    # Coming and going

    def start(self) -> None:
        """Begin to read what opencode logs."""
        self._spawn(self._tail())

    async def attach(self, instance: Instance) -> None:
        """Add a process; the first one makes the workspace's sessions come in."""
        self.instances[instance.name] = instance
        for session_id in instance.attachment.turns:
            self._turns[session_id].add(instance.name)
            self._spawn(self._reclaim(session_id, instance.name))
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow())

    async def detach(self, instance: Instance) -> None:
        """Remove a process that is gone; its turns are over."""
        if self.instances.get(instance.name) is not instance:
            return
        del self.instances[instance.name]
        for session_id, names in list(self._turns.items()):
            if instance.name in names:
                self.end_turn(instance.name, session_id)
        if not self.instances:
            await self._stop_following()

    async def close(self) -> None:
        """Stop everything and remember where it stood."""
        await self._stop_following()
        for task in self._tasks:
            task.cancel()
        self.save()
        self._thread.submit(self._database.close)
        self._thread.shutdown(wait=False)

    def save(self) -> None:
        """Write down what is to be remembered, if it changed."""
        if self._changed:
            self._changed = False
            self._services.save(self.saved)

    # Which sessions

    def is_shared(self, session_id: str) -> bool:
        """Tell whether a session of this project is to be shared."""
        if session_id in self.saved.private:
            return False
        row = self._local.get(session_id)
        if row is None or row.project_id != self.saved.project_id:
            return False
        if self.saved.imported or session_id in self._lanes:
            return True
        return session_id in self.saved.cursors or row.updated_ms >= self.saved.since_ms

    @property
    def lag(self) -> int:
        """How many events wait to be brought into opencode."""
        return sum(lane.waiting for lane in self._lanes.values())

    @property
    def sessions(self) -> dict[str, SessionRow]:
        """The project's sessions in the database."""
        return self._local

    async def refresh(self) -> None:
        """See which sessions there are now."""
        await self._look()

    async def bring_in_all(self) -> int:
        """Share every session of the project, older ones too; return how many there are."""
        self.saved.imported = True
        self._changed = True
        await self._look()
        for session_id in self._local:
            await self.outbox.flush(session_id)
        return sum(self.is_shared(session_id) for session_id in self._local)

    def keep_private(self, session_id: str) -> None:
        """Send nothing of a session from now on."""
        if session_id not in self.saved.private:
            self.saved.private.append(session_id)
            self._changed = True

    async def make_shared(self, session_id: str) -> None:
        """Share a session, from its beginning."""
        self.saved.private = [name for name in self.saved.private if name != session_id]
        self.saved.cursors.setdefault(session_id, Cursor("", 0, -1))
        self._changed = True
        await self._look()
        await self.outbox.flush(session_id)

    # What opencode says

    async def pushed(self, instance: Instance, events: list[OpencodeEvent]) -> None:
        """Take what a process says happened there, in its order."""
        self._tell_siblings(instance, events)
        for is_kept, run in groupby(events, key=lambda event: event.type in DURABLE):
            by_session: dict[str, list[OpencodeEvent]] = {}
            for event in run:
                by_session.setdefault(_session_of(event), []).append(event)
            for session_id, told in by_session.items():
                if is_kept:
                    await self._flush_pushed(session_id, told)
                else:
                    await self._pass_on(session_id, told)
                    if any(event.type == "session.idle" for event in told):
                        self.end_turn(instance.name, session_id)

    async def turn(self, instance: Instance, session_id: str, wait_seconds: float) -> Turn:
        """Give a process the right to run a turn, after all that was said before is there."""
        self._urgent[session_id].set()
        mode = instance.attachment.mode
        token = 0
        try:
            if mode == "lease":
                state = await self._services.leases.acquire(session_id, instance.name, wait_seconds)
                if not state.granted:
                    holder = Holder(
                        instance=state.instance,
                        machine=state.machine,
                        since_ms=state.since_ms,
                        token=state.token,
                    )
                    return Turn(granted=False, holder=holder)
                token = state.token
            if session_id not in self._remote_turns and not self._turns.get(session_id):
                await self._catch_up(session_id)
        except StoreUnavailable:
            return Turn(granted=False)
        self._turns[session_id].add(instance.name)
        return Turn(granted=True, token=token)

    def end_turn(self, name: str, session_id: str) -> None:
        """Take note that a process's turn is over, and give the right to the next one."""
        names = self._turns.get(session_id, set())
        names.discard(name)
        if not names:
            self._turns.pop(session_id, None)
        lane = self._lanes.get(session_id)
        if lane and not names:
            self._spawn(lane.ask("release"))
        self._spawn(self._give_back(name, session_id))

    async def read(self, question: Callable[[Database], Outcome]) -> Outcome:
        """Read opencode's database, away from the event loop.

        Raises:
            DatabaseUnreadable: it cannot be read now.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, question, self._database)

    # From opencode

    async def _tail(self) -> None:
        """Read what opencode logs, whether or not its plugin says so.

        While one is attached its word is waited for, for the length of a pause: it knows what
        passed by between the events.
        """
        version = -1
        due: dict[str, int] = {}
        while True:
            try:
                for session_id, seq in due.items():
                    await self.outbox.flush(session_id, seq)
                due = {}
                now = await self.read(Database.version)
                if now != version:
                    due = {name: self._local[name].seq for name in await self._look()}
                    version = now
            except SessiondError as error:
                await _log.ainfo("opencode.tail_waits", error=error.code)
            self._forget_silent_turns()
            self.save()
            if not due or self.instances:
                pause = _ATTACHED_POLL_SECONDS if self.instances else _IDLE_POLL_SECONDS
                await asyncio.sleep(pause)

    async def _look(self) -> list[str]:
        """See which sessions there are; return those whose log grew.

        What was deleted here is deleted for everybody, unless the database itself was replaced.
        """
        identity, rows = await self.read(
            lambda database: (database.identity(), database.sessions(self.saved.project_id))
        )
        before, self._local = self._local, rows
        if self._went_back(identity):
            self.saved.cursors.clear()
        else:
            for session_id in self.saved.cursors.keys() - rows.keys():
                await self._vanished(session_id)
        self.saved.identity = identity
        return [
            name for name, row in rows.items() if name not in before or before[name].seq != row.seq
        ]

    def _went_back(self, identity: str) -> bool:
        """Tell whether the database is another one, or an older one, than it was."""
        if self.saved.identity not in ("", identity):
            return True
        known = ((cursor, self._local.get(name)) for name, cursor in self.saved.cursors.items())
        return any(row is not None and row.seq < cursor.seq for cursor, row in known)

    async def _vanished(self, session_id: str) -> None:
        del self.saved.cursors[session_id]
        self._changed = True
        lane = self._lanes.pop(session_id, None)
        if lane:
            lane.close()
        if session_id not in self.saved.private:
            await self.outbox.deleted(session_id)

    async def _flush_pushed(self, session_id: str, events: Sequence[OpencodeEvent]) -> None:
        is_deleted = any(event.type == "session.deleted" for event in events)
        if is_deleted or session_id not in self._local:
            await self._look()
        with contextlib.suppress(DatabaseUnreadable):  # the tail finds it
            await self.outbox.flush(session_id, events[-1].id)

    def _tell_siblings(self, instance: Instance, events: Sequence[OpencodeEvent]) -> None:
        """Show events to the other processes on this database; one may be attached twice."""
        pids = {instance.attachment.pid}
        for sibling in self.instances.values():
            if sibling.attachment.pid not in pids:
                pids.add(sibling.attachment.pid)
                sibling.notify(events)

    async def _pass_on(self, session_id: str, events: Sequence[OpencodeEvent]) -> None:
        """Tell the other machines what passes by: text being typed, a session's status."""
        if self.is_shared(session_id):
            neutral = self.machine().neutral
            told = [
                {"type": event.type, "properties": neutral(event.properties)} for event in events
            ]
            await self._say(session_id, {FIELD: told})

    async def _say(self, session_id: str, body: dict[str, Any]) -> None:
        origin = f"{self.replica}@{self._services.writer}"
        live = Live(session_id=session_id, origin=origin, body=body)
        message = json.encode({"live": live})
        with contextlib.suppress(StoreUnavailable):  # it passes by
            await self._services.target.store.publish(session_id, self.saved.workspace, message)

    # From the others

    async def _follow(self) -> None:
        """Take what happens in the workspace, for as long as a process is attached."""
        last_id = ""
        while True:
            try:
                async with self._services.feeds.workspace(self.saved.workspace, last_id) as batches:
                    async for events in batches:
                        for event in events:
                            await self._hear(event)
                            last_id = event.id or last_id
            except SessiondError as error:
                await _log.ainfo("opencode.feed_waits", error=error.code)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _hear(self, event: Event) -> None:
        head = _HEAD.decode(event.data)
        if event.name == POSITIONS or (event.name == RESET and not head.session_id):
            await self._begin({name: parse_position(text) for name, text in head.sessions.items()})
            return
        session_id = head.session_id
        if session_id in self.saved.private:
            return
        if event.name == RESET:
            self.outbox.forget(session_id)
            self._spawn(self._lane(session_id).ask("reconcile"))
            return
        self._note_remote_turn(event, session_id)
        self._lane(session_id).hear(event)

    async def _begin(self, positions: dict[str, Position]) -> None:
        """Bring in the workspace's sessions: first that they exist, then what is in them."""
        await self._look()
        wanted = {name: end for name, end in positions.items() if name not in self.saved.private}
        absent = sorted(name for name in wanted if name not in self._local)  # the newest first
        await self._list(absent)
        stale = []
        for session_id, end in sorted(wanted.items()):
            lane = self._lanes.get(session_id) or self._lanes.setdefault(
                session_id, Lane(session_id, self, self._remembered(session_id))
            )
            if lane.position != end:
                wish: Wish = "catch-up" if lane.position.offset else "reconcile"
                stale.append(asyncio.ensure_future(lane.ask(wish)))
        if stale:
            self._spawn(self._tell_progress(stale))

    async def _list(self, absent: list[str]) -> None:
        """Make sessions appear in opencode's list, before their messages come."""
        records = await self._services.target.opencode.context_fields(absent, FIELD)
        machine, now = self.machine(), self.now()
        for index, (session_id, record) in enumerate(records.items()):
            change = Change(kind="session.put", id="", body=_ANY.decode(record), at_ms=now)
            name = replayed_id("0" * 14, 0, salt=now * 1000 + index)
            event = event_of_change(session_id, change, machine, now, name)
            with contextlib.suppress(InstanceGone):
                await self.apply(session_id, [event], announce=True)

    async def _tell_progress(self, stale: Sequence[asyncio.Future[None]]) -> None:
        if len(stale) < _WORTH_TELLING:
            return
        self._toast(f"sessiond: {len(stale)} shared sessions are coming in")
        await asyncio.wait(stale)
        self._toast(f"sessiond: {len(stale)} shared sessions are here")

    def _toast(self, message: str) -> None:
        for instance in self.instances.values():
            instance.toast(message)

    def _remembered(self, session_id: str) -> Position:
        """Return the position saved for a session, unless its database is an older one now."""
        cursor = self.saved.cursors.get(session_id)
        row = self._local.get(session_id)
        if cursor is None or row is None or row.seq < cursor.seq:
            return START
        return cursor.position

    def _lane(self, session_id: str) -> Lane:
        lane = self._lanes.get(session_id)
        if lane is None:
            lane = self._lanes[session_id] = Lane(session_id, self)
        return lane

    async def _catch_up(self, session_id: str) -> None:
        """Return when everything the log has by now is in the database."""
        await self.outbox.flush(session_id)
        lane = self._lanes.get(session_id)
        if lane is None:
            try:
                await self._services.target.store.end(session_id)
            except (NotFound, SessionDeleted):
                return
            lane = self._lane(session_id)
        await lane.ask("catch-up")

    async def _logged(self, session_id: str) -> tuple[LoggedState, Position]:
        logged, position = LoggedState(), START
        async for page in self.pages(session_id, START):
            for entry in page.entries:
                at_ms = round(moment_of(entry.at).timestamp() * 1000)
                place = (entry.epoch, entry.offset, at_ms)
                logged.take(entry.op, entry.id, _ANY.decode(entry.json), place)
            position = page.position
        return logged, position

    async def _bring(
        self, session_id: str, logged: LoggedState, local: SessionState | None
    ) -> None:
        machine, now = self.machine(), self.now()
        if logged.deleted:
            if local:
                info = await self.local_info(session_id)
                gone = {"sessionID": session_id, "info": info}
                name = replayed_id("0" * 14, 0, salt=now * 1000)
                event = OpencodeEvent(id=name, type="session.deleted", properties=gone)
                await self.apply(session_id, [event], announce=True)
            return
        if logged.session is None:
            return
        found = difference(session_id, logged, local, machine, now)
        if found.unknown_messages or found.unknown_parts:
            await self.outbox.put_records(session_id, found.unknown_messages, found.unknown_parts)
        for start in range(0, len(found.missing), _BATCH):
            batch = found.missing[start : start + _BATCH]
            await self._until_free(session_id)
            if not await self.apply(session_id, batch, announce=True):
                raise TurnRuns(f"a turn runs in session {session_id!r}")

    async def _until_free(self, session_id: str) -> None:
        """Wait until no turn runs in a session."""
        while self.holds_back(session_id):  # noqa: ASYNC110 - turns last seconds and more
            await asyncio.sleep(_ATTACHED_POLL_SECONDS)

    async def _mend(self, session_id: str) -> None:
        """Compare states some time after opencode refused something."""
        await asyncio.sleep(_MENDING_SECONDS)
        lane = self._lanes.get(session_id)
        if lane:
            await lane.ask("reconcile")

    @contextlib.asynccontextmanager
    async def _place(self, session_id: str) -> AsyncIterator[None]:
        """Wait until few sessions are brought in at once; what a person opened does not wait."""
        urgent = asyncio.ensure_future(self._urgent[session_id].wait())
        place = asyncio.ensure_future(self._places.acquire())
        try:
            await asyncio.wait((urgent, place), return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            urgent.cancel()
            if place.done() and not place.cancelled():
                self._places.release()
            place.cancel()

    # Turns

    def _note_remote_turn(self, event: Event, session_id: str) -> None:
        """Follow the turns of others: in mode `atomic` they come in when they are complete."""
        live = _ANY.decode(event.data).get("body", {}) if event.name == "live" else {}
        if "turn" in live:
            self._services.leases.heard_release(session_id)
        if not any(one.attachment.mode == "atomic" for one in self.instances.values()):
            return
        told = [given["type"] for given in live.get(FIELD, [])]
        if "session.idle" in told:
            self._end_remote_turn(session_id)
        elif told or event.name == "message.append" or session_id in self._remote_turns:
            self._remote_turns[session_id] = time.monotonic()

    def _forget_silent_turns(self) -> None:
        for session_id, heard in list(self._remote_turns.items()):
            if time.monotonic() - heard > _REMOTE_TURN_SECONDS:
                self._end_remote_turn(session_id)

    def _end_remote_turn(self, session_id: str) -> None:
        self._remote_turns.pop(session_id, None)
        lane = self._lanes.get(session_id)
        if lane:
            self._spawn(lane.ask("release"))

    async def _give_back(self, name: str, session_id: str) -> None:
        """Give a lease back, when what opencode still logs after a turn is written too."""
        await asyncio.sleep(_AFTERMATH_SECONDS)
        if name in self._turns.get(session_id, ()):
            return  # the next turn began already
        with contextlib.suppress(SessiondError):  # the tail goes on with it, the lease ends itself
            await self.outbox.flush(session_id)
            if await self._services.leases.release(session_id, name):
                await self._say(session_id, {"turn": "ended"})

    async def _reclaim(self, session_id: str, name: str) -> None:
        """Take the lease again for a turn that went on while this sidecar was away."""
        with contextlib.suppress(SessiondError):
            await self._services.leases.acquire(session_id, name, 0.0)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop_following(self) -> None:
        if self._following:
            self._following.cancel()
            self._following = None
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()


def _session_of(event: OpencodeEvent) -> str:
    given = event.properties
    found = given.get("sessionID") or given.get("info", {}).get("id") or ""
    return str(found)

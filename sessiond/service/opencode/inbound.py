"""What happens in a workspace, on its way into one opencode database: a lane for each session."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from sessiond.errors import InstanceGone, NotFound, SessionDeleted, SessiondError
from sessiond.opencode.difference import ABOUT_MS, LoggedState, difference
from sessiond.opencode.mapping import FIELD, Change, Machine, event_of_change, replayed_id
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.opencode.records import SessionState
from sessiond.service.clock import moment_of
from sessiond.service.live.feed import LIVE, RESET, Event
from sessiond.service.live.feeds import POSITIONS, Feeds
from sessiond.service.opencode.catalogue import Catalogue
from sessiond.service.opencode.lane import Lane, LiveBody, LiveEvent, Wish
from sessiond.service.opencode.outbox import Outbox, Target
from sessiond.service.opencode.processes import Processes
from sessiond.service.opencode.reading import Read
from sessiond.service.opencode.turns import Turns
from sessiond.store.log import LogPage
from sessiond.sync.position import START, Position, parse_position

_BATCH = 50
_RETRY_SECONDS = 0.5
_LOOK_SECONDS = 10.0
_AT_ONCE = 2
_MENDING_SECONDS = 30.0
_WORTH_TELLING = 5
_LONG = 500
_NO_EPOCH = "0" * 14

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class TurnRuns(SessiondError):
    """A local turn runs in a session: it is tried again."""

    temporary = True


class Unsettled(SessiondError):
    """A session vanished just now, and is perhaps being deleted: it is tried again."""

    temporary = True


class _Head(Struct):
    session_id: str = ""
    origin: str = ""
    sessions: dict[str, str] = {}


_HEAD = msgspec.json.Decoder(_Head)
_LIVE = msgspec.json.Decoder(LiveEvent)
_ANY = msgspec.json.Decoder()


class Inbound:
    """Brings a workspace's sessions into one opencode database, and keeps them up to date.

    Args:
        catalogue: the sessions of the database.
        read: how to read the database.
        target: the log and the records in Redis.
        feeds: what happens in workspaces.
        machine: what is peculiar to this machine now.
        processes: who writes into the database.
        outbox: what happened here, on its way to the others.
        turns: which run, so that nothing may be written.
        look: sees which sessions the database has.
        delete_for_all: has a session deleted elsewhere, too, that somebody here deleted.
        released: told that somebody gave a session's turn back.
        spawn: runs something beside.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        read: Read,
        target: Target,
        feeds: Feeds,
        machine: Callable[[], Machine],
        processes: Processes,
        outbox: Outbox,
        turns: Turns,
        look: Callable[[], Awaitable[None]],
        delete_for_all: Callable[[str], None],
        released: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._catalogue = catalogue
        self._read = read
        self._target = target
        self._feeds = feeds
        self.machine = machine
        self._processes = processes
        self._outbox = outbox
        self._turns = turns
        self._look = look
        self._delete_for_all = delete_for_all
        self._released = released
        self._spawn = spawn
        self._lanes: dict[str, Lane] = {}
        self._told_of: dict[str, Any] = {}  # session → the revert that others went on behind
        self._opened: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._following: asyncio.Task[None] | None = None

    @property
    def lag(self) -> int:
        """How many events wait to be brought into opencode."""
        return sum(lane.waiting for lane in self._lanes.values())

    def start(self) -> None:
        """Begin to follow the workspace, if nobody did."""
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._follow())

    def stop(self) -> None:
        """Stop; what was not taken is found again by position."""
        if self._following:
            self._following.cancel()
            self._following = None
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()

    async def look_again(self) -> None:
        """Look every now and then whether Redis still has what it had."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._feeds.look(self._catalogue.saved.workspace)

    def opened(self, session_id: str) -> None:
        """Take note that a person has to do with a session: it does not wait for others."""
        self._opened[session_id].set()

    def release(self, session_id: str) -> None:
        """Let what was held back during a turn go in."""
        lane = self._lanes.get(session_id)
        if lane:
            self._spawn(lane.ask("release"))

    def compare(self, session_id: str) -> None:
        """Compare what the database has of a session with what the log has, if it is followed."""
        lane = self._lanes.get(session_id)
        if lane:
            self._spawn(lane.ask("reconcile"))

    def compare_all(self) -> None:
        """Compare all sessions that are followed, now or when a process attaches."""
        for session_id in self._lanes:
            self.compare(session_id)
        self._catalogue.distrust_positions()

    def doubt(self, session_id: str) -> None:
        """Have a session compared that is not here as the log has it.

        That is on disk when this returns: a sidecar that is started later does it, if this one
        ends before.

        Raises:
            ConfigurationError: it cannot be written down.
        """
        self._catalogue.distrust(session_id)
        self._catalogue.save()
        lane = self._lanes.get(session_id)
        if lane:
            lane.doubt()

    async def remove(self, session_id: str) -> None:
        """Have opencode delete a session that everybody else has no more.

        Raises:
            InstanceGone: no process is attached, or the one went away.
            TurnRuns: a local turn runs in it.
        """
        gone = {"sessionID": session_id, "info": await self.local_info(session_id)}
        name = replayed_id(_NO_EPOCH, 0, salt=self.now() * 1000)
        event = OpencodeEvent(id=name, type="session.deleted", properties=gone)
        if not await self.apply(session_id, [event], announce=True):
            raise TurnRuns(f"a turn runs in session {session_id!r}")

    def drop(self, session_id: str) -> None:
        """Forget a session that opencode has no more."""
        lane = self._lanes.pop(session_id, None)
        if lane:
            lane.close()

    async def catch_up(self, session_id: str) -> None:
        """Return when everything the log has by now is in the database."""
        await self._outbox.flush(session_id)
        newest = await self._read(lambda database: database.newest_message_at(session_id))
        if newest > self.now() + ABOUT_MS:  # the clock was set back: opencode would ignore a prompt
            self.doubt(session_id)
        lane = self._lanes.get(session_id)
        if lane:
            await lane.ask("catch-up")
            return
        try:
            await self._target.store.end(session_id)
        except (NotFound, SessionDeleted):
            return
        lane = self._lane(session_id)
        await lane.ask("catch-up" if lane.position.offset else "reconcile")

    # What a lane stands on

    @property
    def replica(self) -> str:
        """The client under which the database's operations stand in the log."""
        return self._catalogue.saved.replica

    def now(self) -> int:
        """Return this machine's time (ms)."""
        return self._target.clock()

    def holds_back(self, session_id: str) -> bool:
        """Tell whether nothing may be written into a session now."""
        return self._turns.run_in(session_id)

    def show(self, events: Sequence[OpencodeEvent]) -> None:
        """Show events to the views of every process."""
        self._processes.show(events)

    def moved(self, lane: Lane) -> None:
        """Remember how far a lane is."""
        self._catalogue.note(lane.session_id, lane.position)

    def pages(self, session_id: str, after: Position) -> AsyncIterator[LogPage]:
        """Read a session's log."""
        return self._target.store.log.pages(session_id, after)

    async def apply(
        self, session_id: str, events: Sequence[OpencodeEvent], *, announce: bool
    ) -> bool:
        """Have events written; False when a local turn runs, and they were only shown.

        Raises:
            InstanceGone: no process is attached, or the one went away.
            Unsettled: the session vanished just now.
        """
        if any(event.type == "session.deleted" for event in events):
            await self._outbox.flush(session_id)  # what comes too late is kept, before it is gone
        if self._catalogue.is_unsettled(session_id):
            raise Unsettled(f"session {session_id!r} vanished just now")
        if self._catalogue.is_deleted(session_id):  # all that may still be done to it
            events = [event for event in events if event.type == "session.deleted"]
            if not events:
                return True
        if self._processes.echo:
            self._outbox.expect(event for event in events if event.type == "message.part.updated")
        answer = await self._processes.apply(session_id, events, announce=announce)
        for note in self._target.on_applied:
            note(session_id, events, answer.outcome)
        if answer.outcome == "failed":
            await _log.awarning("opencode.refused", session_id=session_id, error=answer.error)
            self._spawn(self._mend(session_id))
        await self._tell_of_revert(session_id, events)
        return answer.outcome != "held"

    async def _tell_of_revert(self, session_id: str, events: Sequence[OpencodeEvent]) -> None:
        """Tell the person here, once, that others go on in a session which is reverted here.

        opencode does not show what lies behind a revert.
        """
        if all(event.type != "message.updated" for event in events):
            return
        info = await self.local_info(session_id)
        revert = info.get("revert")
        if revert is None:
            self._told_of.pop(session_id, None)
        elif self._told_of.get(session_id) != revert:
            self._told_of[session_id] = revert
            title = info.get("title", session_id)
            self._processes.toast(f"Others go on in {title!r}, where you went back: that stays")

    async def last_event(self, session_id: str, record_id: str) -> str | None:
        """Return the id of the event by which opencode last wrote a record."""
        return await self._read(lambda database: database.last_event(session_id, record_id))

    async def local_info(self, session_id: str) -> dict[str, Any]:
        """Return a session's record as opencode has it."""
        return await self._read(lambda database: database.info(session_id)) or {"id": session_id}

    async def session_record(self, session_id: str) -> dict[str, Any] | None:
        """Return a session's record as Redis has it now."""
        found = await self._target.opencode.context_fields([session_id], FIELD)
        record: dict[str, Any] | None = _ANY.decode(found[session_id]) if found else None
        return record

    async def reconcile(self, session_id: str) -> Position:
        """Make opencode's records those of the log, and the other way round."""
        async with self._place(session_id):
            await self._turns.until_free(session_id)
            await self._outbox.flush(session_id)
            logged, position = await self._logged(session_id)
            local = await self._read(lambda database: database.state(session_id))
            await self._bring(session_id, logged, local)
            return position

    # What happens in the workspace

    async def _follow(self) -> None:
        """Take what happens, for as long as a process is attached."""
        workspace, last_id = self._catalogue.saved.workspace, ""
        while True:
            try:
                async with self._feeds.workspace(workspace, last_id) as batches:
                    async for events in batches:
                        for event in events:
                            await self._hear(event)
                            last_id = event.id or last_id
            except SessiondError as error:
                await _log.ainfo("opencode.feed_waits", error=error.code)
            except Exception:  # noqa: BLE001 - whatever it was, what comes next is wanted
                await _log.aexception("opencode.feed_failed")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _hear(self, event: Event) -> None:
        head = _HEAD.decode(event.data)
        session_id = head.session_id
        if event.name == POSITIONS or (event.name == RESET and not session_id):
            await self._begin({name: parse_position(text) for name, text in head.sessions.items()})
        elif self._catalogue.is_private(session_id):
            pass
        elif self._catalogue.is_deleted(session_id):
            self._delete_absent(session_id)
        elif event.name == RESET:
            self._outbox.forget(session_id)
            self._spawn(self._lane(session_id).ask("reconcile"))
        else:
            if not head.origin.startswith(f"{self.replica}@"):
                self._note_turn(event, session_id)
            self._lane(session_id).hear(event)

    def _delete_absent(self, session_id: str) -> None:
        """Have a session deleted that lives on, though somebody here deleted it."""
        if session_id not in self._catalogue.rows:
            self._delete_for_all(session_id)

    def _note_turn(self, event: Event, session_id: str) -> None:
        """Follow the turns of others, where they come in when they are complete.

        That is so in mode `atomic`, and for a while after leases were lost.
        """
        live = LiveBody()
        if event.name == LIVE:
            with contextlib.suppress(msgspec.MsgspecError):  # a program's own words
                live = _LIVE.decode(event.data).body
        if live.turn:
            self._released(session_id)
        is_atomic = any(instance.attachment.mode == "atomic" for instance in self._processes)
        if not is_atomic and not self._turns.take_whole:
            return
        if any(told.type == "session.idle" for told in live.opencode):
            self._turns.ended_elsewhere(session_id)
        elif (
            live.opencode
            or event.name == "message.append"
            or self._turns.runs_elsewhere(session_id)
        ):
            self._turns.heard(session_id)

    async def _begin(self, positions: dict[str, Position]) -> None:
        """Bring in the workspace's sessions: first that they exist, then what is in them.

        Ids of opencode's sessions descend with time: sorted, the newest comes first. Archived ones
        that are not here stay where they are, until somebody goes on with them.
        """
        catalogue = self._catalogue
        await self._look()
        for session_id in filter(catalogue.is_deleted, positions):
            self._delete_absent(session_id)
        archived = await self._target.store.archived(positions.keys() - catalogue.rows.keys())
        wanted = sorted(
            name
            for name in positions.keys() - archived
            if not (catalogue.is_private(name) or catalogue.is_deleted(name))
        )
        await self._list([name for name in wanted if name not in catalogue.rows])
        stale = []
        for session_id in wanted:
            lane = self._lane(session_id)
            if lane.position != positions[session_id]:
                wish: Wish = "catch-up" if lane.position.offset else "reconcile"
                stale.append(asyncio.ensure_future(lane.ask(wish)))
        for session_id in catalogue.shared_before() - positions.keys():  # deleted, or lost
            lane = self._lane(session_id)
            stale += [asyncio.ensure_future(lane.ask("reconcile"))]
        if len(stale) >= _WORTH_TELLING:
            self._spawn(self._tell_progress(stale))

    async def _list(self, absent: list[str]) -> None:
        """Make sessions appear in opencode's list, before their messages come."""
        records = await self._target.opencode.context_fields(absent, FIELD)
        machine, now = self.machine(), self.now()
        for index, (session_id, record) in enumerate(records.items()):
            change = Change(kind="session.put", id="", body=_ANY.decode(record), at_ms=now)
            name = replayed_id(_NO_EPOCH, 0, salt=now * 1000 + index)
            event = event_of_change(session_id, change, machine, now, name)
            with contextlib.suppress(InstanceGone, Unsettled):
                await self.apply(session_id, [event], announce=True)

    async def _tell_progress(self, coming: Sequence[asyncio.Future[None]]) -> None:
        self._processes.toast(f"sessiond: {len(coming)} shared sessions are coming in")
        await asyncio.wait(coming)
        self._processes.toast(f"sessiond: {len(coming)} shared sessions are here")

    def _lane(self, session_id: str) -> Lane:
        lane = self._lanes.get(session_id)
        if lane is None:
            position = self._catalogue.position(session_id)
            lane = self._lanes[session_id] = Lane(session_id, self, position)
        return lane

    # Comparing states

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
        if logged.deleted and local:
            await self.remove(session_id)
        if logged.deleted or logged.session is None:  # gone, or no session of an opencode
            return
        found = difference(session_id, logged, local, machine, now)
        if found.unknown_messages or found.unknown_parts:
            await self._outbox.put_records(session_id, found.unknown_messages, found.unknown_parts)
        if len(found.missing) >= _LONG:
            title = str((logged.session.change.body or {}).get("title", session_id))
            self._processes.toast(f"sessiond: {title!r} is coming in, {len(found.missing)} pieces")
        for start in range(0, len(found.missing), _BATCH):
            batch = found.missing[start : start + _BATCH]
            await self._turns.until_free(session_id)
            if not await self.apply(session_id, batch, announce=True):
                raise TurnRuns(f"a turn runs in session {session_id!r}")

    async def _mend(self, session_id: str) -> None:
        """Compare states some time after opencode refused something."""
        await asyncio.sleep(_MENDING_SECONDS)
        lane = self._lanes.get(session_id)
        if lane:
            await lane.ask("reconcile")

    @contextlib.asynccontextmanager
    async def _place(self, session_id: str) -> AsyncIterator[None]:
        """Wait until few sessions are brought in at once; what a person opened does not wait."""
        opened = asyncio.ensure_future(self._opened[session_id].wait())
        place = asyncio.ensure_future(self._places.acquire())
        try:
            await asyncio.wait((opened, place), return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            opened.cancel()
            if not place.cancel():
                self._places.release()

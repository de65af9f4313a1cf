"""One project of one opencode database, shared in a workspace: what goes out and what comes in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from itertools import groupby
from pathlib import Path
from typing import Any

import structlog
from msgspec import Struct

from sessiond.codec import json
from sessiond.errors import SessiondError, StoreUnavailable
from sessiond.model import Live
from sessiond.opencode.database import Database
from sessiond.opencode.mapping import DURABLE, FIELD, Machine
from sessiond.opencode.protocol import OpencodeEvent, Turn
from sessiond.opencode.saved import SavedShare
from sessiond.service.content.leases import Leases
from sessiond.service.content.presence import Presences
from sessiond.service.live.feeds import Feeds
from sessiond.service.opencode.attendance import Attendance
from sessiond.service.opencode.catalogue import Catalogue
from sessiond.service.opencode.inbound import Inbound
from sessiond.service.opencode.instance import Instance
from sessiond.service.opencode.outbox import Outbox, Replica, Target
from sessiond.service.opencode.processes import Processes
from sessiond.service.opencode.reading import DatabaseReader
from sessiond.service.opencode.turns import Turns

_ATTACHED_POLL_SECONDS = 0.25
_IDLE_POLL_SECONDS = 1.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Services(Struct, frozen=True):
    """What every share works with. `writer` is who writes in this life of the daemon."""

    target: Target
    feeds: Feeds
    leases: Leases
    presences: Presences
    writer: str
    clock_ahead_ms: Callable[[], int]
    save: Callable[[SavedShare], None]
    seconds: Callable[[], float] = time.monotonic


class Share:
    """One project of one opencode database.

    Args:
        saved: what is remembered of it.
        services: what it works with.
    """

    def __init__(self, saved: SavedShare, services: Services) -> None:
        self._services = services
        self._machine = _machine(saved)
        self._tasks: set[asyncio.Task[None]] = set()
        self._due: dict[str, int] = {}  # sessions whose log grew, to be written up to a sequence
        self._deletions_due: set[str] = set()  # sessions to be deleted for everybody
        self._is_recheck_due = False  # Redis may have lost what was written
        self._reader = DatabaseReader(Path(saved.database))
        self._processes = Processes()
        self.catalogue = Catalogue(saved, self._reader.read, services.save, services.seconds)
        self.outbox = Outbox(
            Replica(saved.replica, saved.workspace, saved.project_id),
            self._reader.read,
            services.target,
            self._machine_now,
            self.catalogue.is_shared,
            unlike=self._unlike,
            progressed=self.catalogue.note_progress,
            progress=saved.written,
        )
        self.attendance = Attendance(
            services.presences,
            neutral=lambda path: str(self._machine.neutral(path)),
            is_shared=self.catalogue.is_shared,
        )
        self._turns = Turns(
            services.leases,
            catch_up=self._catch_up,
            flush=self.outbox.flush,
            ended=self._turn_ended,
            given_back=self._turn_given_back,
            spawn=self._spawn,
        )
        self._inbound = Inbound(
            catalogue=self.catalogue,
            read=self._reader.read,
            target=services.target,
            feeds=services.feeds,
            machine=self._machine_now,
            processes=self._processes,
            outbox=self.outbox,
            turns=self._turns,
            look=self._look,
            delete_for_all=self._deletions_due.add,
            released=services.leases.heard_release,
            spawn=self._spawn,
        )

    @property
    def saved(self) -> SavedShare:
        """What is remembered of it."""
        return self.catalogue.saved

    @property
    def lag(self) -> int:
        """How many events wait to be brought into opencode."""
        return self._inbound.lag

    def start(self) -> None:
        """Begin to read what opencode logs."""
        self._spawn(self._tail())
        self._spawn(self.attendance.keep())
        self._spawn(self._inbound.look_again())

    def moved(self, worktree: str) -> None:
        """Take note that the project's folder has another name now."""
        self.saved.worktree = worktree
        self._machine = _machine(self.saved)
        self._services.save(self.saved)
        self._inbound.compare_all()

    def attach(self, instance: Instance) -> None:
        """Add a process; the first one makes the workspace's sessions come in."""
        self._processes.add(instance)
        self._turns.came_back(instance)
        self.attendance.came_back(instance)
        self._inbound.start()

    def detach(self, instance: Instance) -> None:
        """Remove a process that is gone; its turns are over."""
        if self._processes.remove(instance):
            self._turns.gone(instance)
            self.attendance.gone(instance.name)
            if not self._processes:
                self._inbound.stop()

    def close(self) -> None:
        """Stop everything and remember where it stood."""
        self._inbound.stop()
        for task in self._tasks:
            task.cancel()
        self.catalogue.save()
        self._reader.close()

    async def bring_in_older(self) -> int:
        """Share the older sessions too; return how many sessions are shared then."""
        self.catalogue.include_older()
        await self._look()
        for session_id in self.catalogue.rows:
            await self.outbox.flush(session_id)
        return sum(self.catalogue.is_shared(session_id) for session_id in self.catalogue.rows)

    async def set_sharing(self, session_id: str, *, shared: bool) -> bool:
        """Share a session, or keep it private; False when the database does not have it."""
        await self._look()
        if session_id not in self.catalogue.rows:
            return False
        if shared:
            self.catalogue.include(session_id)
            await self.outbox.flush(session_id)
        else:
            self.catalogue.keep_private(session_id)
        self.catalogue.save()
        return True

    async def pushed(self, instance: Instance, events: list[OpencodeEvent]) -> None:
        """Take what a process says happened there, in its order."""
        events = instance.untaken(events)
        self._processes.show(instance.unshown(events), besides=instance)
        for is_kept, run in groupby(events, key=lambda event: event.type in DURABLE):
            by_session: dict[str, list[OpencodeEvent]] = {}
            for event in run:
                by_session.setdefault(_session_of(event), []).append(event)
            for session_id, told in by_session.items():
                self.attendance.note(instance, session_id, told)
                if is_kept:
                    await self._take_kept(session_id, told)
                else:
                    await self._pass_on(session_id, told)
                    self._note_status(instance, session_id, told)
                instance.note_taken(told)

    def _note_status(
        self, instance: Instance, session_id: str, events: list[OpencodeEvent]
    ) -> None:
        """Learn from what passes by which turns run: a shell command or a summary asks nobody."""
        for event in events:
            if event.type == "session.idle":
                self._turns.end(instance.name, session_id)
            elif event.properties.get("status", {}).get("type") == "busy":
                self._turns.began(instance, session_id)

    async def turn(self, instance: Instance, session_id: str, wait_seconds: float) -> Turn:
        """Let a process run a turn, after all that was said before is there."""
        if session_id not in self.catalogue.rows:  # it came a moment ago
            with contextlib.suppress(SessiondError):  # the tail looks again
                await self._look()
        self._inbound.opened(session_id)
        self._processes.prefer(instance)
        self.attendance.prompted(instance, session_id)
        return await self._turns.begin(instance, session_id, wait_seconds)

    def end_turn(self, name: str, session_id: str) -> None:
        """Take note that a process runs no turn."""
        self._turns.end(name, session_id)

    def recheck(self) -> None:
        """Look soon for what Redis lost, and write it again."""
        self._is_recheck_due = True

    def _machine_now(self) -> Machine:
        self._machine.clock_ahead_ms = self._services.clock_ahead_ms()
        return self._machine

    def _unlike(self, session_id: str) -> None:
        self._inbound.doubt(session_id)

    async def _catch_up(self, session_id: str) -> None:
        await self._inbound.catch_up(session_id)

    def _turn_ended(self, session_id: str) -> None:
        self._inbound.release(session_id)

    async def _turn_given_back(self, session_id: str) -> None:
        await self._say(session_id, {"turn": "ended"})

    async def _tail(self) -> None:
        """Read what opencode logs, whether or not its plugin says so.

        The plugin's word is waited for, for the length of a pause: it knows what passed by between
        the events, and which sessions are not to be shared.
        """
        version: tuple[int, ...] = ()
        while True:
            await self._flush_due()
            await self._delete_due()
            try:
                now = await self._reader.read(Database.version)
                if now != version or self.catalogue.is_waiting:
                    await self._look()
                    version = now
                self.catalogue.save()
                await self._recheck_due()
            except SessiondError as error:
                await _log.ainfo("opencode.tail_waits", error=error.code)
            except Exception:  # noqa: BLE001 - whatever it was, what comes next is wanted
                await _log.aexception("opencode.tail_failed")
            self._turns.forget_silent()
            await asyncio.sleep(_ATTACHED_POLL_SECONDS if self._processes else _IDLE_POLL_SECONDS)

    async def _flush_due(self) -> None:
        """Write what is due; what could not be written now stays due."""
        due, self._due = self._due, {}
        left = {}
        for session_id, seq in due.items():
            try:
                await self.outbox.flush(session_id, seq)
            except SessiondError as error:
                left[session_id] = seq
                await _log.ainfo("opencode.outbox_waits", session_id=session_id, error=error.code)
        if left:
            self._due = left | self._due
            await asyncio.sleep(_IDLE_POLL_SECONDS)

    async def _recheck_due(self) -> None:
        """Have written again what Redis lost.

        Raises:
            StoreUnavailable: it stays due.
        """
        if not self._is_recheck_due:
            return
        self._is_recheck_due = False
        try:
            async for session_id in self.outbox.behind():
                row = self.catalogue.rows.get(session_id)
                if row:
                    self._due[session_id] = row.seq
        except BaseException:
            self._is_recheck_due = True
            raise

    async def _delete_due(self) -> None:
        """Delete for everybody what was deleted here; what could not be deleted now stays due."""
        for session_id in list(self._deletions_due):
            try:
                await self._delete(session_id)
            except SessiondError as error:
                await _log.ainfo("opencode.deletion_waits", session_id=session_id, error=error.code)
            else:
                self._deletions_due.discard(session_id)

    async def _delete(self, session_id: str) -> None:
        """Delete a session for everybody, and here if it was brought back meanwhile."""
        self._inbound.drop(session_id)
        if not self.catalogue.is_private(session_id):
            await self.outbox.deleted(session_id, self.catalogue.seen(session_id))
        if session_id in self.catalogue.returned:
            await self._inbound.remove(session_id)
        self.catalogue.forget(session_id)

    async def _look(self) -> None:
        """See which sessions there are, and take note of what is to be done about it."""
        sighting = await self.catalogue.look()
        if sighting.went_back:
            self.outbox.forget_all()
            self._inbound.compare_all()
        self._due |= {name: self.catalogue.rows[name].seq for name in sighting.grown}
        self._deletions_due |= sighting.deleted | self.catalogue.returned
        for session_id in sighting.missing:
            self.catalogue.forget(session_id)
            self.outbox.forget(session_id)
            self._inbound.compare(session_id)

    async def _take_kept(self, session_id: str, events: list[OpencodeEvent]) -> None:
        """Write what opencode logged, up to the last event of which it told."""
        with contextlib.suppress(SessiondError):  # the tail goes on with it
            is_deleted = any(event.type == "session.deleted" for event in events)
            if is_deleted or session_id not in self.catalogue.rows:
                await self._look()
                await self._delete_due()
            await self.outbox.flush(session_id, events[-1].id)

    async def _pass_on(self, session_id: str, events: list[OpencodeEvent]) -> None:
        """Tell the other machines what passes by: text being typed, a session's status."""
        if self.catalogue.is_shared(session_id):
            neutral = self._machine_now().neutral
            told = [
                {"type": event.type, "properties": neutral(event.properties)} for event in events
            ]
            await self._say(session_id, {FIELD: told})

    async def _say(self, session_id: str, body: dict[str, Any]) -> None:
        origin = f"{self.saved.replica}@{self._services.writer}"
        live = Live(session_id=session_id, origin=origin, body=body)
        message = json.encode({"live": live})
        with contextlib.suppress(StoreUnavailable):  # it passes by
            await self._services.target.store.publish(session_id, self.saved.workspace, message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _machine(saved: SavedShare) -> Machine:
    return Machine(
        saved.project_id, saved.worktree, has_folder=lambda folder: Path(folder).is_dir()
    )


def _session_of(event: OpencodeEvent) -> str:
    given = event.properties
    found = given.get("sessionID") or given.get("info", {}).get("id") or ""
    return str(found)

"""All opencode processes attached to this daemon, and what is shared of their databases."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from sessiond.codec import json
from sessiond.errors import DatabaseUnreadable, NotFound, SessiondError
from sessiond.opencode.database import Database
from sessiond.opencode.protocol import (
    Applied,
    Attached,
    Attachment,
    OpencodeEvent,
    Turn,
    WantedTurn,
)
from sessiond.opencode.saved import (
    Progress,
    SavedShare,
    forget_share,
    load_shares,
    save_share,
    this_machine,
)
from sessiond.service.clock import Skew
from sessiond.service.content.leases import Leases
from sessiond.service.content.presence import Presences
from sessiond.service.identity import derived_id
from sessiond.service.live.feed import Event
from sessiond.service.live.feeds import Feeds
from sessiond.service.opencode.instance import Instance
from sessiond.service.opencode.outbox import OnApplied, Target
from sessiond.service.opencode.overview import OpencodeStatus, Overview, SharedSession
from sessiond.service.opencode.share import Services, Share
from sessiond.sync.names import checked

_BUFFER_BYTES = 64 * 1024 * 1024
_RETURN_SECONDS = 3.0
_CLOCK_SECONDS = 60.0
_CLOCK_LOOK_SECONDS = 1.0
_GLOBAL = "global"
_RECENT_MS = 10 * 60 * 1000  # what a person is working on when they begin to share
_SHORTEST_LIFE_MS = 20_000


class Opencodes:
    """The opencode side of a daemon.

    Args:
        target: where operations are written.
        feeds: what happens in workspaces.
        leases: the turns.
        presences: who is at which session.
        folder: where shares are remembered.
        machine: this machine's name among the others.
        writer: who writes in this life of the daemon.
    """

    def __init__(
        self,
        target: Target,
        feeds: Feeds,
        leases: Leases,
        presences: Presences,
        *,
        folder: Path,
        machine: str,
        writer: str,
    ) -> None:
        self._target = target
        self._folder = folder
        self._machine = machine
        self._skew = Skew(target.clock)
        self._services = Services(
            target,
            feeds,
            leases,
            presences,
            writer,
            self._skew.ahead_ms,
            lambda saved: save_share(folder, saved),
        )
        self._leases = leases
        self._shares: dict[tuple[str, str], Share] = {}
        self._instances: dict[str, tuple[Instance, Share | None]] = {}
        self._leaving: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def on_applied(self) -> list[OnApplied]:
        """Those who are told of what opencodes were given."""
        return self._target.on_applied

    def start(self) -> None:
        """Read on in the databases that were known before."""
        for saved in load_shares(self._folder):
            self._open(self._settled(saved))
        self._spawn(self._watch_clock())

    async def close(self) -> None:
        """Let every process know, and stop."""
        for handle in self._leaving.values():
            handle.cancel()
        for task in self._tasks:
            task.cancel()
        for instance, _ in self._instances.values():
            instance.leave()
        for share in self._shares.values():
            await share.attendance.close()
            share.close()
        with contextlib.suppress(SessiondError):
            await self._target.opencode.leave(list(self._instances))
        self._leases.close()

    async def attach(self, name: str, attachment: Attachment) -> Attached:
        """Take a process, for the first time or again.

        Raises:
            InvalidInput: the share key is not a workspace's name.
        """
        former = self._instances.pop(name, None)
        if former:
            former[0].leave()
        workspace, reason = _workspace(attachment)
        share = self._share(attachment, workspace) if workspace else None
        instance = Instance(name, attachment, _BUFFER_BYTES)
        if former:
            instance.take_over(former[0])
        self._instances[name] = (instance, share)
        if share:
            share.attach(instance)
        self._leave_later(name)
        return Attached(instance=name, machine=self._machine, workspace=workspace, reason=reason)

    @contextlib.asynccontextmanager
    async def commands(self, name: str) -> AsyncIterator[AsyncIterator[list[Event]]]:
        """Open the stream of commands for a process; its end is the process's, soon.

        Raises:
            NotFound: it is not attached.
        """
        instance, _ = self._attached(name)
        instance.listeners += 1
        try:
            yield instance.commands()
        finally:
            instance.listeners -= 1
            self._leave_later(name)

    async def pushed(self, name: str, events: list[OpencodeEvent]) -> None:
        """Take what a process says happened there."""
        instance, share = self._attached(name)
        if share:
            await share.pushed(instance, events)

    def applied(self, name: str, report: Applied) -> None:
        """Take a process's report on a batch of events."""
        self._attached(name)[0].answered(report)

    async def turn(self, name: str, wanted: WantedTurn) -> Turn:
        """Give a process the right to run a turn."""
        instance, share = self._attached(name)
        if share is None:
            return Turn(granted=True)
        return await share.turn(instance, wanted.session_id, wanted.wait_seconds)

    def end_turn(self, name: str, session_id: str) -> None:
        """Take note that a process runs no turn."""
        share = self._attached(name)[1]
        if share:
            share.end_turn(name, session_id)

    async def overview(self) -> Overview:
        """Tell what is shared here, and who is attached anywhere."""
        return Overview(
            instances=await self._everywhere(),
            sessions=self._sessions(),
            clock_ahead_ms=self._skew.ahead_ms(),
        )

    async def import_sessions(self) -> int:
        """Share the older sessions too; return how many sessions are shared then."""
        return sum([await share.bring_in_older() for share in self._shares.values()])

    async def set_sharing(self, session_id: str, *, shared: bool) -> None:
        """Share a session, or stop sending what happens in it from this machine.

        Raises:
            NotFound: no database here has it.
        """
        found = [
            await share.set_sharing(session_id, shared=shared) for share in self._shares.values()
        ]
        if not any(found):
            raise NotFound(f"no opencode database here has a session {session_id!r}")

    def recheck(self) -> None:
        """Have every share look for what Redis lost of it, and write that again."""
        for share in self._shares.values():
            share.recheck()

    async def beat(self) -> None:
        """Tell the other daemons who is attached here."""
        now = self._target.clock()
        here = {
            name: json.encode(self._status(instance, share, now))
            for name, (instance, share) in self._instances.items()
        }
        if here:
            await self._target.opencode.beat(here)

    # Who is attached

    def _attached(self, name: str) -> tuple[Instance, Share | None]:
        found = self._instances.get(name)
        if found is None:
            raise NotFound(f"instance {name!r} is not attached", hint="attach it again")
        return found

    def _leave_later(self, name: str) -> None:
        """Drop a process that does not listen for its commands for a while."""
        handle = self._leaving.pop(name, None)
        if handle:
            handle.cancel()
        loop = asyncio.get_running_loop()
        self._leaving[name] = loop.call_later(_RETURN_SECONDS, self._leave, name)

    def _leave(self, name: str) -> None:
        self._leaving.pop(name, None)
        found = self._instances.get(name)
        if found is None or found[0].listeners:
            return
        del self._instances[name]
        instance, share = found
        instance.leave()
        if share:
            share.detach(instance)
        self._spawn(self._say_goodbye(name))

    async def _say_goodbye(self, name: str) -> None:
        with contextlib.suppress(SessiondError):
            await self._target.opencode.leave([name])

    def _share(self, attachment: Attachment, workspace: str) -> Share:
        worktree = attachment.worktree
        if worktree == "/":  # outside git, shared by a key: the folder takes the place
            worktree = attachment.directory
        for share in self._shares.values():
            saved = share.saved
            same = (saved.database, saved.project_id, saved.workspace)
            if same == (attachment.database, attachment.project_id, workspace):
                if worktree != saved.worktree and not Path(saved.worktree).is_dir():
                    share.moved(worktree)
                return share
        saved = SavedShare(
            replica=self._new_replica(attachment.database, workspace),
            machine=this_machine(self._machine),
            database=attachment.database,
            project_id=attachment.project_id,
            worktree=worktree,
            workspace=workspace,
            since_ms=self._target.clock() - _RECENT_MS,
        )
        save_share(self._folder, saved)
        return self._open(saved)

    def _settled(self, saved: SavedShare) -> SavedShare:
        """Return what was saved, under another name if it was copied here from another machine.

        Two of one name would each take the other's operations for its own. What lies in the
        copied database was written by the other one; the comparison of states finds the rest.
        """
        here = this_machine(self._machine)
        if saved.machine == here:
            return saved
        forget_share(self._folder, saved)
        saved.machine, saved.replica = here, self._new_replica(saved.database, saved.workspace)
        saved.cursors.clear()
        database = Database(Path(saved.database))
        with contextlib.suppress(DatabaseUnreadable):
            rows = database.sessions(saved.project_id)
            saved.written = {name: Progress("", row.seq) for name, row in rows.items()}
        database.close()
        save_share(self._folder, saved)
        return saved

    def _new_replica(self, database: str, workspace: str) -> str:
        return derived_id("oc", self._machine, database, workspace, secrets.token_hex(8))

    def _open(self, saved: SavedShare) -> Share:
        share = Share(saved, self._services)
        self._shares[saved.replica, saved.workspace] = share
        share.start()
        return share

    # What is known

    def _status(self, instance: Instance, share: Share | None, now: int) -> OpencodeStatus:
        given = instance.attachment
        return OpencodeStatus(
            instance=instance.name,
            machine=self._machine,
            version=given.version,
            pid=given.pid,
            mode=given.mode,
            live=given.live,
            workspace=share.saved.workspace if share else "",
            directory=given.directory,
            sessions=sum(share.catalogue.is_shared(name) for name in share.catalogue.rows)
            if share
            else 0,
            turns=self._leases.sessions_of(instance.name),
            lag=share.lag if share else 0,
            seen_ms=now,
        )

    async def _everywhere(self) -> list[OpencodeStatus]:
        now = self._target.clock()
        here = [self._status(instance, share, now) for instance, share in self._instances.values()]
        found = []
        for name, given in (await self._target.opencode.instances()).items():
            if name in self._instances:
                continue
            with contextlib.suppress(ValueError, TypeError):
                status = msgspec.convert(given, OpencodeStatus)
                if now - status.seen_ms < _SHORTEST_LIFE_MS:
                    found.append(status)
        return [*here, *found]

    def _sessions(self) -> list[SharedSession]:
        found = []
        for share in self._shares.values():
            for session_id, row in share.catalogue.rows.items():
                private = share.catalogue.is_private(session_id)
                state = "shared" if share.catalogue.is_shared(session_id) else "older"
                found.append(
                    SharedSession(
                        session_id=session_id,
                        title=row.title,
                        workspace=share.saved.workspace,
                        state="private" if private else state,
                        updated_ms=row.updated_ms,
                    )
                )
        return sorted(found, key=lambda session: -session.updated_ms)

    async def _watch_clock(self) -> None:
        """Measure this machine's clock now and then, and soon after it was set."""
        measured = float("-inf")
        while True:
            now = time.monotonic()
            if self._skew.has_jumped or now - measured > _CLOCK_SECONDS:
                with contextlib.suppress(SessiondError):
                    await self._skew.measure(self._target.opencode.server_ms)
                    measured = now
            await asyncio.sleep(_CLOCK_LOOK_SECONDS)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _workspace(attachment: Attachment) -> tuple[str, str]:
    """Return the workspace that a process's sessions belong to, or why there is none.

    Raises:
        InvalidInput: the share key cannot be a workspace's name.
    """
    if not attachment.share:
        return "", "sharing is switched off for this opencode"
    if attachment.share_key:
        return checked("workspace", attachment.share_key), ""
    if attachment.project_id == _GLOBAL:
        return "", "this folder is in no git repository, and no share key is set"
    return checked("workspace", attachment.project_id), ""

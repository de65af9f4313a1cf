"""Whole shares, each with a simulated opencode: what a sidecar does without its network."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from sessiond.opencode.protocol import Applied, Apply, Attachment
from sessiond.opencode.saved import SavedShare
from sessiond.service.content.leases import Leases
from sessiond.service.content.presence import Presences
from sessiond.service.opencode.instance import Instance
from sessiond.service.opencode.outbox import Target
from sessiond.service.opencode.share import Services as ShareServices
from sessiond.service.opencode.share import Share
from sessiond.store.leases import LeaseStore
from sessiond.store.opencode import OpencodeStore
from sessiond.store.presence import PresenceStore
from tests.opencode.simulated import PROJECT, SimulatedOpencode
from tests.store.support import Services

_BUFFER_BYTES = 2**20
_LEASE_MS = 3000


class Seconds:
    """A clock that only goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Sharer:
    """One machine: a share, and an opencode attached to it whose plugin does as it is told.

    `disk` is what the share wrote down last.
    """

    def __init__(self, core: Services, folder: Path, name: str) -> None:
        folder.mkdir()
        self.opencode = SimulatedOpencode(folder / "opencode.db", f"/{name}")
        self.seconds = Seconds()
        self.ahead_ms = 0
        """How far the machine's clock is ahead."""
        self.saved = SavedShare(
            replica=f"oc-{name}",
            machine=name,
            database=str(folder / "opencode.db"),
            project_id=PROJECT,
            worktree=f"/{name}",
            workspace="default",
            since_ms=0,
        )
        self.disk = msgspec.json.encode(self.saved)
        self._core = core
        self._name = name
        self.applied: list[tuple[str, str]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.start()

    def start(self, *, attached: bool = True) -> None:
        """Start the share anew, from what it remembers."""
        core, store = (
            self._core,
            OpencodeStore(self._core.redis, self._core.keys, self._core.store.recall),
        )
        services = ShareServices(
            Target(
                core.sessions, core.store, store, core.documents, core.clock, [self._note_applied]
            ),
            core.feeds,
            Leases(LeaseStore(core.redis, core.keys, _LEASE_MS), self._name),
            Presences(
                PresenceStore(core.redis, core.keys, _LEASE_MS), core.store, machine=self._name
            ),
            "d.1",
            lambda: self.ahead_ms,
            self._write_down,
            self.seconds,
        )
        self.share = Share(self.saved, services)
        self.share.start()
        if attached:
            self._attach()

    def _attach(self) -> None:
        self.instance = Instance("oc-1", self._attachment(), _BUFFER_BYTES)
        self._tasks.append(asyncio.create_task(self._work(self.instance)))
        self.share.attach(self.instance)

    def crash(self) -> None:
        """Stop the share; it remembers only what was on disk before."""
        disk = self.disk
        self.stop()
        self.disk, self.saved = disk, msgspec.json.decode(disk, type=SavedShare)

    def _note_applied(self, session_id: str, _: object, outcome: str) -> None:
        self.applied.append((session_id, outcome))

    def _write_down(self, saved: SavedShare) -> None:
        self.disk = msgspec.json.encode(saved)

    def stop(self) -> None:
        """Stop the share."""
        for task in self._tasks:
            task.cancel()
        self.share.close()

    def close(self) -> None:
        self.stop()
        self.opencode.close()

    def note(self, session_id: str) -> None:
        """Note a deletion, as the plugin does a moment after it."""
        place = Path(self.saved.database)
        with place.with_name(f"{place.name}.sessiond").open("a") as notes:
            notes.write(f"deleted {session_id}\n")

    def has(self, session_id: str) -> bool:
        """Tell whether opencode has a session."""
        return self.opencode.database.info(session_id) is not None

    async def is_written(self, session_id: str) -> bool:
        """Tell whether everything that opencode logged is in Redis."""
        await self.looked()
        await self.share.outbox.flush(session_id)
        store = OpencodeStore(self._core.redis, self._core.keys, self._core.store.recall)
        written = await store.written_up_to(session_id, self.saved.replica)
        return written == self.opencode.database.seq(session_id)

    async def looked(self) -> None:
        """Return when the share looked at the database once more."""
        await self.share.set_sharing("ses_none", shared=True)

    def _attachment(self) -> Attachment:
        return Attachment(
            version="1.18.33",
            plugin="0",
            pid=1,
            database=self.saved.database,
            project_id=PROJECT,
            directory=self.saved.worktree,
            worktree=self.saved.worktree,
        )

    async def _work(self, instance: Instance) -> None:
        async for commands in instance.commands():
            for command in commands:
                if command.name == "apply":
                    given = msgspec.json.decode(command.data, type=Apply)
                    self.opencode.replay(given.session_id, given.events)
                    instance.answered(Applied(batch=given.batch, outcome="applied"))

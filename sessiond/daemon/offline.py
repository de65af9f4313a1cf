"""Reading without Redis, put together: the copies on this disk, and what keeps them fresh."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import structlog

from sessiond.core import Core
from sessiond.daemon.durable import DurableWrites
from sessiond.errors import ReplicaUnavailable
from sessiond.replica import Replica
from sessiond.service.durable.reviving import Revival, Revive, leave_alone
from sessiond.service.offline.copying import Copier, Source
from sessiond.service.offline.preferences import KnownPreferences
from sessiond.service.offline.reading import Offline, Reading, Services
from sessiond.service.status import ReplicaStatus
from sessiond.store.copies import CopyStore
from sessiond.sync.entry import Entry

_MIB = 1024 * 1024

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class OfflineReading:
    """A daemon's copies of sessions, from `open` to `close`. Without any, it only reads Redis.

    Attributes:
        reading: answers who reads.
        preferences: answers who reads those of users.
        copier: keeps the copies; None where none are kept.
        revive: puts back what Redis lost of a session that is copied.
    """

    def __init__(self, core: Core, durable: DurableWrites, replica: Replica | None) -> None:
        self.replica = replica
        self.copier: Copier | None = None
        self.revive: Revive = leave_alone
        offline: Offline | None = None
        if replica:
            copies = CopyStore(core.redis, core.keys)
            source = Source(
                core.store, core.bus, core.keys, durable.redis, core.around.clock, copies
            )
            self.copier = copier = Copier(replica, source)
            core.store.on_commit.append(copier.take_written)
            self.revive = copier.revive = Revival(core.around, copies, replica).revive
            durable.outbox.revive_with(self.revive)
            durable.watch.call_in_doubt(copier.recheck)
            offline = Offline(replica, copier, durable.outbox, core.workspace)
        online = Services(core.sessions, core.messages, core.documents)
        self.reading = Reading(online, offline, durable.redis, core.note_read)
        self.preferences = KnownPreferences(
            core.preferences, replica, durable.outbox, durable.redis, core.around.clock
        )

    @classmethod
    async def open(
        cls, core: Core, durable: DurableWrites, folder: Path, *, limit_mib: int
    ) -> OfflineReading:
        """Open the copies in a folder; where that fails, go on without any.

        Args:
            core: what they are of.
            durable: knows whether Redis answers, and what waits for it.
            folder: where they lie.
            limit_mib: how much is kept; 0 for nothing.

        Raises:
            ConfigurationError: the folder is not ours alone.
        """
        replica = None
        if limit_mib:
            limit = limit_mib * _MIB
            try:
                replica = await Replica.open(folder, limit_bytes=limit, clock=core.around.clock)
            except ReplicaUnavailable as error:
                _log.error("replica.unavailable", reason=error.detail)
        return cls(core, durable, replica)

    async def copied_log(self, session_id: str) -> list[Entry]:
        """Return what is copied of a session's log; nothing where that cannot be read."""
        with suppress(ReplicaUnavailable):
            if self.replica and (content := await self.replica.content(session_id)):
                return content[1]
        return []

    def start(self) -> None:
        """Begin to keep the copies fresh."""
        if self.copier:
            self.copier.start()

    def status(self) -> ReplicaStatus | None:
        """Return what is kept; None where nothing is."""
        if not (self.replica and self.copier):
            return None
        kept = self.replica
        return ReplicaStatus(sessions=len(kept.copies), bytes=kept.size, behind=self.copier.behind)

    async def close(self) -> None:
        """Stop that, and let go of the files."""
        if self.copier:
            await self.copier.close()
        await self.preferences.close()
        if self.replica:
            await self.replica.close()

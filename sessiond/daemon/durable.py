"""Durable writes, put together: the journal, the outbox before it, and the watch for rollbacks."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from sessiond.config import JournalOptions as Options
from sessiond.core import Core
from sessiond.errors import InvalidInput, JournalUnavailable
from sessiond.journal import Journal, JournalOptions
from sessiond.journal.options import MIB
from sessiond.service.durable.announcing import announcements
from sessiond.service.durable.confirmed import Lookup
from sessiond.service.durable.outbox import Outbox
from sessiond.service.durable.rollbacks import RollbackWatch
from sessiond.service.durable.tries import Surroundings
from sessiond.service.durable.waiting import Journaled, places_of
from sessiond.service.offline.reachability import Reachability
from sessiond.service.writes import user_of_lane
from sessiond.store.watermarks import WatermarkStore
from sessiond.sync.position import Position


class DurableWrites:
    """A daemon's journal and all that works with it, from `open` to `close`."""

    def __init__(self, core: Core, journal: Journal, options: Options) -> None:
        self._core = core
        self.journal = journal
        core.committer.is_guarded = True  # what was lost is written again before anything else
        self.redis = Reachability(core.redis_answers)
        around = Surroundings(
            journal=journal,
            perform=core.performer.perform,
            keep_refused=core.refusals.keep,
            lookup=Lookup(
                are_there=lambda session_id, positions: _are_there(core, session_id, positions),
                forgive=core.committer.forgive,
            ),
            redis=self.redis,
            clock=core.around.clock,
            entropy=core.around.entropy,
            told=lambda journaled: _tell_watchers(core, journaled),
        )
        self.outbox = Outbox(
            around, wait_seconds=options.wait_seconds, revive_seconds=options.revive_seconds
        )
        core.committer.recall = self.outbox.confirmed.known
        watermarks = WatermarkStore(core.redis, core.keys)
        self.watch = RollbackWatch(journal, watermarks, self.outbox.confirmed, self.redis)
        self.redis.call_when_back(self.watch.look_now)
        self.outbox.confirmed.call_in_doubt(self.watch.look_now)
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, core: Core, folder: Path, options: Options) -> DurableWrites:
        """Open the journal in a folder.

        Raises:
            FolderHeld, ConfigurationError, JournalUnavailable: see Journal.open.
        """
        journal = await Journal.open(
            folder,
            JournalOptions(
                limit_bytes=options.limit_mib * MIB,
                kept_bytes=options.kept_mib * MIB,
                kept_seconds=options.kept_hours * 3600,
                clock=core.around.clock,
            ),
        )
        return cls(core, journal, options)

    async def journaled_places(self, session_id: str) -> set[int]:
        """Return the offsets in a session's log of what this journal can write again.

        None where the journal cannot be read.
        """
        found: set[int] = set()
        with suppress(JournalUnavailable):
            async for page in self.journal.of_session(session_id):
                found.update(*map(places_of, page))
        return found

    async def start(self) -> None:
        """Take up what an earlier life left undone, and begin to watch Redis."""
        await self.outbox.start()
        self._watching = asyncio.create_task(self.watch.run())

    async def close(self) -> None:
        """Stop; what is not done stays in the journal."""
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.redis.close()
        await self.outbox.close()


async def _are_there(core: Core, session_id: str, positions: list[Position]) -> list[bool]:
    """Tell which of what was confirmed Redis has: of a session, or of a user's preferences."""
    user_id = user_of_lane(session_id)
    if user_id is None:
        return await core.store.have(session_id, positions)
    return await core.preferences.have(user_id, positions)


def _tell_watchers(core: Core, journaled: Journaled) -> None:
    """Let those who watch a session here see a write that waits for Redis."""
    with suppress(InvalidInput):  # it will be refused
        for event in announcements(journaled, core.store.writer):
            core.feeds.tell(journaled.write.session_id, event)

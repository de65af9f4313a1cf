"""A machine that keeps copies of sessions, whose Redis can be taken away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sessiond.replica import Replica
from sessiond.service.durable.waiting import Journaled
from sessiond.service.offline.copying import Copier, Source
from sessiond.service.offline.reachability import Reachability
from sessiond.service.offline.reading import Offline, Reading
from sessiond.service.offline.reading import Services as Online
from sessiond.service.writes import Write
from sessiond.store.copies import CopyStore
from sessiond.sync.position import journaled_position
from tests.store.support import Services, until


class Waiting:
    """An outbox where writes only wait."""

    def __init__(self) -> None:
        self.writes: list[Journaled] = []

    def journal(self, write: Write) -> str:
        """Have a write wait, and return what stands for its version."""
        version = str(journaled_position("0" * 12, len(self.writes) + 1))
        self.writes.append(Journaled(write, version))
        return version

    def waiting(self, session_id: str) -> list[Journaled]:
        return [each for each in self.writes if each.write.session_id == session_id]

    async def drained(self, session_id: str, _: float) -> bool:
        return not self.waiting(session_id)

    def shown(self, *given: Any) -> Any:
        return given[-1]

    def waiting_sessions(self) -> dict[str, list[Journaled]]:
        ids = dict.fromkeys(each.write.session_id for each in self.writes)
        return {session_id: self.waiting(session_id) for session_id in ids}


class Machine:
    """Reads what one process has on a server, and copies it."""

    def __init__(self, core: Services, replica: Replica) -> None:
        self.core = core
        self.replica = replica
        self.redis = Reachability(core.redis.ping)
        self.redis.note_answer()
        self.outbox = Waiting()
        outbox: Any = self.outbox
        self.copies = CopyStore(core.redis, core.keys)
        source = Source(
            core.store, core.bus, core.keys, self.redis, core.clock, self.copies, sleep=_soon
        )
        self.copier = Copier(replica, source)
        offline = Offline(replica, self.copier, outbox, "default")
        online = Online(core.sessions, core.messages, core.documents)
        self.reading = Reading(online, offline, self.redis)
        core.store.on_commit.append(self.copier.take_written)

    def lose_redis(self) -> None:
        """From now on nothing is asked of Redis."""
        self.redis.away_since = 0.0

    def find_redis(self) -> None:
        """Redis is there again."""
        self.redis.away_since = None

    async def copied(self, session_id: str) -> None:
        """Return when a session is copied to its end."""
        end = (await self.core.store.end(session_id)).position

        def is_copied() -> bool:
            copy = self.replica.copies.get(session_id)
            return copy is not None and copy.position == end and not self.copier.behind

        await until(is_copied)


@asynccontextmanager
async def machine(
    core: Services, folder: Path, *, limit_bytes: int = 2**28
) -> AsyncIterator[Machine]:
    """Run a machine with its copies in a folder."""
    replica = await Replica.open(folder, limit_bytes=limit_bytes, clock=core.clock)
    running = Machine(core, replica)
    running.copier.start()
    try:
        yield running
    finally:
        await running.copier.close()
        await replica.close()


async def _soon(_seconds: float) -> None:
    await asyncio.sleep(0.001)

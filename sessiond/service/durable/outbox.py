"""The outbox: every write is journaled before it is acknowledged, and performed until it is done.

A write of a session that has none waiting is performed at once, while the disk takes it in: who
asked waits for both. When Redis does not answer in time, the write waits in its session's lane,
and those that come later wait behind it; the answer says `journaled` then. A lane is worked off
in order, as soon as Redis is there again. A write that is refused there, after its writer was
told that it will be done, becomes a conflict.

What Redis confirmed stays in the journal for a while: where Redis turns out to have lost it, it
is performed once more. Performing twice is once: see `writes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sessiond.errors import JournalFull, JournalUnavailable, SessiondError
from sessiond.journal import Span
from sessiond.model import DocumentName
from sessiond.service import writes
from sessiond.service.durable.lanes import Lanes
from sessiond.service.durable.performing import Performed
from sessiond.service.durable.reviving import Revive
from sessiond.service.durable.tries import Surroundings
from sessiond.service.durable.waiting import Journaled, Waiting, write_of
from sessiond.service.identity import new_session_id
from sessiond.service.status import OutboxStatus
from sessiond.service.writes import Write, goes_after, user_of_lane

OnWrite = Callable[[Write, asyncio.Future[Span]], None]
"""Told of every write that is taken in, and when the disk has it, for the trace."""


class Outbox:
    """Takes writes in, and sees to it that they are done.

    Args:
        around: what it stands on.
        wait_seconds: how long an answer waits for Redis, where the caller does not say.
        revive_seconds: how long writes of a session that Redis does not have wait for others to
            write it, before it is revived.
    """

    def __init__(
        self, around: Surroundings, *, wait_seconds: float, revive_seconds: float = 60.0
    ) -> None:
        self._around = around
        self._wait_seconds = wait_seconds
        self._lanes = Lanes(around, revive_seconds=revive_seconds)
        self._tries = self._lanes.tries
        self._disk_fails = False
        self.on_write: list[OnWrite] = []
        self.on_refused = self._tries.on_refused
        self.confirmed = self._tries.confirmed
        """What Redis is known to have."""

    async def start(self) -> None:
        """Take up what an earlier life of this process left undone."""
        await self.confirmed.start()
        async for page in self._around.journal.pending():
            for entry in page:
                self._lanes.queue(Waiting(write_of(entry), entry.span))

    async def close(self) -> None:
        """Stop; what waits stays in the journal."""
        await self._lanes.close()
        await self._around.journal.close()

    def revive_with(self, revive: Revive) -> None:
        """Have put back what Redis lost of sessions, before anything of them is written again."""
        self.confirmed.revive = revive

    async def submit(
        self, write: Write, wait_seconds: float | None = None
    ) -> Performed | Journaled:
        """Journal a write and perform it.

        A caller that is cancelled stops waiting; what it handed over is still done.

        Args:
            write: what is to be done.
            wait_seconds: how long to wait for Redis; None for the usual time.

        Returns:
            What came of it; or that it is journaled, and will be done.

        Raises:
            JournalFull, JournalUnavailable: it is not durable. Where Redis was fast it may have
                been done: trying again with the same key is safe.
            SessiondError: the write is refused, and nothing of it is left.
        """
        journal, key = self._around.journal, write.request.key
        write = writes.completed(write, self._around.clock(), self._around.entropy)
        write = self._tries.bases.based(write)
        straight = not self._must_wait(write) and wait_seconds != 0
        retry_key = f"{key} {writes.digest(write)}" if key else ""
        begun = journal.begin(write.session_id, [writes.encode(write)], key=retry_key)
        for note in self.on_write:
            note(write, begun)
        try:
            if not straight or self._disk_fails:
                span = await self._durable(begun)
                if not straight or self._must_wait(write):
                    return await self._wait(write, span, wait_seconds)
            return await self._perform_at_once(write, begun, wait_seconds)
        except asyncio.CancelledError:
            begun.add_done_callback(lambda done: self._queue_abandoned(write, done))
            raise

    def new_session_id(self, key: str) -> str:
        """Return the id of a session whose creator named none: with a key, always the same."""
        return new_session_id(key, self._around.clock(), self._around.entropy)

    def waiting(self, session_id: str) -> list[Journaled]:
        """Return the writes of a session that are journaled and not done, in order."""
        return self._lanes.waiting(session_id)

    def waiting_sessions(self) -> dict[str, list[Journaled]]:
        """Return all writes of sessions that are journaled and not done, by session."""
        return {
            session_id: self.waiting(session_id)
            for session_id in self._lanes.sessions()
            if user_of_lane(session_id) is None
        }

    def shown(
        self, session_id: str, name: DocumentName, version: str, base: str, value: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what a document is shown as while changes of it wait; see `Bases`."""
        return self._tries.bases.shown(session_id, name, version, base, value)

    async def drained(self, session_id: str, seconds: float) -> bool:
        """Tell whether nothing of a session waits; what is on its way is waited for a while."""
        return await self._lanes.drained(session_id, seconds)

    async def status(self) -> OutboxStatus:
        """Return what waits."""
        return OutboxStatus(
            waiting=self._lanes.writes,
            sessions=len(self._lanes),
            held=self._lanes.held(),
            in_doubt=self.confirmed.is_in_doubt,
            journal=await self._around.journal.status(),
        )

    def _must_wait(self, write: Write) -> bool:
        if self._around.redis.is_away or self.confirmed.is_in_doubt:
            return True
        first = goes_after(write)
        return write.session_id in self._lanes or (first is not None and first in self._lanes)

    async def _perform_at_once(
        self, write: Write, begun: asyncio.Future[Span], wait_seconds: float | None
    ) -> Performed | Journaled:
        patience = self._wait_seconds if wait_seconds is None else wait_seconds
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        life = self.confirmed.lives
        performed = await self._tries.in_time(write, patience)
        span = await self._durable(begun)
        if performed is None or life != self.confirmed.lives:
            is_hopeless = wait_seconds is None and not self._tries.takes_writes
            left = 0.0 if is_hopeless else max(0.0, until - loop.time())
            outcome = await self._wait(write, span, left)
            return outcome.as_the_first(performed) if isinstance(outcome, Performed) else outcome
        if isinstance(performed, SessiondError):
            self._around.journal.discard(span)
            self._tries.note_refused(write, performed, is_kept=False)
            raise performed
        self._tries.note_done(write.session_id, span, performed)
        return performed

    def _queue_abandoned(self, write: Write, begun: asyncio.Future[Span]) -> None:
        if not begun.cancelled() and begun.exception() is None:
            self._lanes.queue(Waiting(write, begun.result()))

    async def _durable(self, begun: asyncio.Future[Span]) -> Span:
        """Return a write's sequences when the disk has it.

        While the disk fails, nothing goes to Redis that was not journaled first.
        """
        try:
            span = begun.result() if begun.done() else await asyncio.shield(begun)
        except (JournalFull, JournalUnavailable):
            self._disk_fails = True
            raise
        self._disk_fails = False
        return span

    async def _wait(
        self, write: Write, span: Span, wait_seconds: float | None
    ) -> Performed | Journaled:
        """Queue a write, and wait a while for what comes of it."""
        waiting = Waiting(write, span)
        patience = wait_seconds
        if patience is None:
            patience = self._wait_seconds if self._tries.takes_writes else 0
        if patience:
            waiting.outcome = asyncio.get_running_loop().create_future()
        self._lanes.queue(waiting)
        if waiting.outcome is None:
            return self._lanes.told(waiting)
        try:
            async with asyncio.timeout(patience):
                return await waiting.outcome
        except TimeoutError:
            return self._lanes.told(waiting)
        finally:
            waiting.outcome = None

"""Lanes: the journaled writes of each session that wait, performed in order until they are done.

A lane begins with the first write that has to wait, and ends when none is left. While Redis is
away, or may have lost something, all of them pause; one whose first write fails otherwise is held
for a while, and tells why.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque

import structlog
from msgspec import Struct, field

from sessiond.errors import SessiondError
from sessiond.journal import Entry
from sessiond.service.durable.tries import Surroundings, Tries
from sessiond.service.durable.waiting import Journaled, Waiting, again, kind, record_of, write_of
from sessiond.service.writes import goes_after, op_of
from sessiond.store.outcome import SessionMissing
from sessiond.sync.position import is_journaled

_TOGETHER = 128
_HELD_SECONDS = (0.1, 0.5)
_HELD_GROWTH = 1.5
_HELD_TRIES = 1000
"""Held sessions are tried so often in a second, all together, at most."""
_AFTER_SECONDS = 5.0
"""So long a write waits for those that go before it, at most: see `goes_after`."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class _Lane(Struct, eq=False):
    """The writes of one session that wait; the first of them are being performed."""

    session_id: str
    writes: deque[Waiting] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None
    held: str = ""
    missing_since: float | None = None


class Lanes:
    """All writes that wait, by session.

    Args:
        around: what an outbox stands on.
        revive_seconds: see `Outbox`.
    """

    def __init__(self, around: Surroundings, *, revive_seconds: float) -> None:
        self._around = around
        self._revive_seconds = revive_seconds
        self.tries = Tries(around, self._write_again)
        self._lanes: dict[str, _Lane] = {}

    async def close(self) -> None:
        """Stop; what waits stays in the journal."""
        workers = [lane.worker for lane in self._lanes.values() if lane.worker]
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._lanes

    def __len__(self) -> int:
        return len(self._lanes)

    def waiting(self, session_id: str) -> list[Journaled]:
        """Return the writes of a session that wait, in order."""
        lane = self._lanes.get(session_id)
        return [waiting.journaled for waiting in lane.writes] if lane else []

    def sessions(self) -> list[str]:
        """Return the sessions of which something waits."""
        return list(self._lanes)

    def held(self) -> dict[str, str]:
        """Return the sessions whose writes are held, and what holds them."""
        return {lane.session_id: lane.held for lane in self._lanes.values() if lane.held}

    @property
    def writes(self) -> int:
        """How many writes wait."""
        return sum(len(lane.writes) for lane in self._lanes.values())

    async def drained(self, session_id: str, seconds: float) -> bool:
        """Tell whether nothing of a session waits; what is on its way is waited for a while."""
        lane = self._lanes.get(session_id)
        if lane and lane.worker and not (lane.held or self._around.redis.is_away):
            await asyncio.wait([lane.worker], timeout=seconds)
        return session_id not in self._lanes

    def queue(self, waiting: Waiting) -> None:
        """Have a write performed behind those of its session that wait already."""
        lane = self._lanes.get(waiting.write.session_id)
        if lane is None:
            lane = self._lanes[waiting.write.session_id] = _Lane(waiting.write.session_id)
            lane.worker = asyncio.create_task(self._work(lane))
        if all(other.span != waiting.span for other in lane.writes) or waiting.outcome:
            lane.writes.append(waiting)

    def told(self, waiting: Waiting) -> Journaled:
        """Return what a writer is told whose write waits."""
        self.tries.bases.note_told(waiting.write, waiting.place)
        self._around.told(waiting.journaled)
        return waiting.journaled

    async def _work(self, lane: _Lane) -> None:
        pause = _HELD_SECONDS[0]
        while lane.writes:
            if self._around.redis.is_away:
                await self._around.redis.wait_until_back()
            await self.tries.confirmed.wait_until_sure()
            if first := goes_after(lane.writes[0].write):
                await self.drained(first, _AFTER_SECONDS)
            done = await self._perform_next(lane)
            if done:
                lane.held, lane.missing_since, pause = "", None, _HELD_SECONDS[0]
            elif lane.held:
                await self._around.sleep(pause)
                await self._bring_back(lane)
                longest = max(_HELD_SECONDS[1], len(self._lanes) / _HELD_TRIES)
                pause = min(_HELD_GROWTH * pause, longest)
        del self._lanes[lane.session_id]

    async def _bring_back(self, lane: _Lane) -> None:
        """Have a session revived that has been missing for long: nobody else writes it."""
        now, since = asyncio.get_running_loop().time(), lane.missing_since
        if since is None or now - since < self._revive_seconds:
            return
        lane.missing_since = now  # if that fails, after as long again
        try:
            await self.tries.confirmed.revive(lane.session_id)
        except SessiondError as obstacle:
            self._note(lane, obstacle)

    async def _perform_next(self, lane: _Lane) -> int:
        """Perform the first writes of a lane, many at once; returns how many are done."""
        batch, life = self._next_batch(lane.writes), self.tries.confirmed.lives
        outcomes = await asyncio.gather(
            *(
                self.tries.perform(
                    self.tries.bases.based(waiting.write), is_promised=waiting.is_promised
                )
                for waiting in batch
            ),
            return_exceptions=True,
        )
        done = 0
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if life != self.tries.confirmed.lives:
                break
            if isinstance(outcome, BaseException):
                if not await self._is_decided(lane, waiting, outcome):
                    break
            else:
                self.tries.note_done(lane.session_id, waiting.span, outcome)
                self.tries.bases.note_move(waiting.write, waiting.place, outcome)
                waiting.settle(outcome)
            lane.writes.remove(waiting)
            done += 1
        return done

    def _next_batch(self, queue: deque[Waiting]) -> list[Waiting]:
        """Return the first write, and those behind it that may be performed at the same time.

        One that is based on another one that waits as well must wait for it, and so must one of the
        same record.
        """
        batch = [queue[0]]
        common, places = kind(queue[0].write), {str(queue[0].place)}
        records = {record_of(queue[0].write)}
        for waiting in itertools.islice(queue, 1, _TOGETHER):
            if not common or kind(waiting.write) != common:
                break
            base = self.tries.bases.based(waiting.write).request.base
            if base and (is_journaled(base) or base in places):
                break
            record = record_of(waiting.write)
            if record and record in records:
                break
            batch.append(waiting)
            places.add(str(waiting.place))
            records.add(record)
        return batch

    async def _is_decided(self, lane: _Lane, waiting: Waiting, error: BaseException) -> bool:
        """Tell whether an error is the last word about a write; then see to what is left of it."""
        if not isinstance(error, SessiondError):
            if not isinstance(error, Exception):
                raise error
            lane.held = f"{type(error).__name__}: {error}"
            _log.error("outbox.write_failed", session_id=lane.session_id, exc_info=error)
            return False
        if error.temporary:
            self._note(lane, error)
            return False
        is_heard = waiting.outcome is not None and not waiting.outcome.done()
        if waiting.is_owed or not is_heard:
            if not await self._is_kept(lane, waiting, error):
                return False
        else:
            self._around.journal.discard(waiting.span)
            self.tries.note_refused(waiting.write, error, is_kept=False)
        waiting.settle(error)  # whoever wrote it hears of it
        return True

    async def _is_kept(self, lane: _Lane, waiting: Waiting, error: SessiondError) -> bool:
        """Keep what is refused as a conflict; tell whether that was possible.

        Nothing is kept for want of its session: another machine may have it yet to write, or has
        just written it. What is kept stays in the journal: where Redis loses the conflict, the
        write is performed once more.
        """
        write = waiting.write
        try:
            if isinstance(error, SessionMissing):
                raise error
            position = await self._around.keep_refused(write, error)
        except SessiondError as obstacle:
            if isinstance(obstacle, SessionMissing) and lane.missing_since is None:
                lane.missing_since = asyncio.get_running_loop().time()
            self._note(lane, obstacle)
            return False
        if position:
            self._around.journal.confirm(waiting.span, position)
            self.tries.confirmed.note(lane.session_id, position)
        else:
            self._around.journal.forget(waiting.span)
        self.tries.note_refused(write, error, is_kept=True)
        _log.warning(
            "outbox.write_refused", session_id=lane.session_id, op=op_of(write), code=error.code
        )
        return True

    def _write_again(self, session_id: str, lost: list[Entry]) -> int:
        """Have writes done again that Redis lost; returns how many do not wait already.

        They come first, even before what is under way: that is refused, unless it is done already.
        """
        lane = self._lanes.get(session_id)
        there = {waiting.span: waiting for waiting in lane.writes} if lane else {}
        lost_writes = [
            there.get(entry.span) or Waiting(again(write_of(entry)), entry.span, was=entry.position)
            for entry in lost
        ]
        if lane is None:
            for waiting in lost_writes:
                self.queue(waiting)
            return len(lost_writes)
        for waiting in lost_writes:
            if waiting.span in there:
                waiting.is_owed = True
                lane.writes.remove(waiting)
        lane.writes.extendleft(reversed(lost_writes))
        return sum(waiting.span not in there for waiting in lost_writes)

    def _note(self, lane: _Lane, obstacle: SessiondError) -> None:
        """Note what keeps a write from being done: all lanes pause, or this one."""
        if not self.tries.note_obstacle(obstacle, lane.session_id):
            lane.held = f"{obstacle.code}: {obstacle.detail}"

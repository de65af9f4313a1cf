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
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from msgspec import Struct, field, structs

from sessiond.errors import (
    AlreadyExists,
    JournalFull,
    JournalUnavailable,
    NotFound,
    SessiondError,
    StoreFull,
    StoreUnavailable,
    StoreWentBack,
)
from sessiond.journal import Entry, Journal, Span
from sessiond.model import NewSession
from sessiond.service import writes
from sessiond.service.clock import Clock
from sessiond.service.durable.bases import Bases
from sessiond.service.durable.confirmed import Confirmed, Lookup
from sessiond.service.durable.performing import Performed
from sessiond.service.identity import Entropy, new_session_id
from sessiond.service.offline.reachability import Reachability
from sessiond.service.status import OutboxStatus
from sessiond.service.writes import Append, ChangeDocument, Create, Delete, Write, op_of
from sessiond.store.outcome import SessionMissing
from sessiond.sync.position import Position, is_journaled, journaled_position

_TOGETHER = 128
_HELD_SECONDS = (0.1, 0.5)
_HELD_GROWTH = 1.5
_HELD_TRIES = 1000
"""Held sessions are tried so often in a second, all together, at most."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Surroundings(Struct, frozen=True):
    """What an outbox stands on.

    Args:
        journal: where writes are durable.
        perform: performs a write on Redis.
        keep_refused: keeps a write as a conflict that was acknowledged, and is refused now;
            returns where the session's log has that, None where it does not; raises SessionMissing
            where there is no such session.
        lookup: how Redis is asked for what it confirmed.
        redis: whether it answers.
        clock: milliseconds since 1970.
        entropy: returns that many random bytes.
        sleep: how to pause.
        told: hears of every write that is acknowledged as journaled.
    """

    journal: Journal
    perform: Callable[[Write], Awaitable[Performed]]
    keep_refused: Callable[[Write, SessiondError], Awaitable[Position | None]]
    lookup: Lookup
    redis: Reachability
    clock: Clock
    entropy: Entropy
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)
    told: Callable[[Journaled], None] = field(default=lambda _: None)


OnWrite = Callable[[Write, asyncio.Future[Span]], None]
"""Told of every write that is taken in, and when the disk has it, for the trace."""


class Journaled(Struct, frozen=True):
    """A write that is on the disk, with the names it got, and will be done.

    `version` stands for the version that it will have: a change may be based on it.
    """

    write: Write
    version: str


class _Waiting(Struct, eq=False):
    """A journaled write in its lane; `outcome` where somebody still waits for it.

    `was`: where Redis had it, before it went back. `is_owed`: Redis had it, and an earlier try of
    the same write was told so.
    """

    write: Write
    span: Span
    was: Position | None = None
    outcome: asyncio.Future[Performed] | None = None
    is_owed: bool = False

    @property
    def is_promised(self) -> bool:
        """Whether somebody was told that it will be, or is, done."""
        return self.is_owed or self.outcome is None

    @property
    def place(self) -> Position:
        """What stands for its position, or did before Redis went back."""
        return self.was or journaled_position(self.span.incarnation, self.span.first)


class _Lane(Struct, eq=False):
    """The writes of one session that wait; the first of them are being performed."""

    session_id: str
    writes: deque[_Waiting] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None
    held: str = ""
    missing_since: float | None = None


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
        self._revive_seconds = revive_seconds
        self.revive: Callable[[str], Awaitable[bool]] = _leave_alone
        """Writes a session again that Redis lost; tells whether that was possible."""
        self._lanes: dict[str, _Lane] = {}
        self._disk_fails = False
        self._is_redis_full = False
        self._bases = Bases()
        self.on_write: list[OnWrite] = []
        self.confirmed = Confirmed(around.journal, around.lookup, self._write_again)
        """What Redis is known to have."""

    async def start(self) -> None:
        """Take up what an earlier life of this process left undone."""
        await self.confirmed.start()
        async for page in self._around.journal.pending():
            for entry in page:
                self._queue(_Waiting(_write_of(entry), entry.span))

    async def close(self) -> None:
        """Stop; what waits stays in the journal."""
        workers = [lane.worker for lane in self._lanes.values() if lane.worker]
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await self._around.journal.close()

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
        write = self._bases.based(write)
        straight = not self._must_wait(write.session_id) and wait_seconds != 0
        retry_key = f"{key} {writes.digest(write)}" if key else ""
        begun = journal.begin(write.session_id, [writes.encode(write)], key=retry_key)
        for note in self.on_write:
            note(write, begun)
        try:
            if not straight or self._disk_fails:
                span = await self._durable(begun)
                if not straight or self._must_wait(write.session_id):
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
        lane = self._lanes.get(session_id)
        return [_journaled(waiting) for waiting in lane.writes] if lane else []

    def waiting_sessions(self) -> dict[str, list[Journaled]]:
        """Return all writes that are journaled and not done, by session."""
        return {session_id: self.waiting(session_id) for session_id in self._lanes}

    async def drained(self, session_id: str, seconds: float) -> bool:
        """Tell whether nothing of a session waits; what is on its way is waited for a while."""
        lane = self._lanes.get(session_id)
        if lane and lane.worker and not (lane.held or self._around.redis.is_away):
            await asyncio.wait([lane.worker], timeout=seconds)
        return session_id not in self._lanes

    async def status(self) -> OutboxStatus:
        """Return what waits."""
        lanes = self._lanes.values()
        return OutboxStatus(
            waiting=sum(len(lane.writes) for lane in lanes),
            sessions=len(self._lanes),
            held={lane.session_id: lane.held for lane in lanes if lane.held},
            in_doubt=self.confirmed.is_in_doubt,
            journal=await self._around.journal.status(),
        )

    # Straight to Redis

    def _must_wait(self, session_id: str) -> bool:
        if self._around.redis.is_away or self.confirmed.is_in_doubt:
            return True
        return session_id in self._lanes

    async def _perform_at_once(
        self, write: Write, begun: asyncio.Future[Span], wait_seconds: float | None
    ) -> Performed | Journaled:
        patience = self._wait_seconds if wait_seconds is None else wait_seconds
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        life = self.confirmed.lives
        performed = await self._try(write, patience)
        span = await self._durable(begun)
        if performed is None or life != self.confirmed.lives:
            is_hopeless = wait_seconds is None and not self._takes_writes
            left = 0.0 if is_hopeless else max(0.0, until - loop.time())
            return await self._wait(write, span, left)
        if isinstance(performed, SessiondError):
            self._around.journal.discard(span)
            raise performed
        self._confirm(write.session_id, span, performed)
        return performed

    @property
    def _takes_writes(self) -> bool:
        """Whether Redis is there and has room, as far as is known."""
        return not (self._around.redis.is_away or self._is_redis_full)

    def _confirm(self, session_id: str, span: Span, performed: Performed) -> None:
        self._is_redis_full = False
        self._around.journal.confirm(span, performed.position)
        self.confirmed.note(session_id, performed.position)
        self._bases.note_done(session_id, performed)

    async def _try(self, write: Write, seconds: float) -> Performed | SessiondError | None:
        """Perform a write; returns what came of it or why it is refused, None if not in time."""
        try:
            async with asyncio.timeout(seconds):
                return await self._perform(write)
        except TimeoutError:
            self._around.redis.suspect()
            return None
        except SessiondError as error:
            if not error.temporary:
                return error
            self._note(error, write.session_id)
            return None

    async def _perform(self, write: Write, *, is_promised: bool = False) -> Performed:
        """Perform a write; a session that is missing although it was there is no refusal.

        Args:
            write: what is to be done.
            is_promised: whether its writer was told that it will be, and is gone.
        """
        try:
            return await self._around.perform(write)
        except NotFound as error:
            if await self.confirmed.is_missing(write.session_id):
                raise StoreWentBack(error.detail, hint=error.hint) from error
            if not (is_promised and isinstance(write, Delete)):
                raise
        return await self._bury(write)

    async def _bury(self, write: Delete) -> Performed:
        """Delete a session that is missing: whoever has yet to write to it must learn that."""
        request = structs.replace(write.request, key="", base="", expected="")
        new = Create(session_id=write.session_id, new=NewSession(), request=request)
        with suppress(AlreadyExists):  # by now it was written, or what this wrote before is there
            await self._around.perform(new)
        return await self._around.perform(write)

    def _queue_abandoned(self, write: Write, begun: asyncio.Future[Span]) -> None:
        if not begun.cancelled() and begun.exception() is None:
            self._queue(_Waiting(write, begun.result()))

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

    # Through the lane

    async def _wait(
        self, write: Write, span: Span, wait_seconds: float | None
    ) -> Performed | Journaled:
        """Queue a write, and wait a while for what comes of it."""
        waiting = _Waiting(write, span)
        patience = wait_seconds
        if patience is None:
            patience = self._wait_seconds if self._takes_writes else 0
        if patience:
            waiting.outcome = asyncio.get_running_loop().create_future()
        self._queue(waiting)
        if waiting.outcome is None:
            return self._told(waiting)
        try:
            async with asyncio.timeout(patience):
                return await waiting.outcome
        except TimeoutError:
            return self._told(waiting)
        finally:
            waiting.outcome = None

    def _queue(self, waiting: _Waiting) -> None:
        lane = self._lanes.get(waiting.write.session_id)
        if lane is None:
            lane = self._lanes[waiting.write.session_id] = _Lane(waiting.write.session_id)
            lane.worker = asyncio.create_task(self._work(lane))
        if all(other.span != waiting.span for other in lane.writes) or waiting.outcome:
            lane.writes.append(waiting)

    async def _work(self, lane: _Lane) -> None:
        pause = _HELD_SECONDS[0]
        while lane.writes:
            if self._around.redis.is_away:
                await self._around.redis.wait_until_back()
            await self.confirmed.wait_until_sure()
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
            await self.revive(lane.session_id)
        except SessiondError as obstacle:
            self._note(obstacle, lane.session_id)

    async def _perform_next(self, lane: _Lane) -> int:
        """Perform the first writes of a lane, appends many at once; returns how many are done."""
        batch, life = self._next_batch(lane.writes), self.confirmed.lives
        outcomes = await asyncio.gather(
            *(
                self._perform(self._bases.based(waiting.write), is_promised=waiting.is_promised)
                for waiting in batch
            ),
            return_exceptions=True,
        )
        done = 0
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if life != self.confirmed.lives:
                break
            if isinstance(outcome, BaseException):
                if not await self._is_decided(lane, waiting, outcome):
                    break
            else:
                self._confirm(lane.session_id, waiting.span, outcome)
                self._bases.note_move(waiting.write, waiting.place, outcome)
                if waiting.outcome and not waiting.outcome.done():
                    waiting.outcome.set_result(outcome)
            lane.writes.remove(waiting)
            done += 1
        return done

    def _next_batch(self, queue: deque[_Waiting]) -> list[_Waiting]:
        """Return the first write, and those behind it that may be performed at the same time.

        Appends keep their order on their way to Redis, and so do the changes of one document. One
        that is based on another one that waits as well must wait for it.
        """
        batch = [queue[0]]
        kind, places = _kind(queue[0].write), {str(queue[0].place)}
        for waiting in itertools.islice(queue, 1, _TOGETHER):
            if not kind or _kind(waiting.write) != kind:
                break
            base = self._bases.based(waiting.write).request.base
            if base and (is_journaled(base) or base in places):
                break
            batch.append(waiting)
            places.add(str(waiting.place))
        return batch

    async def _is_decided(self, lane: _Lane, waiting: _Waiting, error: BaseException) -> bool:
        """Tell whether an error is the last word about a write; then see to what is left of it."""
        if not isinstance(error, SessiondError):
            if not isinstance(error, Exception):
                raise error
            lane.held = f"{type(error).__name__}: {error}"
            _log.error("outbox.write_failed", session_id=lane.session_id, exc_info=error)
            return False
        if error.temporary:
            self._note(error, lane.session_id)
            return False
        is_heard = waiting.outcome is not None and not waiting.outcome.done()
        if waiting.is_owed or not is_heard:
            if not await self._is_kept(lane, waiting, error):
                return False
        else:
            self._around.journal.discard(waiting.span)
        if waiting.outcome and not waiting.outcome.done():
            waiting.outcome.set_exception(error)  # whoever wrote it hears of it
        return True

    async def _is_kept(self, lane: _Lane, waiting: _Waiting, error: SessiondError) -> bool:
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
            self._note(obstacle, lane.session_id)
            return False
        if position:
            self._around.journal.confirm(waiting.span, position)
            self.confirmed.note(lane.session_id, position)
        else:
            self._around.journal.discard(waiting.span)
        _log.warning(
            "outbox.write_refused", session_id=lane.session_id, op=op_of(write), code=error.code
        )
        return True

    def _note(self, obstacle: SessiondError, session_id: str) -> None:
        """Note what keeps a write from being done: Redis is away, or its lane has to pause.

        A Redis that is full answers: what is read comes from there, and not from copies.
        """
        self._is_redis_full = isinstance(obstacle, StoreFull)
        if isinstance(obstacle, StoreWentBack):
            self.confirmed.doubt(session_id)
        elif isinstance(obstacle, StoreUnavailable) and not self._is_redis_full:
            self._around.redis.note_failure()
        elif lane := self._lanes.get(session_id):
            lane.held = f"{obstacle.code}: {obstacle.detail}"

    def _write_again(self, session_id: str, lost: list[Entry]) -> int:
        """Have writes done again that Redis lost; returns how many do not wait already.

        They come first, even before what is under way: that is refused, unless it is done already.
        """
        lane = self._lanes.get(session_id)
        there = {waiting.span: waiting for waiting in lane.writes} if lane else {}
        again = [
            there.get(entry.span)
            or _Waiting(_again(_write_of(entry)), entry.span, was=entry.position)
            for entry in lost
        ]
        if lane is None:
            for waiting in again:
                self._queue(waiting)
            return len(again)
        for waiting in again:
            if waiting.span in there:
                waiting.is_owed = True
                lane.writes.remove(waiting)
        lane.writes.extendleft(reversed(again))
        return sum(waiting.span not in there for waiting in again)

    def _told(self, waiting: _Waiting) -> Journaled:
        """Return what a writer is told whose write waits."""
        self._bases.note_told(waiting.write, waiting.place)
        journaled = _journaled(waiting)
        self._around.told(journaled)
        return journaled


async def _leave_alone(_: str) -> bool:
    return False


def _journaled(waiting: _Waiting) -> Journaled:
    return Journaled(waiting.write, str(waiting.place))


def _write_of(entry: Entry) -> Write:
    (encoded,) = entry.operations
    return writes.decode(encoded)


def _again(write: Write) -> Write:
    """Return a write that was done, as it is to be done again: what it was based on may be gone.

    A change that was to be made of one version only is merged with what is there now.
    """
    request = write.request
    if not request.expected:
        return write
    return structs.replace(
        write, request=structs.replace(request, base=request.expected, expected="")
    )


def _kind(write: Write) -> str:
    """Return what writes have in common that may be performed at once; empty for by itself."""
    match write:
        case Append():
            return "append"
        case ChangeDocument() if write.name != "metadata" and not write.request.expected:
            return write.name
        case _:
            return ""

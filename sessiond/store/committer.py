"""Group commit: what waits for the same session goes to Redis in one script call.

An idle session's write leaves at once; while it is under way, later writes of this process to
that session gather and leave together, in the order they came. When many gather, one further
call is sent ahead, so that Redis works on one call while this process prepares the next.

This writer's order is the log's order. Calls are decided one after the other: a call whose reply
was lost is sent again, and the script recognises what it already applied. A call sent ahead names
the operation that must have been applied before it; the script refuses it otherwise, whatever
made it the first to arrive, and it is sent again in its turn. Every other call names the last
operation that is known to be there, if only from an earlier life of this process (`recall`): a
Redis that went back takes nothing before that is known.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace
from redis.exceptions import RedisError

from sessiond.errors import (
    SessiondError,
    StoreDamaged,
    StoreUnavailable,
    StoreWentBack,
)
from sessiond.store.connection import may_pass, translate
from sessiond.store.draft import Draft, options_of, origin_of
from sessiond.store.keys import Keys
from sessiond.store.outcome import Committed, outcomes_of
from sessiond.store.replicas import Acknowledged, ReplicaAcks
from sessiond.store.scripts import Execute, commit_script
from sessiond.sync.position import Position, entry_hash

Sleep = Callable[[float], Awaitable[None]]
Now = Callable[[], float]

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5
_BATCH_BYTES = 4 * 1024 * 1024
_WAITING_BYTES = 64 * 1024 * 1024
_SESSIONS_REMEMBERED = 10_000
_OUT_OF_ORDER = "OUTOFORDER"
_ARCHIVED = "ARCHIVED"
_AHEAD_OPERATIONS = 16  # fewer are not worth the fixed cost of a call of their own


class _Waiting(Struct):
    group: list[Draft]
    size: int
    outcome: asyncio.Future[Committed]


class _Call(Struct):
    """A batch under the sequences that it keeps, however often it is sent.

    `ahead` is the reply of a call that left before the one in front of it was decided.
    """

    session_id: str
    batch: list[_Waiting]
    first_sequence: int
    ahead: asyncio.Task[Acknowledged] | None = None


class _Lane(Struct):
    """The writes to one session: the call being decided, the one behind it, and what waits."""

    session_id: str
    queue: deque[_Waiting] = field(default_factory=deque)
    operations: int = 0
    deciding: _Call | None = None
    following: _Call | None = None
    flusher: asyncio.Task[None] | None = None

    @property
    def may_send_ahead(self) -> bool:
        """Whether a call may leave although another one is under way."""
        return bool(self.deciding and not self.following and self.operations >= _AHEAD_OPERATIONS)


class Committer:
    """Writes groups of operations into sessions' logs.

    Args:
        execute: sends a command to Redis.
        keys: names of the keys.
        replicas: waits for replicas' confirmations, and then sends instead of `execute`.
        writer: who writes, unique for this life of this process: `<instance>.<incarnation>`.
        batch_operations: operations sent in one call, at most.
        retry_seconds: how long an unanswered call is repeated before its callers are told.
        now: a monotonic clock, in seconds.
        sleep: how to pause between tries.
    """

    def __init__(
        self,
        execute: Execute,
        keys: Keys,
        *,
        writer: str,
        replicas: ReplicaAcks | None = None,
        batch_operations: int = 128,
        retry_seconds: float = 5.0,
        now: Now | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.writer = writer
        self._execute = execute
        self._keys = keys
        self._replicas = replicas
        self._batch_operations = batch_operations
        self._retry_seconds = retry_seconds
        self._now = now or asyncio.get_running_loop().time
        self._sleep = sleep
        self._sequence = 0
        self._lanes: dict[str, _Lane] = {}
        self._waiting_bytes = 0
        self._applied: dict[str, int] = {}
        self.bring_back: Callable[[str], Awaitable[bool]] = _not_archived
        """Brings an archived session back; tells whether there was one."""
        self.is_guarded = False
        """Whether a session that Redis does not have as it was is written to only after `forgive`:
        for those who can write again what was lost."""
        self.recall: Callable[[str], Position | None] = lambda _: None
        """Tells what a session had, where this does not remember: from an earlier life of this
        process, or because many others were written to since."""

    async def commit(self, session_id: str, group: list[Draft]) -> Committed:
        """Write a group, whole or not at all, at consecutive offsets.

        A caller that is cancelled stops waiting; what it handed over is still written.

        Raises:
            SessiondError: what the script refused (see lua/commit.lua), or StoreUnavailable.
        """
        size = sum(draft.size for draft in group)
        if self._waiting_bytes + size > _WAITING_BYTES:
            raise StoreUnavailable(
                f"{self._waiting_bytes} bytes already wait to be written",
                hint="Redis is slower than the writers; try again in a moment",
            )
        loop = asyncio.get_running_loop()
        waiting = _Waiting(group, size, loop.create_future())
        self._waiting_bytes += size
        lane = self._lanes.get(session_id)
        if lane is None:
            lane = self._lanes[session_id] = _Lane(session_id)
            lane.flusher = asyncio.create_task(self._flush(lane))
        lane.queue.append(waiting)
        began_waiting = lane.operations < _AHEAD_OPERATIONS
        lane.operations += len(group)
        if began_waiting and lane.may_send_ahead:  # soon: whoever runs in this turn may join
            loop.call_soon(self._send_ahead, lane)
        return await waiting.outcome

    async def forgive(self, session_id: str) -> None:
        """Write to a session again that Redis does not have as it was.

        `recall` must not tell of what is lost any more.

        What was handed over before is refused first: its callers may have given it up, and then it
        would come before what was lost.
        """
        while lane := self._lanes.get(session_id):
            if lane.flusher:
                await asyncio.wait([lane.flusher])
        self._applied.pop(session_id, None)

    async def drain(self) -> None:
        """Return when everything handed over has been decided."""
        while self._lanes:
            await asyncio.wait([lane.flusher for lane in self._lanes.values() if lane.flusher])

    async def _flush(self, lane: _Lane) -> None:
        while lane.following or lane.queue:
            call = lane.following or self._next_call(lane)
            lane.deciding, lane.following = call, None
            if lane.may_send_ahead:  # soon: this call leaves first
                asyncio.get_running_loop().call_soon(self._send_ahead, lane)
            try:
                reply = await self._reply(call)
                groups = [waiting.group for waiting in call.batch]
                outcomes, degraded = outcomes_of(reply.answer, groups, call.first_sequence), False
                self._note_applied(call, outcomes)
                if self._replicas:
                    degraded = await self._is_degraded(self._replicas, reply, outcomes)
                _settle(call.batch, outcomes, degraded=degraded)
            except Exception as error:  # noqa: BLE001 - whatever happens, the callers must hear of it
                _refuse(call.batch, error)
                if isinstance(error, StoreUnavailable):
                    self._give_up_following(lane, error)
            self._waiting_bytes -= sum(waiting.size for waiting in call.batch)
            lane.deciding = None
        del self._lanes[lane.session_id]

    def _note_applied(self, call: _Call, outcomes: list[Committed | SessiondError]) -> None:
        """Note the last sequence of the session that is there: the next call relies on it."""
        sequence, applied = call.first_sequence - 1, 0
        for waiting, outcome in zip(call.batch, outcomes, strict=True):
            sequence += len(waiting.group)
            if isinstance(outcome, Committed):
                applied = sequence
        if applied:
            self._applied.pop(call.session_id, None)  # to the end: the idle ones are forgotten
            self._applied[call.session_id] = applied
            if len(self._applied) > _SESSIONS_REMEMBERED:
                del self._applied[next(iter(self._applied))]

    def _give_up_following(self, lane: _Lane, error: StoreUnavailable) -> None:
        """Refuse the call that was sent ahead: it must not come before one that failed."""
        call, lane.following = lane.following, None
        if call is None:
            return
        if call.ahead:
            call.ahead.cancel()
        _refuse(call.batch, error)
        self._waiting_bytes -= sum(waiting.size for waiting in call.batch)

    def _send_ahead(self, lane: _Lane) -> None:
        if lane.deciding and lane.may_send_ahead:
            call = lane.following = self._next_call(lane)
            call.ahead = asyncio.create_task(self._send(call, after=lane.deciding.first_sequence))

    def _next_call(self, lane: _Lane) -> _Call:
        """Take what goes into the next call: of much, one half, so that the other is sent ahead."""
        most, queue = self._batch_operations, lane.queue
        if not lane.deciding and lane.operations >= 2 * _AHEAD_OPERATIONS:
            most = min(most, (lane.operations + 1) // 2)
        batch = [queue.popleft()]
        operations, size = len(batch[0].group), batch[0].size
        while queue:
            size += queue[0].size
            if operations + len(queue[0].group) > most or size > _BATCH_BYTES:
                break
            operations += len(queue[0].group)
            batch.append(queue.popleft())
        lane.operations -= operations
        first, self._sequence = self._sequence + 1, self._sequence + operations
        return _Call(lane.session_id, batch, first)

    async def _is_degraded(
        self,
        replicas: ReplicaAcks,
        reply: Acknowledged,
        outcomes: list[Committed | SessiondError],
    ) -> bool:
        """Tell whether replicas lack what a call wrote, or wrote before; count it."""
        written = [found for found in outcomes if isinstance(found, Committed)]
        degraded = reply.degraded
        if not degraded and written and all(found.duplicate for found in written):
            degraded = not await replicas.has_confirmed()
        if degraded:
            replicas.degraded_writes += len(written)
        return degraded

    async def _reply(self, call: _Call) -> Acknowledged:
        """Return the script's answer to a call whose turn it is, sending it as often as needed."""
        if call.ahead:
            with contextlib.suppress(RedisError):  # whatever it was, now it is this call's turn
                return await call.ahead
        deadline = self._now() + self._retry_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._send(call, self._before(call.session_id))
            except RedisError as error:
                if _OUT_OF_ORDER in str(error):
                    raise _went_back(call.session_id) from error
                if _ARCHIVED in str(error) and await self.bring_back(call.session_id):
                    continue
                if not may_pass(error) or self._now() + pause > deadline:
                    raise translate(error) from error
            await self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _before(self, session_id: str) -> int | str:
        """Return what a session must have, as far as this process knows: see lua/commit.lua."""
        if not self.is_guarded:
            return 0
        if applied := self._applied.get(session_id):
            return applied
        known = self.recall(session_id)
        return f"{known.epoch}:{known.offset}" if known and known.offset else 0

    async def _send(self, call: _Call, after: int | str) -> Acknowledged:
        """Send a call once; it has no effect where `after` is not there."""
        operations = frozenset(draft.op for waiting in call.batch for draft in waiting.group)
        script, keys = commit_script(operations), self._keys.log(call.session_id)
        if "session.delete" in operations:
            keys += self._keys.use(call.session_id)
        arguments = self._encode(call, after)
        if self._replicas is None:
            answer = await script.run(self._execute, keys, arguments)
            return Acknowledged(answer, degraded=False)
        acknowledged: Acknowledged = await script.run(self._replicas.execute, keys, arguments)
        return acknowledged

    def _encode(self, call: _Call, after: int | str) -> list[Any]:
        """Return the script's arguments."""
        arguments: list[Any] = [
            call.session_id,
            self._keys.events(call.session_id),
            self._keys.workspace_events_pattern,
            self.writer,
            call.first_sequence,
            after,
            len(call.batch),
        ]
        sequence = call.first_sequence
        for waiting in call.batch:
            arguments.append(len(waiting.group))
            for draft in waiting.group:
                origin = origin_of(draft, self.writer, sequence)
                content = entry_hash(draft.op, draft.at, origin, draft.id, draft.json)
                options = options_of(draft)
                arguments += (draft.op, draft.id, draft.at, content, draft.json, origin)
                arguments.append(len(options) // 3)
                arguments += options
                sequence += 1
        return arguments


async def _not_archived(_session_id: str) -> bool:
    return False


def _went_back(session_id: str) -> StoreWentBack:
    return StoreWentBack(
        f"Redis does not have what this process wrote last to session {session_id!r}",
        hint="it was restarted without its newest writes, or emptied; try again",
    )


def _refuse(batch: list[_Waiting], error: Exception) -> None:
    if not isinstance(error, SessiondError):
        error = StoreDamaged(f"unexpected answer of the commit script: {error!r}")
    for waiting in batch:
        if not waiting.outcome.done():
            waiting.outcome.set_exception(error)


def _settle(
    batch: list[_Waiting], outcomes: list[Committed | SessiondError], *, degraded: bool
) -> None:
    for waiting, outcome in zip(batch, outcomes, strict=True):
        if waiting.outcome.done():  # its caller went away
            continue
        if isinstance(outcome, SessiondError):
            waiting.outcome.set_exception(outcome)
        else:
            waiting.outcome.set_result(replace(outcome, degraded=True) if degraded else outcome)

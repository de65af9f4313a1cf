"""From opencode's own log into the session's: in order, idempotent, resumable.

opencode's durable log is the truth; what the plugin pushes only tells that there is something to
read. How far a session's log is written stands in Redis and is written with the operations
themselves, so that neither a crash here nor a rollback there can make the two disagree.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import msgspec
import structlog
from msgspec import Struct, field, structs

from sessiond.errors import AlreadyExists, NotFound, SessionDeleted, TooLarge
from sessiond.model import Context, NewSession
from sessiond.opencode.activity import context_after, ended_uses
from sessiond.opencode.database import STRETCH, Database
from sessiond.opencode.mapping import (
    Change,
    Machine,
    change_of_event,
    neutral_message,
    neutral_part,
    neutral_session,
)
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.opencode.records import SessionState, StoredEvent
from sessiond.opencode.reverts import outlives_revert
from sessiond.opencode.saved import Progress
from sessiond.service.clock import Clock
from sessiond.service.content.documents import Documents
from sessiond.service.content.sessions import Sessions
from sessiond.service.durable.reviving import Revive, leave_alone
from sessiond.service.opencode.late import late_records
from sessiond.service.opencode.others import Others
from sessiond.service.opencode.reading import Read
from sessiond.service.opencode.recorder import TITLE, Recorder, SourcedChange
from sessiond.service.opencode.working import WorkingContext
from sessiond.service.writing import Request
from sessiond.store.opencode import OpencodeStore
from sessiond.store.outcome import MarkMoved
from sessiond.store.sessions import SessionStore
from sessiond.sync.position import START, Position

_EXPECTED = 1024
_ATTEMPTS = 3
_ALL = 2**53
_REMOVALS = frozenset({"message.remove", "part.remove"})

_canonical = msgspec.json.Encoder(order="deterministic").encode

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Replica(Struct, frozen=True):
    """One opencode database, as far as it takes part in one workspace.

    `name` is the client under which its operations stand in the log.
    """

    name: str
    workspace: str
    project_id: str


OnApplied = Callable[[str, Sequence[OpencodeEvent], str], None]
"""Takes a session, events that an opencode was given, and what it made of them."""


class Target(Struct, frozen=True):
    """Where an outbox writes.

    `on_applied` is told of what opencodes were given, for the trace; `revive` puts back what Redis
    lost of a session, so that nothing is written twice.
    """

    sessions: Sessions
    store: SessionStore
    opencode: OpencodeStore
    documents: Documents
    clock: Clock
    on_applied: list[OnApplied] = field(default_factory=list)
    revive: Revive = leave_alone


class Outbox:
    """Brings what one opencode database logged of a project's sessions into Redis.

    Args:
        replica: whose log it is.
        read: how to read the database.
        target: where it goes.
        machine: what is peculiar to this machine now.
        shared: tells whether a session is to be shared.
        unlike: told that opencode removed records of a session which stay for everybody, or wrote
            one which is removed for everybody, before anything is written that lies behind that:
            this database has to become like the log again.
        progress: how far each session's log is known to have been written, or kept where it came
            too late; kept over restarts.
        progressed: told that the progress changed, and is to be saved soon.
    """

    def __init__(
        self,
        replica: Replica,
        read: Read,
        target: Target,
        machine: Callable[[], Machine],
        shared: Callable[[str], bool],
        *,
        unlike: Callable[[str], None],
        progressed: Callable[[], None],
        progress: dict[str, Progress] | None = None,
    ) -> None:
        self._replica = replica
        self._read = read
        self._target = target
        self._machine = machine
        self._shared = shared
        self._unlike = unlike
        self._progressed = progressed
        self._progress = {} if progress is None else progress
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._written: dict[str, int] = {}
        self._recorders: dict[str, Recorder] = {}
        self._expected: dict[tuple[str, bytes], None] = {}
        self._context = WorkingContext(target.store, target.documents, replica.name)
        self._others = Others(read, target.sessions, replica.name)

    def forget(self, session_id: str) -> None:
        """Drop what is remembered of a session: Redis, or opencode, has another history of it."""
        self._written.pop(session_id, None)
        self._recorders.pop(session_id, None)

    def forget_all(self) -> None:
        """Drop what is remembered of all sessions."""
        self._written.clear()
        self._recorders.clear()

    async def behind(self) -> AsyncIterator[str]:
        """Yield the sessions of which Redis has not what was written last; they begin anew.

        Raises:
            StoreUnavailable: nobody knows.
        """
        for session_id in list(self._progress):
            async with self._locks[session_id]:
                if await self._has_all(session_id):
                    continue
                if await self._target.revive(session_id) and await self._has_all(session_id):
                    continue
                self.forget(session_id)
                await self._target.store.forgive(session_id)
            yield session_id

    async def _has_all(self, session_id: str) -> bool:
        """Tell whether Redis has what was written last of a session."""
        if await self._target.store.recall.position(session_id):
            return True  # archived, with all that was written
        marked = await self._target.opencode.written_up_to(session_id, self._replica.name)
        recorder, progress = self._recorders.get(session_id), self._progress.get(session_id)
        if progress is None:  # it was deleted meanwhile
            return True
        return marked == (recorder.marked if recorder else progress.seq)

    def expect(self, events: Iterable[OpencodeEvent]) -> None:
        """Take note of parts that opencode is about to log, though they came from elsewhere."""
        for event in events:
            part = event.properties["part"]
            body = neutral_part(part, self._machine())
            self._expected[f"{part['messageID']}/{part['id']}", _canonical(body)] = None
            while len(self._expected) > _EXPECTED:
                self._expected.pop(next(iter(self._expected)))

    async def flush(self, session_id: str, up_to: int | str | None = None) -> None:
        """Return when what opencode logged of a session is in Redis.

        Where the session is deleted meanwhile, all of it so far is kept there as conflicts.

        Args:
            session_id: the session.
            up_to: the last sequence or event that is to be written; None for all so far. What
                passes by between two events keeps its place by this.

        Raises:
            StoreUnavailable, DatabaseUnreadable: nothing is lost, the next call goes on.
        """
        if not self._shared(session_id):
            return
        async with self._locks[session_id]:
            for _ in range(_ATTEMPTS - 1):
                with contextlib.suppress(NotFound, MarkMoved):  # Redis lost something: begin anew
                    async with self._remembering(session_id):
                        await self._flush(session_id, up_to)
                    return
            async with self._remembering(session_id):
                await self._flush(session_id, up_to)

    @contextlib.asynccontextmanager
    async def _remembering(self, session_id: str) -> AsyncIterator[None]:
        """Begin anew with a session after anything went wrong: nobody knows what was written."""
        try:
            yield
        except SessionDeleted:  # a deletion wins over what was written without knowing of it
            self.forget(session_id)
            await self._keep_late(session_id)
        except BaseException:
            self.forget(session_id)
            raise

    async def _keep_late(self, session_id: str) -> None:
        """Keep as conflicts what opencode logged of a session that is deleted, as far as it is new.

        The progress goes on with every record that is kept, so that the next call begins behind it.
        What is not saved of the progress when the process crashes is kept twice. Nothing is kept of
        a session that this database never wrote: nobody knows what would be new.

        Raises:
            MarkMoved: Redis has the session again, from before it was deleted.
            StoreUnavailable, DatabaseUnreadable: the next call goes on.
        """
        progress = self._progress.get(session_id)
        request = Request(client=self._replica.name)
        while progress and (events := await self._events(session_id, progress.seq, None)):
            records = late_records(session_id, await self._changes(events))
            for record in records:
                came = [(record.subject, record.value)]
                try:
                    kept = await self._target.sessions.keep(request, came)
                except TooLarge as error:
                    await _log.awarning("opencode.not_kept", session_id=session_id, why=error.code)
                else:
                    if not kept:
                        raise MarkMoved(f"session {session_id!r} is not deleted any more")
                self._advance(progress, record.seq)
            self._advance(progress, events[-1].seq)
            if records:
                await _log.ainfo("opencode.came_too_late", session_id=session_id, kept=len(records))

    def _advance(self, progress: Progress, seq: int) -> None:
        progress.seq = seq
        self._progressed()

    async def _flush(self, session_id: str, up_to: int | str | None) -> None:
        written = self._written.get(session_id)
        if written is None:
            written = await self._begin(session_id)
        while written is not None:
            events = await self._events(session_id, written, up_to)
            if events:
                await self._write_events(session_id, events)
                written = self._written[session_id] = max(written, events[-1].seq)
                self._advance(self._progress[session_id], written)
            if len(events) < STRETCH:
                break

    async def _events(
        self, session_id: str, after: int, up_to: int | str | None
    ) -> list[StoredEvent]:
        def found(database: Database) -> list[StoredEvent]:
            last = database.sequence_of(up_to) if isinstance(up_to, str) else up_to
            return database.events(session_id, after, _ALL if last is None else last)

        events: list[StoredEvent] = await self._read(found)
        return events

    async def _begin(self, session_id: str) -> int | None:
        """Return up to where the session is written; bring it in as it stands if it is not."""
        await self._target.revive(session_id)
        written = await self._target.opencode.written_up_to(session_id, self._replica.name)
        try:
            birth = await self._birth(session_id)
            if written is None:
                written = await self._written_before(session_id, birth)
            seq = await self._read(lambda database: database.seq(session_id))
            written = min(written, seq)  # an older copy of the database may have less
        except NotFound:
            written = await self._bring_in(session_id)
            birth = await self._birth(session_id) if written is not None else ""
        if written is not None:
            self._written[session_id] = written
            progress = Progress(birth, written)
            if self._progress.get(session_id) != progress:
                self._progress[session_id] = progress
                self._progressed()
        return written

    async def _birth(self, session_id: str) -> str:
        """Return what tells a session from one of the same id before it.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
        """
        await self._target.store.end(session_id)
        (first,) = await self._target.store.log.entries_at(session_id, [1])
        return first.epoch if first else ""

    async def _written_before(self, session_id: str, birth: str) -> int:
        """Return from where to write a session that exists without a mark of ours.

        Where Redis lost all of it and others brought it in again, what was written before is left
        to the comparison of states: written again, it would go over what is newer.
        """
        before = self._progress.get(session_id)
        if before and before.birth != birth:
            return before.seq
        return await self._complete(session_id)

    async def _bring_in(self, session_id: str) -> int | None:
        state: SessionState | None = await self._read(lambda database: database.state(session_id))
        if state is None:
            return None
        machine = self._machine()
        info = neutral_session(state.info, machine)
        new = NewSession(
            session_id=session_id,
            title=str(info.get("title", ""))[:TITLE],
            workspace=self._replica.workspace,
            user_agent=f"opencode {info.get('version', '')}".strip(),
            context=self._first_context(info, state),
        )
        try:
            await self._target.sessions.create(new, Request(client=self._replica.name))
        except AlreadyExists:
            return await self._complete(session_id)
        await self._put_records(session_id, state.messages, state.parts, state.seq)
        return state.seq

    def _first_context(self, info: dict[str, Any], state: SessionState) -> Context:
        """Return the context of a session that is brought in as it stands."""
        machine, now = self._machine(), self._target.clock()
        uses = ended_uses(_part_changes(state.parts, machine, now)).values()
        noted = context_after({}, uses)
        return Context(
            working_directory=str(info.get("directory", "")),
            active_files=noted["active_files"],
            recent_commands=noted["recent_commands"],
            opencode=info,
        )

    async def _complete(self, session_id: str) -> int:
        """Write what opencode's log does not tell of a session, and return from where it does.

        The log of a session from before opencode kept one, or one whose bringing in was
        interrupted, lacks its beginning.
        """

        def untold(database: Database) -> SessionState | None:
            return None if database.is_complete(session_id) else database.state(session_id)

        state: SessionState | None = await self._read(untold)
        if state is None:
            return -1
        await self._put_records(session_id, state.messages, state.parts, state.seq)
        return state.seq

    async def put_records(
        self,
        session_id: str,
        messages: dict[str, dict[str, Any]],
        parts: dict[str, dict[str, Any]],
    ) -> None:
        """Write records that the session's log never had, if it is shared."""
        if self._shared(session_id):
            async with self._locks[session_id], self._remembering(session_id):
                await self._put_records(session_id, messages, parts, None)

    async def _put_records(
        self,
        session_id: str,
        messages: dict[str, dict[str, Any]],
        parts: dict[str, dict[str, Any]],
        seq: int | None,
    ) -> None:
        """Write records as they stand. With the last of them the source is written up to `seq`."""
        machine, now = self._machine(), self._target.clock()
        changes = [
            Change(kind="message.put", id=name, body=neutral_message(info, machine), at_ms=now)
            for name, info in messages.items()
        ]
        changes += _part_changes(parts, machine, now)
        sourced = [SourcedChange(change, None) for change in changes[:-1]]
        sourced += [SourcedChange(change, seq) for change in changes[-1:]]
        await (await self._recorder(session_id)).write(sourced)

    async def _write_events(self, session_id: str, events: list[StoredEvent]) -> None:
        changes = await self._meant(session_id, await self._changes(events))
        await self._others.keep(session_id, changes, self._machine())
        meant = [sourced.change for sourced in changes]
        uses = await self._context.new_uses(session_id, meant)
        await (await self._recorder(session_id)).write(changes)
        await self._context.note(session_id, uses)

    async def _changes(self, events: list[StoredEvent]) -> list[SourcedChange]:
        """Return what events change, without those that came from elsewhere or are unknown."""
        machine, now = self._machine(), self._target.clock()
        changes = []
        for event in events:
            given = OpencodeEvent(id=event.id, type=event.type, properties=event.data)
            try:
                change = change_of_event(given, machine, now)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                await _log.awarning("opencode.event_unknown", type=event.type, error=repr(error))
                continue
            if change and not self._is_expected(change):
                changes.append(SourcedChange(change, event.seq))
        return changes

    async def _meant(self, session_id: str, changes: list[SourcedChange]) -> list[SourcedChange]:
        """Leave out the removals of what a revert had not seen."""
        removals = {
            sourced.seq: sourced.change.id
            for sourced in changes
            if sourced.seq is not None and sourced.change.kind in _REMOVALS
        }
        if not removals:
            return changes

        def found(database: Database) -> set[int]:
            given = removals.items()
            return {seq for seq, name in given if outlives_revert(database, session_id, name, seq)}

        spared: set[int] = await self._read(found)
        if spared:
            await _log.ainfo("opencode.revert_spared", session_id=session_id, count=len(spared))
            self._unlike(session_id)
        return [sourced for sourced in changes if sourced.seq not in spared]

    async def _recorder(self, session_id: str) -> Recorder:
        recorder = self._recorders.get(session_id)
        if recorder is None:
            target = self._target
            recorder = self._recorders[session_id] = await Recorder.open(
                session_id,
                self._replica.name,
                target.store,
                target.opencode,
                target.clock,
                superseded=lambda: self._unlike(session_id),
            )
        return recorder

    def _is_expected(self, change: Change) -> bool:
        if not self._expected or change.kind != "part.put":
            return False
        return (change.id, _canonical(change.body)) in self._expected

    async def deleted(self, session_id: str, seen: Position = START) -> None:
        """Note that opencode has a session no more, and delete it for everybody.

        Args:
            session_id: the session.
            seen: up to where it was here: what others said later is kept as conflicts, unless it is
                more than can be. The start when nobody knows.

        Raises:
            StoreUnavailable, Contended: it is not deleted yet.
        """
        sessions, request = self._target.sessions, Request(client=self._replica.name)
        async with self._locks[session_id]:
            with contextlib.suppress(NotFound, SessionDeleted):
                try:
                    base = str(seen) if seen.offset else ""
                    await sessions.delete(session_id, structs.replace(request, base=base))
                except TooLarge as error:
                    await _log.awarning("opencode.not_kept", session_id=session_id, why=error.code)
                    await sessions.delete(session_id, request)
            self._progress.pop(session_id, None)  # gone here, too: nothing of it comes too late
            self._progressed()
            self.forget(session_id)


def _part_changes(parts: dict[str, dict[str, Any]], machine: Machine, at_ms: int) -> list[Change]:
    return [
        Change(
            kind="part.put", id=name, body=neutral_part(_named(name, part), machine), at_ms=at_ms
        )
        for name, part in parts.items()
    ]


def _named(name: str, part: dict[str, Any]) -> dict[str, Any]:
    return part | {"id": name.partition("/")[2]}

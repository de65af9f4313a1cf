"""Replicas of one session: what each of them has, edits and sends, and what must be true of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Struct
from redis.exceptions import ConnectionError as RedisConnectionError

from sessiond.errors import NotFound, SessiondError
from sessiond.model import Context, NewSession
from sessiond.service.content.conflicts import Conflicts
from sessiond.service.content.documents import Documents
from sessiond.service.content.records import Records
from sessiond.service.content.shapes import encode_creation
from sessiond.service.writing import Request, Surroundings
from sessiond.store.committer import Committer
from sessiond.store.conflicts import ConflictStore
from sessiond.store.entries import parse_entry
from sessiond.store.keys import Keys
from sessiond.store.log import LogReader
from sessiond.store.sessions import SessionStore
from sessiond.sync.documents import CHANGEABLE_METADATA, fields_written
from sessiond.sync.entry import Entry
from sessiond.sync.position import NO_EPOCH, entry_hash, fold
from tests.service.edits import (
    RULES,
    STARTS,
    STRATEGIES,
    Field,
    at,
    edited,
    patch_between,
    with_field,
)
from tests.service.listed import AT, SESSION, ListedRedis, Pipeline, Plant


def beginning(plant: Plant) -> ListedRedis:
    """Return a session with its documents, two messages and a part."""
    fields = {name: STARTS[kind] for name, (_, kind) in STRATEGIES.items()}
    new = NewSession(
        session_id=SESSION,
        workspace="default",
        title="",
        context=Context(state=dict(fields)),
        preferences=dict(fields),
    )
    documents: dict[str, dict[str, bytes]] = {"metadata": {}, "context": {}, "preferences": {}}
    for change in encode_creation(new, AT):
        value = change.value or b""
        documents[change.document][change.field] = (
            value.encode() if isinstance(value, str) else value
        )
    server = ListedRedis(documents, msgspec.json.encode(new), plant)
    for name in ("m0", "m1"):
        message: dict[str, Any] = {
            "id": name,
            "timestamp": AT,
            "role": "user",
            "content": "",
            "tool_calls": [],
        }
        body = msgspec.json.encode(message | {"metadata": fields})
        server.begin("message.append", name, body)
    part = {"id": "p", "type": "note", **fields}
    server.begin("part.put", "m1/p", msgspec.json.encode(part))
    return server


class Known(NamedTuple):
    """A subject at a version."""

    version: str
    value: Any


class Copy:
    """A session rebuilt from its log, which is proven on the way."""

    def __init__(self) -> None:
        self.offset, self.epoch = 0, NO_EPOCH
        self.subjects: dict[str, Known] = {}

    def take(self, entry: Entry) -> None:
        """Take the next operation."""
        content = entry_hash(entry.op, entry.at, entry.origin, entry.id, entry.json)
        assert entry.offset == self.offset + 1
        self.epoch, self.offset = fold(self.epoch, content), entry.offset
        assert entry.epoch == self.epoch, f"entry {entry.offset} is of another history"
        body, version = msgspec.json.decode(entry.json), f"{entry.epoch}:{entry.offset}"
        if entry.op in ("session.create", "document.change"):
            for name in ("metadata", "context", "preferences"):
                fields = fields_written(entry.op, entry.id, body, name)
                if entry.id in (name, SESSION):
                    before = self.subjects[name].value if name in self.subjects else {}
                    after = {**before, **(fields or {})}
                    there = {k: v for k, v in after.items() if v is not UNSET}
                    self.subjects[name] = Known(version, there)
        elif entry.op in ("message.append", "message.edit", "part.put"):
            self.subjects[entry.id] = Known(version, body)
        elif entry.op in ("message.remove", "part.remove"):
            for name in self.subjects:
                if f"{name}/".startswith(f"{entry.id}/"):
                    self.subjects[name] = Known(version, UNSET)


def copied(server: ListedRedis, until: int | None = None) -> Copy:
    """Return the session as the log has it, up to an offset."""
    copy = Copy()
    for raw in server.log[:until]:
        copy.take(parse_entry(raw))
    return copy


class Change(Struct):
    """What a replica makes of a subject: known from the moment that it is sent."""

    name: str
    subject: str
    base: Known
    after: Any
    whole: bool
    keyed: bool
    state: Literal["sent", "failed", "done", "lost"] = "sent"

    def values(self, field: Field) -> tuple[Any, Any]:
        """Return a field before and after."""
        return at(self.base.value, field.path), at(self.after, field.path)


class Call(Struct, eq=False):
    """A call of the commit script on its way."""

    arguments: tuple[Any, ...]
    reply: asyncio.Future[Any]


class Line:
    """A replica's way to Redis. Calls of the commit script wait until they are let through."""

    def __init__(self, server: ListedRedis) -> None:
        self.held = False
        self.reads: list[asyncio.Future[None]] = []
        self.calls: list[Call] = []
        self._server = server

    async def _turn(self) -> None:
        if self.held:
            self.reads.append(asyncio.get_running_loop().create_future())
            await self.reads[-1]

    async def send(self, *arguments: Any) -> Any:
        call = Call(arguments, asyncio.get_running_loop().create_future())
        self.calls.append(call)
        return await call.reply

    async def execute_command(self, *arguments: Any) -> Any:
        await self._turn()
        return await self._server.execute_command(*arguments)

    async def hmget(self, key: str, names: list[str]) -> Any:
        await self._turn()
        return await self._server.hmget(key, names)

    async def hget(self, key: str, name: str) -> Any:
        await self._turn()
        return await self._server.hget(key, name)

    async def zadd(self, _key: str, _members: dict[str, int]) -> None:
        await self._turn()

    def pipeline(self, **_: bool) -> Pipeline:
        return Pipeline(self.execute_command)


class Replica:
    """One process with the real services, on a line to the list; or a guest of such a process.

    Must be made, and used, where an event loop runs.
    """

    def __init__(
        self,
        name: str,
        server: ListedRedis,
        clock: Callable[[], int],
        host: Replica | None = None,
        *,
        forget_base: bool,
    ) -> None:
        self.name = name
        self.seconds = 0.0
        self.skew_ms = 0
        self.forgetful = False
        self.work: dict[str, Any] = {}
        self.bases: dict[str, Known] = {}
        self.sent: dict[str, Change] = {}
        self.answers: dict[str, Known] = {}
        self._host = host
        self._server, self._clock, self._forget_base = server, clock, forget_base
        self.errors: list[BaseException] = []
        self._lives = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.start()

    def start(self) -> None:
        """Begin a life: nothing is known but what was acknowledged."""
        self._lives += 1
        self.copy = Copy()
        host = self._host
        self.line: Line = host.line if host else Line(self._server)
        redis: Any = self.line
        keys = Keys("sessiond")
        self._committer: Committer = (
            host._committer
            if host
            else Committer(
                self.line.send,
                keys,
                writer=f"{self.name}.{self._lives}",
                retry_seconds=1.0,
                now=lambda: self.seconds,
                sleep=_at_once,
            )
        )
        store = SessionStore(redis, keys, self._committer)
        store._touch = lambda *_: None  # type: ignore[method-assign]  # indexes are of no interest
        self.log = LogReader(redis, keys, store.recall)
        around = Surroundings(
            store,
            ConflictStore(redis, keys),
            rules=RULES,
            clock=lambda: self._clock() + self.skew_ms,
            sleep=_at_once,
        )
        self.documents: Documents = host.documents if host else Documents(around)
        self.records: Records = host.records if host else Records(around)
        self.conflicts = Conflicts(around, kept_days=30)

    def crash(self) -> list[Call]:
        """End a life and begin another; return the calls that are still on their way."""
        self.stop()
        for change in self.sent.values():
            change.state = "lost"
        strays = self.line.calls
        self.work, self.bases, self.sent = {}, {}, {}
        self.start()
        return strays

    def stop(self) -> None:
        """End all that is under way."""
        flushers = [lane.flusher for lane in self._committer._lanes.values()]
        workers = [lane.worker for lane in self.documents._lanes.values()]
        for task in (*self._tasks, *flushers, *workers):
            if task:
                task.cancel()

    def known(self, subject: str) -> Known | None:
        """Return the newest of a subject that this replica has seen."""
        seen = [self.copy.subjects.get(subject), self.answers.get(subject)]
        found = [each for each in seen if each]
        return max(found, key=lambda each: _offset(each.version), default=None)

    def edit(self, field: Field, token: str, choice: int) -> None:
        """Edit the replica's own copy; nobody hears of it yet."""
        subject = field.subject
        known = self.known(subject)
        if subject not in self.work:
            if known is None or known.value is UNSET or subject in self.sent:
                return
            self.bases[subject], self.work[subject] = known, known.value
        if self.work[subject] is UNSET:
            return
        value = at(self.work[subject], field.path)
        value = edited(field.kind, value, token, choice)
        self.work[subject] = with_field(self.work[subject], field.path, value)

    def remove(self, subject: str) -> None:
        """Remove the replica's own copy of a message or part."""
        known = self.known(subject)
        if known and known.value is not UNSET and subject not in self.sent | self.work:
            self.bases[subject], self.work[subject] = known, UNSET

    def send(self, subject: str, name: str, *, whole: bool, keyed: bool) -> Change | None:
        """Send what was edited since the base; the answer comes when the network lets it.

        What has no key is not asked for again when there is no answer.
        """
        if subject not in self.work or subject in self.sent:
            return None
        base, after = self.bases.pop(subject), self.work.pop(subject)
        change = Change(name, subject, base, after, whole, keyed)
        self.sent[subject] = change
        self.ask(change)
        return change

    def ask(self, change: Change) -> None:
        """Send a change, for the first time or again."""
        change.state = "sent"
        task = asyncio.get_running_loop().create_task(self._ask(change))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.errors.append(error)

    async def _ask(self, change: Change) -> None:
        base = "" if self._forget_base else change.base.version
        key = change.name if change.keyed else ""
        request = Request(key=key, base=base, client=change.name)
        try:
            answer = await self._written(change, request)
        except NotFound as error:
            kept = change.after is UNSET or "kept as conflict" in str(error)
            if not kept and base and not self.forgetful:
                raise
        except SessiondError as error:
            if not error.temporary:
                raise
            change.state = "failed" if change.keyed else "lost"
            if not change.keyed:
                del self.sent[change.subject]
            return
        else:
            if not self.forgetful:
                assert _offset(answer.version) >= _offset(change.base.version), "it went back"
            if answer.value is not None:
                self._check(change.subject, answer)
                self.answers[change.subject] = answer
        change.state = "done"
        del self.sent[change.subject]

    async def _written(self, change: Change, request: Request) -> Known:
        subject, after = change.subject, change.after
        message, _, part = subject.partition("/")
        if subject in ("context", "preferences", "metadata"):
            whole = change.whole and subject != "metadata"
            wanted = after if whole else patch_between(change.base.value, after)
            document = await self.documents.change(
                SESSION, subject, wanted, request, replace=whole  # type: ignore[arg-type]
            )  # fmt: skip
            value = msgspec.to_builtins(document.value)
            if subject == "metadata":
                value = {name: value[name] for name in CHANGEABLE_METADATA & value.keys()}
            return Known(document.version, value)
        if after is UNSET and part:
            written = await self.records.remove_part(SESSION, message, part, request)
        elif after is UNSET:
            written = await self.records.remove(SESSION, message, request)
        elif part:
            written = await self.records.put_part(SESSION, message, part, after, request)
        else:
            patch = patch_between(change.base.value, after)
            written = await self.records.edit(SESSION, message, patch, request)
        return Known(written.version, None)

    def _check(self, subject: str, answer: Known) -> None:
        """An answer's value is what its version stands for: the next change is made on it."""
        there = copied(self._server, _offset(answer.version)).subjects[subject]
        assert there == answer, f"{subject}: the answer is not what its version stands for"

    def receive(self, most: int) -> None:
        """Take what follows in the log, or begin anew where that is another one."""
        here = self.copy.offset
        if here and [parse_entry(raw).epoch for raw in self._server.log[here - 1 : here]] != [
            self.copy.epoch
        ]:
            self.copy, self.answers = Copy(), {}
        for raw in self._server.log[self.copy.offset :][:most]:
            self.copy.take(parse_entry(raw))


async def _at_once(_seconds: float) -> None:
    await asyncio.sleep(0)


def _offset(version: str) -> int:
    return int(version.rpartition(":")[2])


def lose(call: Call) -> None:
    """Tell the sender that the connection is gone."""
    call.reply.set_exception(RedisConnectionError("lost"))


def applied(changes: list[Change], server: ListedRedis) -> Iterator[Change]:
    """Yield the changes that came through: acknowledged, or in the log; none of them is twice."""
    written = [
        parse_entry(raw).origin.partition("@")[0]
        for raw in server.log
        if parse_entry(raw).op != "conflict.record"
    ]
    for change in changes:
        assert written.count(change.name) <= 1, f"{change.name} was applied twice"
        if change.state == "done" or change.name in written:
            yield change

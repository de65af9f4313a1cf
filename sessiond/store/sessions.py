"""The store of sessions in Redis: writes through the committer, reads, indexes, announcements."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.codec import json
from sessiond.errors import InvalidInput, NotFound, SessionDeleted, SessiondError, StoreDamaged
from sessiond.model import DOCUMENTS
from sessiond.store.committer import Committer
from sessiond.store.connection import answered
from sessiond.store.draft import Draft
from sessiond.store.keys import Keys
from sessiond.store.log import LogReader
from sessiond.store.outcome import Committed, SessionMissing
from sessiond.store.recall import Recall
from sessiond.store.scripts import SNAPSHOT
from sessiond.sync.position import Position

OnSend = Callable[[str, list[Draft]], None]
"""Told of every write that leaves for Redis, for the trace."""

OnCommit = Callable[[str, list[Draft], Committed], None]
"""Told of every write, for detailed logging."""

_INDEX_PAUSE_SECONDS = 1.0
_LOOKED_FOR_AT_ONCE = 32
_INDEX_VALUE = re.compile(rb"(\d+)(?: (\d+)( removed)?)?")
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HIGHEST_SCORE = 10**15
_SCORE = re.compile(r"\d{1,15}", re.ASCII)


class Snapshot(Struct, frozen=True):
    """A session's documents at one position; field values are undecoded.

    `amendments` counts the edits, removals and part changes so far: at zero, the conversation
    is exactly the log's appended messages.
    """

    metadata: dict[str, str]
    context: dict[str, bytes]
    preferences: dict[str, bytes]
    versions: dict[str, str]
    position: Position
    total_messages: int
    amendments: int


class End(Struct, frozen=True):
    """Where a log ends, and whether it amended any message so far (see Snapshot)."""

    position: Position
    amendments: int


class RecordVersion(Struct, frozen=True):
    """Where a record was first written and last changed."""

    first: int
    last: int
    removed: bool = False


class Listed(Struct, frozen=True):
    """An entry of a listing, and the cursor that continues after it.

    Without a snapshot the entry is gone, never came to be, or is damaged.
    """

    snapshot: Snapshot | None
    cursor: str


class ListPage(Struct, frozen=True):
    """A stretch of an index. `last`: nothing follows."""

    sessions: list[Listed]
    last: bool


class SessionStore:
    """Sessions in one Redis.

    Args:
        redis: client for commands.
        keys: names of the keys.
        committer: writes the logs.
    """

    def __init__(self, redis: Redis, keys: Keys, committer: Committer) -> None:
        self._redis = redis
        self._keys = keys
        self._committer = committer
        self._touched: dict[str, tuple[str, int]] = {}
        self._indexer: asyncio.Task[None] | None = None
        self.recall = committer.bring_back = Recall(redis, keys)
        self.log = LogReader(redis, keys, self.recall)
        self.on_send: list[OnSend] = []
        self.on_commit: list[OnCommit] = []

    @property
    def writer(self) -> str:
        """Who writes here: `<instance>.<incarnation>`."""
        return self._committer.writer

    async def forgive(self, session_id: str) -> None:
        """Write to a session again that Redis does not have as it was."""
        await self._committer.forgive(session_id)

    async def commit(self, session_id: str, group: list[Draft], now_ms: int) -> Committed:
        """Write a group of operations (see Committer.commit) and note the session's activity."""
        for tell_of in self.on_send:
            tell_of(session_id, group)
        committed = await self._committer.commit(session_id, group)
        for tell in self.on_commit:
            tell(session_id, group, committed)
        if group[-1].op == "session.delete":
            self._touched.pop(session_id, None)
            await self.withdraw(session_id, committed.workspace)
        else:
            self._touch(session_id, committed.workspace, now_ms)
        return committed

    async def announce_creation(self, session_id: str, workspace: str, now_ms: int) -> None:
        """Enter a session in the indexes before it exists, so that no crash can hide it.

        An index entry without a session is harmless: listings pass over it.
        """
        await self._index({session_id: (workspace, now_ms)})

    async def withdraw(self, session_id: str, workspace: str) -> None:
        """Take a session out of the indexes, and everybody out of it; drop what it cached."""
        keys = self._keys
        async with self._redis.pipeline(transaction=False) as pipeline:
            for index in (keys.sessions, keys.workspace(workspace), keys.present):
                pipeline.zrem(index, session_id)
            pipeline.delete(keys.presence(session_id), *keys.cache(session_id))
            await answered(pipeline.execute())

    async def withdraw_from_others(self, session_id: str, announced: str) -> None:
        """Take an existing session out of a workspace where its creation was announced in vain."""
        if await self.workspace_of(session_id) != announced:
            await answered(self._redis.zrem(self._keys.workspace(announced), session_id))

    async def snapshot(self, session_id: str) -> Snapshot:
        """Return the documents and the position, all of one moment; first bring it back if needed.

        Raises:
            NotFound, SessionDeleted: there is none, or no more.
        """
        keys = [self._keys.document(session_id, name) for name in DOCUMENTS]
        while True:
            reply = await answered(SNAPSHOT.run(self._redis.execute_command, keys))
            metadata, context, preferences = (_pairs(fields) for fields in reply)
            if b"archive" not in metadata:
                return _snapshot(session_id, metadata, context, preferences)
            await self.recall(session_id)

    async def end(self, session_id: str) -> End:
        """Return where the log ends.

        Raises:
            NotFound, SessionDeleted: there is no log, or no more.
        """
        fields = ["status", "epoch", "version", "amendments"]
        key = self._keys.metadata(session_id)
        status, epoch, version, amendments = await answered(self._redis.hmget(key, fields))
        check_alive(session_id, status)
        with _damage(session_id):
            return End(Position(epoch.decode(), int(version)), int(amendments))

    async def have(self, session_id: str, positions: list[Position]) -> list[bool]:
        """Tell which of these positions a session's log has.

        A session that was deleted has all: nothing of it is missed. So has one that is damaged:
        it is to be repaired, not written to. One that is archived has all up to its end.
        """
        there: list[bool] = []
        try:
            for start in range(0, len(positions), _LOOKED_FOR_AT_ONCE):
                some = positions[start : start + _LOOKED_FOR_AT_ONCE]
                entries = await self.log.present_at(session_id, [at.offset for at in some])
                there += [
                    entry is not None and at.epoch in ("", entry.epoch)
                    for at, entry in zip(some, entries, strict=True)
                ]
            if not all(there):
                await self.end(session_id)
                if archived := await self.recall.position(session_id):
                    there = [_is_within(at, archived) for at in positions]
        except NotFound:
            return [False] * len(positions)
        except (SessionDeleted, StoreDamaged):
            return [True] * len(positions)
        return there

    async def message_versions(
        self, session_id: str, message_ids: list[str]
    ) -> list[RecordVersion | None]:
        """Return where messages were written; None for one that never was."""
        key = self._keys.messages(session_id)
        values = await answered(self._redis.hmget(key, message_ids))
        if None in values and await self.recall(session_id):
            values = await answered(self._redis.hmget(key, message_ids))
        with _damage(session_id):
            return [None if value is None else _record_version(value) for value in values]

    async def part_version(self, session_id: str, name: str) -> RecordVersion | None:
        """Return where a part (`<message>/<part>`) was written on its own; None if it never was."""
        key = self._keys.parts(session_id)
        value = await answered(self._redis.hget(key, name))
        if value is None and await self.recall(session_id):
            value = await answered(self._redis.hget(key, name))
        with _damage(session_id):
            return None if value is None else _record_version(value)

    async def part_versions(self, session_id: str, message_id: str) -> dict[str, RecordVersion]:
        """Return where the parts of a message were written, by part id, oldest first."""
        key = self._keys.parts(session_id)
        found: dict[str, RecordVersion] = {}
        cursor = 0
        while True:
            cursor, fields = await answered(
                self._redis.hscan(key, cursor, match=f"{message_id}/*", count=1000)
            )
            with _damage(session_id):
                for name, value in fields.items():
                    found[name.decode().partition("/")[2]] = _record_version(value)
            if cursor == 0:
                break
        return dict(sorted(found.items(), key=lambda item: item[1].first))

    async def used_key(self, session_id: str, key: str) -> tuple[str, int] | None:
        """Return content digest and offset of the operation that an idempotency key stands for."""
        value = await answered(self._redis.hget(self._keys.applied(session_id), key))
        if value is None:
            return None
        with _damage(session_id):
            digest, offset = value.decode().split(" ")  # a digest may be empty
            return digest, int(offset)

    async def list_page(self, workspace: str | None, cursor: str | None, limit: int) -> ListPage:
        """Return sessions with their metadata, most recently active first.

        Raises:
            InvalidInput: the cursor is not one that a listing gave.
        """
        index = self._keys.workspace(workspace) if workspace else self._keys.sessions
        ids = await self._index_page(index, cursor, limit)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for session_id, _ in ids:
                pipeline.hgetall(self._keys.metadata(session_id))
            replies = await answered(pipeline.execute(raise_on_error=False))
        listed = []
        for (session_id, score), fields in zip(ids, replies, strict=True):
            snapshot = None
            if isinstance(fields, dict):
                with contextlib.suppress(SessiondError):  # it must not hide the others
                    snapshot = _snapshot(session_id, fields, {}, {})
            listed.append(Listed(snapshot, f"{score}.{session_id}"))
        return ListPage(listed, last=len(ids) < limit)

    async def workspace_of(self, session_id: str) -> str:
        """Return the workspace that a session belongs to.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
        """
        key = self._keys.metadata(session_id)
        status, workspace = await answered(self._redis.hmget(key, ["status", "workspace"]))
        check_alive(session_id, status)
        with _damage(session_id):
            return str(workspace.decode())

    async def positions(self, workspace: str) -> dict[str, Position]:
        """Return where the log of each session of a workspace ends."""
        members = await answered(self._redis.zrange(self._keys.workspace(workspace), 0, -1))
        ids = [
            name
            for member in members
            if _SESSION_ID.fullmatch(name := member.decode("ascii", "replace"))
        ]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for session_id in ids:
                pipeline.hmget(
                    self._keys.metadata(session_id), ["status", "epoch", "version", "workspace"]
                )
            ends = await answered(pipeline.execute(raise_on_error=False))
        ends = [(None,) * 4 if isinstance(end, Exception) else end for end in ends]
        found = {}
        for session_id, (status, epoch, version, home) in zip(ids, ends, strict=True):
            if status not in (None, b"deleted") and home == workspace.encode():
                with contextlib.suppress(StoreDamaged), _damage(session_id):  # not the others'
                    found[session_id] = Position(epoch.decode(), int(version))
        return found

    async def archived(self, session_ids: Iterable[str]) -> set[str]:
        """Return those of these sessions that are archived."""
        names = list(session_ids)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for session_id in names:
                pipeline.hexists(self._keys.metadata(session_id), "archive")
            found = await answered(pipeline.execute(raise_on_error=False))
        return {name for name, there in zip(names, found, strict=True) if there is True}

    async def publish(self, session_id: str, workspace: str, message: bytes) -> None:
        """Announce something that is not stored to whoever listens now."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.publish(self._keys.events(session_id), message)
            pipeline.publish(self._keys.workspace_events(workspace), message)
            await answered(pipeline.execute())

    async def announce_end(self, session_id: str, workspace: str, end: Position) -> None:
        """Have readers look anew at a log that ends elsewhere now, though nobody wrote to it."""
        notice = {"session_id": session_id, "position": str(end)}
        await self.publish(session_id, workspace, json.encode(notice))

    async def beat(self, instance: str, now_ms: int, lifetime_ms: int) -> None:
        """Enter this daemon among the living, and drop those silent for `lifetime_ms`."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zadd(self._keys.instances, {instance: now_ms})
            pipeline.zremrangebyscore(self._keys.instances, "-inf", now_ms - lifetime_ms)
            await answered(pipeline.execute())

    async def leave(self, instance: str) -> None:
        """Take this daemon off the list of the living."""
        await answered(self._redis.zrem(self._keys.instances, instance))

    async def count(self) -> int:
        """Return how many sessions the index knows."""
        return int(await answered(self._redis.zcard(self._keys.sessions)))

    async def instances(self) -> dict[str, int]:
        """Return the living daemons and when each was last heard of, in ms since 1970."""
        pairs = await answered(self._redis.zrange(self._keys.instances, 0, -1, withscores=True))
        return {name.decode(): int(score) for name, score in pairs}

    async def close(self) -> None:
        """Write what is still to be written."""
        await self._committer.drain()
        if self._indexer:
            self._indexer.cancel()
            await asyncio.gather(self._indexer, return_exceptions=True)
        touched, self._touched = self._touched, {}
        if touched:
            with contextlib.suppress(SessiondError):  # derived: the next activity writes it
                await self._index(touched, known=True)

    def _touch(self, session_id: str, workspace: str, now_ms: int) -> None:
        self._touched[session_id] = (workspace, now_ms)
        if self._indexer is None or self._indexer.done():
            self._indexer = asyncio.create_task(self._index_touched())

    async def _index_touched(self) -> None:
        while self._touched:
            await asyncio.sleep(_INDEX_PAUSE_SECONDS)
            touched, self._touched = self._touched, {}
            try:
                await self._index(touched, known=True)
            except (SessiondError, asyncio.CancelledError) as error:
                self._touched = touched | self._touched
                if not isinstance(error, SessiondError):
                    raise  # closing: `close` writes them

    async def _index(self, touched: dict[str, tuple[str, int]], *, known: bool = False) -> None:
        """Note activity; of `known` sessions only if nobody deleted them meanwhile."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for session_id, (workspace, now_ms) in touched.items():
                for index in (self._keys.sessions, self._keys.workspace(workspace)):
                    pipeline.zadd(index, {session_id: now_ms}, gt=True, xx=known)
            await answered(pipeline.execute())

    async def _index_page(
        self, index: str, cursor: str | None, limit: int
    ) -> list[tuple[str, int]]:
        highest, after_id = parse_cursor(cursor)
        found: list[tuple[str, int]] = []
        skip = 0
        while len(found) < limit:
            pairs = await answered(
                self._redis.zrevrangebyscore(
                    index, highest, "-inf", start=skip, num=limit, withscores=True
                )
            )
            skip += len(pairs)
            for member, score in pairs:
                session_id = member.decode("ascii", "replace")
                if not (0 <= score < _HIGHEST_SCORE and _SESSION_ID.fullmatch(session_id)):
                    continue  # something foreign: it must not hide the sessions
                if after_id is None or int(score) < int(highest) or session_id < after_id:
                    found.append((session_id, int(score)))
            if len(pairs) < limit:
                break
        return found[:limit]


def parse_cursor(cursor: str | None) -> tuple[str, str | None]:
    """Return the score and the id of the session that a page ended with.

    Raises:
        InvalidInput: the cursor is not one that a listing gave.
    """
    if cursor is None:
        return "+inf", None
    score, _, session_id = cursor.partition(".")
    if not (_SCORE.fullmatch(score) and session_id):
        raise InvalidInput(
            f"{cursor[:80]!r} is not a cursor", hint="use `cursor` of the page before, unchanged"
        )
    return score, session_id


def _is_within(position: Position, end: Position) -> bool:
    """Tell whether a log that ends here has a position, as far as its end tells."""
    if position.offset == end.offset:
        return position.epoch in ("", end.epoch)
    return position.offset < end.offset


@contextlib.contextmanager
def _damage(session_id: str) -> Iterator[None]:
    """Turn what reading foreign or missing values raises into StoreDamaged."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreDamaged(
            f"what Redis holds of session {session_id!r} is damaged: {error}",
        ) from error


def _pairs(flat: Any) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def check_alive(session_id: str, status: bytes | None) -> None:
    """Refuse a session that its metadata's status tells not to be there, or no more.

    Raises:
        SessionMissing, SessionDeleted.
    """
    if status is None:
        raise SessionMissing(session_id)
    if status == b"deleted":
        raise SessionDeleted(
            f"session {session_id!r} was deleted", hint="create a new one; ids are not used again"
        )


def _snapshot(
    session_id: str,
    metadata: dict[bytes, bytes],
    context: dict[bytes, bytes],
    preferences: dict[bytes, bytes],
) -> Snapshot:
    check_alive(session_id, metadata.get(b"status"))
    versions = {
        name: fields.pop(b"_version", b"").decode("ascii", "replace")
        for name, fields in (
            ("metadata", metadata),
            ("context", context),
            ("preferences", preferences),
        )
    }
    with _damage(session_id):
        return Snapshot(
            metadata={name.decode(): value.decode() for name, value in metadata.items()},
            context={name.decode(): value for name, value in context.items()},
            preferences={name.decode(): value for name, value in preferences.items()},
            versions=versions,
            position=Position(metadata[b"epoch"].decode(), int(metadata[b"version"])),
            total_messages=int(metadata[b"total_messages"]),
            amendments=int(metadata[b"amendments"]),
        )


def _record_version(value: bytes) -> RecordVersion:
    match = _INDEX_VALUE.fullmatch(value)
    if match is None:
        raise ValueError(f"index value {value!r}")
    return RecordVersion(int(match[1]), int(match[2] or match[1]), removed=bool(match[3]))

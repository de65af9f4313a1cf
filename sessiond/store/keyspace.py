"""Reading what Redis holds of sessions as it lies there, also where it is damaged."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.errors import StoreDamaged
from sessiond.store.blocks import parse_block, unpack
from sessiond.store.connection import answered
from sessiond.store.content import Hash
from sessiond.store.entries import offset_of
from sessiond.store.keys import SESSION_KINDS, TABLE, Keys
from sessiond.store.scripts import SNAPSHOT

_PAGE = 500
_FIRST_PAGE = 4
_PAGE_BYTES = 4 * 1024 * 1024
_LINES = 1000
_KEYS = 1000

DOCUMENT_KINDS = ("metadata", "context", "preferences")


class Found(Struct, frozen=True):
    """Keys that a step through the keyspace came upon.

    `sessions`: those whose first key was among them; `foreign`: keys within a session's that are
    not in the table of keys. `cursor`: where to go on, empty at the end.
    """

    sessions: list[str]
    foreign: list[str]
    cursor: str


class Keyspace:
    """Looks at the keys of sessions.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self.keys = keys

    async def step(self, cursor: str) -> Found:
        """Take one step through all keys: no session is passed over, few come twice."""
        position, names = await answered(
            self._redis.scan(int(cursor or 0), match=self.keys.all_of_sessions(), count=_KEYS)
        )
        parsed = {name: self.keys.parsed(name) for name in names}
        foreign = [name.decode("utf-8", "replace") for name, known in parsed.items() if not known]
        candidates = [known for known in parsed.values() if known and known[1] in SESSION_KINDS]
        first = await self._first_kinds([session_id for session_id, _ in candidates])
        sessions = {session_id for session_id, kind in candidates if first[session_id] == kind}
        return Found(sorted(sessions), sorted(foreign), str(position) if position else "")

    async def foreign_keys(self, session_id: str) -> list[str]:
        """Return the keys within a session's that are not in the table of keys."""
        found: list[str] = []
        cursor = 0
        while True:
            cursor, names = await answered(
                self._redis.scan(cursor, match=self.keys.all_of_session(session_id), count=_KEYS)
            )
            found += [name.decode("utf-8", "replace") for name in names if not self._is_ours(name)]
            if cursor == 0:
                return sorted(set(found))

    async def types(self, session_id: str) -> dict[str, str]:
        """Return the types of a session's keys, by kind; what is not there is left out."""
        (found,) = (await self._types([session_id])).values()
        return found

    async def documents(self, session_id: str) -> dict[str, Hash]:
        """Return the hashes of the documents, of one moment.

        Raises:
            StoreDamaged: one of them is no hash.
        """
        names = [self.keys.document(session_id, kind) for kind in DOCUMENT_KINDS]
        reply = await answered(SNAPSHOT.run(self._redis.execute_command, names))
        return {
            kind: dict(zip(flat[::2], flat[1::2], strict=True))
            for kind, flat in zip(DOCUMENT_KINDS, reply, strict=True)
        }

    async def hash(self, session_id: str, kind: str) -> Hash:
        """Return the fields of a session's hash, gathered in steps."""
        key, cursor = self.keys.of_session(kind, session_id), 0
        found: Hash = {}
        while True:
            cursor, fields = await answered(self._redis.hscan(key, cursor, count=_LINES))
            found |= fields
            if cursor == 0:
                return found

    async def entries(
        self, session_id: str, kind: str = "conversation", after: str = "-"
    ) -> AsyncIterator[list[Any]]:
        """Yield the entries of a stream behind one, page after page, as Redis sends them."""
        key, count = self.keys.of_session(kind, session_id), _FIRST_PAGE
        while True:
            page = await answered(
                self._redis.execute_command("XRANGE", key, after, "+", "COUNT", count)
            )
            if page:
                yield page
            if len(page) < count:
                return
            after = f"({page[-1][0].decode()}"
            size = sum(len(value) for _, fields in page for value in fields or ())
            count = max(1, min(_PAGE, 4 * count, _PAGE_BYTES * count // max(size, 1)))

    async def log(
        self,
        session_id: str,
        types: Mapping[str, str],
        note: Callable[[StoreDamaged], None],
        after: int = 0,
    ) -> AsyncIterator[list[Any]]:
        """Yield the entries of a log, page after page: those in blocks first.

        What becomes a block meanwhile is read there.

        Args:
            session_id: whose log it is.
            types: of the session's keys; what is no stream is not read.
            note: is told of each damaged block; its entries are left out.
            after: the offset behind which to begin.
        """
        has_blocks, last = types.get("blocks") == "stream", after
        if has_blocks:
            async for page in self._compressed(session_id, after, note):
                yield page
                last = offset_of(page[-1])
        if types.get("conversation") != "stream":
            return
        start = f"({after}-0" if after else "-"
        async for page in self.entries(session_id, after=start):
            first = offset_of(page[0])
            if has_blocks and first > last + 1:
                async for made in self._compressed(session_id, last, note, first - 1):
                    yield made
            yield page
            last = offset_of(page[-1])

    async def _compressed(
        self,
        session_id: str,
        after: int,
        note: Callable[[StoreDamaged], None],
        until: int | None = None,
    ) -> AsyncIterator[list[Any]]:
        """Yield the entries of each block that are behind one offset, and up to another."""
        key, place = self.keys.blocks(session_id), f"{after + 1}-0"
        while raw := await answered(
            self._redis.execute_command("XRANGE", key, place, "+", "COUNT", 1)
        ):
            place = f"({raw[0][0].decode()}"
            try:
                entries = unpack(parse_block(raw[0]))
            except StoreDamaged as error:
                note(error)
                continue
            behind = (each for each in entries if offset_of(each) > after)
            wanted = [each for each in behind if until is None or offset_of(each) <= until]
            if wanted:
                yield wanted
            elif until is not None:
                return

    async def has_field(self, session_id: str, kind: str, name: str) -> bool:
        """Tell whether a session's hash has a field."""
        key = self.keys.of_session(kind, session_id)
        return bool(await answered(self._redis.hexists(key, name)))

    async def position(self, session_id: str) -> tuple[bytes | None, ...]:
        """Return status, epoch and version of a session; None for what is not there."""
        key = self.keys.metadata(session_id)
        return tuple(await answered(self._redis.hmget(key, ["status", "epoch", "version"])))

    async def listed_at(self, session_id: str, workspace: str) -> tuple[float | None, float | None]:
        """Return the session's scores in the index of all sessions and of its workspace.

        Where an index is no sorted set, that is its own damage: the session counts as listed.
        """
        scores = []
        for index in (self.keys.sessions, self.keys.workspace(workspace)):
            score: float | None = 0.0
            with contextlib.suppress(StoreDamaged):
                score = await answered(self._redis.zscore(index, session_id))
            scores.append(score)
        return scores[0], scores[1]

    async def index_types(self) -> dict[str, str]:
        """Return the types of the keys that belong to no session, by kind, where they exist."""
        kinds = [
            kind for kind, row in TABLE.items() if "<" not in row.pattern and row.type != "channel"
        ]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for kind in kinds:
                pipeline.type(getattr(self.keys, kind))
            types = await answered(pipeline.execute())
        return _present(kinds, types)

    async def newest(self, count: int) -> list[tuple[str, float]]:
        """Return the most recently active sessions, with the time of that (ms)."""
        pairs = await answered(
            self._redis.zrevrange(self.keys.sessions, 0, count - 1, withscores=True)
        )
        return [(member.decode("utf-8", "replace"), score) for member, score in pairs]

    async def listed(self, cursor: str) -> tuple[dict[str, float], str]:
        """Return a stretch of the index of all sessions, and where to go on; empty at the end."""
        position, members = await answered(
            self._redis.zscan(self.keys.sessions, int(cursor or 0), count=_KEYS)
        )
        found = {member.decode("utf-8", "replace"): score for member, score in members}
        return found, str(position) if position else ""

    def _is_ours(self, name: bytes) -> bool:
        return self.keys.parsed(name) is not None

    async def _first_kinds(self, session_ids: list[str]) -> dict[str, str]:
        """Return the first kind of key, in the table's order, that each session has."""
        types = await self._types(list(dict.fromkeys(session_ids)))
        return {session_id: next(iter(found), "") for session_id, found in types.items()}

    async def _types(self, session_ids: list[str]) -> dict[str, dict[str, str]]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for session_id in session_ids:
                for kind in SESSION_KINDS:
                    pipeline.type(self.keys.of_session(kind, session_id))
            types = await answered(pipeline.execute()) if session_ids else []
        size = len(SESSION_KINDS)
        return {
            session_id: _present(SESSION_KINDS, types[place * size : (place + 1) * size])
            for place, session_id in enumerate(session_ids)
        }


def _present(kinds: Any, types: list[bytes]) -> dict[str, str]:
    return {
        kind: found.decode() for kind, found in zip(kinds, types, strict=True) if found != b"none"
    }

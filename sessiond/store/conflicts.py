"""Conflicts as Redis keeps them: a stream for each session, and an index of the sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.errors import StoreDamaged, TooLarge
from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.store.scripts import DROP_CONFLICTS, KEEP_REFUSED

_PAGE = 100
_MOST_KEPT = 5_000
_SETTLED_MS = 10 * 60 * 1000
_NOTED_MS = 1000
_REMEMBERED = 1000


class ConflictEntry(Struct, frozen=True):
    """One entry of the stream: a conflict, or what was decided about one.

    `number` is the offset of its operation in the log; `<offset>-<count>` of what was kept when
    the session was deleted. `json` is undecoded.
    """

    number: str
    what: str
    at: str
    json: bytes


class ConflictStore:
    """Reads and drops them, and keeps what comes for deleted sessions.

    All others are written with the operation that they came of.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._noted: dict[str, int] = {}

    async def entries(self, session_id: str, first: str = "") -> list[ConflictEntry]:
        """Return the entries of a session, oldest first: all, or from that of a number on.

        Raises:
            StoreUnavailable, StoreDamaged: Redis does not answer, or has something foreign.
        """
        found: list[ConflictEntry] = []
        begin = _stream_id(first) if first else "-"
        while True:
            page = await answered(
                self._redis.execute_command(
                    "XRANGE", self._keys.conflicts(session_id), begin, "+", "COUNT", _PAGE
                )
            )
            found += [parse_conflict(session_id, raw) for raw in page]
            if len(page) < _PAGE:
                return found
            begin = f"({page[-1][0].decode()}"

    async def keep_refused(
        self, session_id: str, key: str, fields: Sequence[str | bytes]
    ) -> str | None:
        """Keep what came for a deleted session, and return its number; None if it is not deleted.

        Args:
            session_id: which.
            key: what makes a repeated request recognisable; empty for nothing.
            fields: names and values of the entry.

        Raises:
            TooLarge: as much is kept already as may be.
        """
        keys = [self._keys.metadata(session_id), self._keys.conflicts(session_id)]
        arguments = [_MOST_KEPT, key, *fields]
        reply = await answered(KEEP_REFUSED.run(self._redis.execute_command, keys, arguments))
        if reply == 0:
            raise TooLarge(f"{_MOST_KEPT} entries are kept of session {session_id!r} already")
        return None if reply is None else _number(reply)

    async def drop(self, session_id: str, numbers: Sequence[str], now_ms: int) -> None:
        """Drop entries, and the session from the index where nothing is left of them.

        Who writes a conflict notes its session moments before: one that was noted of late stays.
        """
        left = 1
        for start in range(0, len(numbers) or 1, _PAGE):
            ids = [_stream_id(number) for number in numbers[start : start + _PAGE]]
            keys = [self._keys.conflicts(session_id)]
            left = await answered(DROP_CONFLICTS.run(self._redis.execute_command, keys, ids))
        noted_ms = (await self.sessions()).get(session_id, now_ms)
        if left == 0 and now_ms - noted_ms > _SETTLED_MS:
            self._noted.pop(session_id, None)
            await answered(self._redis.zrem(self._keys.contested, session_id))

    async def note(self, session_id: str, now_ms: int, *, at_once: bool = False) -> None:
        """Enter a session among those with conflicts; once a second is enough, or `at_once`."""
        if not at_once and 0 <= now_ms - self._noted.get(session_id, 0) < _NOTED_MS:
            return
        await answered(self._redis.zadd(self._keys.contested, {session_id: now_ms}))
        if len(self._noted) >= _REMEMBERED:
            self._noted.clear()
        self._noted[session_id] = now_ms

    async def sessions(self) -> dict[str, int]:
        """Return the sessions with conflicts, the newest first, and when each was noted (ms)."""
        found = await answered(self._redis.zrevrange(self._keys.contested, 0, -1, withscores=True))
        return {member.decode("ascii", "replace"): int(score) for member, score in found}


def _stream_id(number: str) -> str:
    return number if "-" in number else f"{number}-0"


def _number(stream_id: bytes) -> str:
    return stream_id.decode("ascii").removesuffix("-0")


def parse_conflict(session_id: str, raw: Any) -> ConflictEntry:
    """Return an entry of a session's stream, as Redis gives it.

    Raises:
        StoreDamaged: it is not one that sessiond writes.
    """
    stream_id, flat = raw
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    try:
        what, at = fields[b"what"].decode(), fields[b"at"].decode()
        return ConflictEntry(_number(stream_id), what, at, fields[b"json"])
    except (KeyError, UnicodeDecodeError) as error:
        raise StoreDamaged(
            f"entry {stream_id!r} among the conflicts of {session_id!r} is not one of sessiond's",
            hint="something other than sessiond wrote into this stream",
        ) from error

"""How sessions are used, in Redis: what decides how long each is kept."""

from __future__ import annotations

import asyncio
import contextlib
import re

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.errors import SessiondError, StoreDamaged
from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.store.scripts import FACTS, NOTE_READ
from sessiond.sync.position import Position

_NOTED_MS = 5 * 60 * 1000
_KEPT_MS = 400 * 24 * 3600 * 1000
_REMEMBERED = 10_000
_CLOSING_SECONDS = 1.0
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Use(Struct, frozen=True):
    """How a session is used at this moment.

    Attributes:
        position: where its log ends.
        last_activity: when something was last written, as the log has it.
        archived_at: when it was archived; empty where it was not, or by a change of its status.
        read_ms: when it was read last, to five minutes, in ms since 1970; None for never.
        is_present: whether somebody is at it.
        has_turn: whether somebody runs a turn in it.
        is_opencodes: whether an opencode has it, too.
    """

    status: str
    workspace: str
    position: Position
    last_activity: str
    archived_at: str
    read_ms: int | None
    is_present: bool
    has_turn: bool
    is_opencodes: bool


class UseStore:
    """The use of the sessions of one Redis.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._noted: dict[str, int] = {}
        self._to_note: dict[str, int] = {}
        self._noting: asyncio.Task[None] | None = None

    async def of(self, session_id: str) -> Use | None:
        """Return how a session is used; None where there is none, or no more.

        Raises:
            StoreUnavailable, StoreDamaged: Redis does not answer, or has something foreign there.
        """
        keys = self._keys
        names = [keys.metadata(session_id), keys.document(session_id, "context")]
        reply = await answered(
            FACTS.run(self._redis.execute_command, [*names, *keys.use(session_id)])
        )
        if not reply:
            return None
        status, workspace, epoch, version, last_activity, archived_at, read_ms, *told = reply
        try:
            return Use(
                status.decode(),
                workspace.decode(),
                Position(epoch.decode(), int(version)),
                last_activity.decode(),
                archived_at.decode(),
                int(read_ms) if read_ms else None,
                *(value == 1 for value in told),
            )
        except (AttributeError, ValueError) as error:
            raise StoreDamaged(
                f"what Redis holds of session {session_id!r} is damaged: {error}",
                hint="look at it with `sessiond redis cat`",
            ) from error

    async def forget_deleted(self, session_id: str) -> bool:
        """Take a session that was deleted out of the indexes; tell whether it was.

        Whoever deletes one does that, unless it is killed in between. One that is missing may just
        be about to be created, and stays.
        """
        fields = await answered(
            self._redis.hmget(self._keys.metadata(session_id), ["status", "workspace"])
        )
        if fields[0] != b"deleted" or fields[1] is None:
            return False
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zrem(self._keys.sessions, session_id)
            pipeline.zrem(self._keys.workspace(fields[1].decode()), session_id)
            await answered(pipeline.execute())
        return True

    async def sessions(self) -> list[str]:
        """Return the ids of all sessions that the index knows, the longest inactive first."""
        members = await answered(self._redis.zrange(self._keys.sessions, 0, -1))
        names = [member.decode("ascii", "replace") for member in members]
        return [name for name in names if _SESSION_ID.fullmatch(name)]

    def note_read(self, session_id: str, now_ms: int) -> None:
        """Take note that somebody reads a session; it is written soon, once in five minutes."""
        if 0 <= now_ms - self._noted.get(session_id, -_NOTED_MS) < _NOTED_MS:
            return
        if len(self._noted) >= _REMEMBERED:
            self._noted.clear()
        self._noted[session_id] = self._to_note[session_id] = now_ms
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._note())

    async def settle(self) -> None:
        """Return when everything noted so far is written."""
        if self._noting:
            await asyncio.gather(self._noting, return_exceptions=True)

    async def close(self) -> None:
        """Write what was noted, if Redis takes it soon."""
        if self._noting:
            await asyncio.wait([self._noting], timeout=_CLOSING_SECONDS)
            self._noting.cancel()
            await self.settle()

    async def _note(self) -> None:
        while self._to_note:
            session_id, now_ms = self._to_note.popitem()
            names = [self._keys.metadata(session_id), self._keys.reads(session_id)]
            with contextlib.suppress(SessiondError):  # the next reading is noted, perhaps
                await answered(
                    NOTE_READ.run(self._redis.execute_command, names, [now_ms, _KEPT_MS])
                )

"""Noticing that a session is archived, and having it brought back before it is read or written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from sessiond.errors import ArchiveUnavailable, StoreDamaged
from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.sync.position import Position

BringBack = Callable[[str], Awaitable[None]]


class Recall:
    """Asks for archived sessions.

    Whoever finds nothing of a session asks here: where it is archived, it comes back first.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self.bring_back: BringBack = _refuse
        """Brings an archived session back. It must not ask here itself."""

    async def __call__(self, session_id: str) -> bool:
        """Have a session brought back if it is archived; tell whether it was.

        Raises:
            ArchiveUnavailable, ArchiveDamaged, StoreUnavailable: it cannot be.
        """
        if await self.position(session_id) is None:
            return False
        await self.bring_back(session_id)
        return True

    async def position(self, session_id: str) -> Position | None:
        """Return where the log of an archived session ends; None of any other session."""
        fields = ["archive", "epoch", "version"]
        key = self._keys.metadata(session_id)
        place, epoch, version = await answered(self._redis.hmget(key, fields))
        if place is None:
            return None
        try:
            return Position(epoch.decode(), int(version))
        except (AttributeError, TypeError, ValueError) as error:
            raise StoreDamaged(
                f"what Redis holds of the archived session {session_id!r} is damaged: {error}",
                hint="look at it with `sessiond redis cat`",
            ) from error


async def _refuse(session_id: str) -> None:
    raise ArchiveUnavailable(
        f"session {session_id!r} is archived, and this process does not bring sessions back",
        hint=f"`sessiond restore {session_id}` does",
    )

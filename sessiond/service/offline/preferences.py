"""Users' preferences while Redis is away: as they were last seen here, with what waits."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from msgspec import Struct, structs

from sessiond.errors import ReplicaUnavailable, StoreUnavailable
from sessiond.model import Preferences
from sessiond.replica import Replica
from sessiond.service.clock import Clock
from sessiond.service.content.preferences import UserPreferences, check_patch
from sessiond.service.durable.outbox import Outbox
from sessiond.service.offline.reachability import Reachability
from sessiond.service.offline.reading import Found
from sessiond.service.writes import ChangePreferences, lane_of_user
from sessiond.service.writing import Request
from sessiond.sync.names import checked
from sessiond.sync.preferences import PreferenceChanges, stamp_of

_DRAIN_SECONDS = 1.0


class _Copy(Struct, frozen=True):
    changes: PreferenceChanges
    read_ms: int


class KnownPreferences:
    """Reads preferences, from Redis or from what this machine knows.

    What was read or changed through this daemon is copied. What waits here is laid over the copy:
    so it is read as it will be, but for what others change.

    Args:
        online: the preferences in Redis.
        replica: this machine's copies; None where it keeps none.
        outbox: knows what waits.
        redis: whether Redis answers.
        clock: milliseconds since 1970.
    """

    def __init__(
        self,
        online: UserPreferences,
        replica: Replica | None,
        outbox: Outbox,
        redis: Reachability,
        clock: Clock,
    ) -> None:
        self._online = online
        self._replica = replica
        self._outbox = outbox
        self._redis = redis
        self._clock = clock
        self._unkept: dict[str, _Copy] = {}
        self._keeping: asyncio.Task[None] | None = None
        online.on_seen.append(self._note)

    async def close(self) -> None:
        """Finish copying."""
        if self._keeping:
            await self._keeping

    async def read(self, user_id: str) -> Found[Preferences]:
        """Return a user's preferences.

        Raises:
            InvalidInput: this is no user's id.
            StoreUnavailable: Redis is away, and they were not seen here before.
            StoreDamaged: see UserPreferences.
        """
        found = await self._changes(user_id)
        return Found(found.value.preferences(), found.stale_seconds, found.waiting)

    async def _changes(self, user_id: str) -> Found[PreferenceChanges]:
        lane = lane_of_user(checked("user_id", user_id))
        if await self._outbox.drained(lane, _DRAIN_SECONDS):
            try:
                async with self._redis.needed():
                    return Found(await self._online.changes(user_id))
            except StoreUnavailable:
                self._redis.note_failure()
        copy = await self._copy(user_id)
        if copy is None:
            raise StoreUnavailable(
                f"Redis does not answer, and the preferences of {user_id!r} were not seen here",
                hint="a change of them is taken all the same; read them when Redis is back",
            )
        return self._with_waiting(user_id, copy)

    async def checked_change(self, user_id: str, patch: Any, request: Request) -> ChangePreferences:
        """Return the write that changes a user's preferences.

        Where they are not known, there is taken to be room for it.

        Raises:
            InvalidInput: this is no user's id, or no patch.
            TooLarge: the preferences would be more than 64 KiB of JSON.
            StoreDamaged.
        """
        try:
            before = (await self._changes(user_id)).value
        except StoreUnavailable:
            before = (await self._known(user_id)).value
        check_patch(before.preferences(), patch)
        request = structs.replace(request, at_ms=before.next_ms(self._clock()))
        return ChangePreferences(
            session_id=lane_of_user(user_id), user_id=user_id, patch=patch, request=request
        )

    async def known(self, user_id: str) -> Preferences:
        """Return what is known here of a user's preferences, what waits included."""
        return (await self._known(user_id)).value.preferences()

    async def _known(self, user_id: str) -> Found[PreferenceChanges]:
        copy = await self._copy(user_id) or _Copy(PreferenceChanges(), self._clock())
        return self._with_waiting(user_id, copy)

    def _note(self, user_id: str, changes: PreferenceChanges) -> None:
        """Have copied what Redis has; nobody waits for that."""
        if self._replica is None:
            return
        self._unkept[user_id] = _Copy(changes, self._clock())
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep(self._replica))

    async def _keep(self, replica: Replica) -> None:
        """Copy what was seen; where the disk fails, what was copied before stays."""
        while self._unkept:
            user_id, copy = next(iter(self._unkept.items()))
            with suppress(ReplicaUnavailable):
                await replica.keep_user(user_id, copy.changes, copy.read_ms)
            if self._unkept[user_id] is copy:
                del self._unkept[user_id]

    async def _copy(self, user_id: str) -> _Copy | None:
        if user_id in self._unkept:
            return self._unkept[user_id]
        if self._replica:
            with suppress(ReplicaUnavailable):
                kept = await self._replica.user(user_id)
                return _Copy(*kept) if kept else None
        return None

    def _with_waiting(self, user_id: str, copy: _Copy) -> Found[PreferenceChanges]:
        waiting = self._outbox.waiting(lane_of_user(user_id))
        changes = copy.changes
        for each in waiting:
            if isinstance(each.write, ChangePreferences):
                request = each.write.request
                stamp = stamp_of(request.at_ms, request.key)
                changes = changes.with_patch(each.write.patch, stamp)
        stale_seconds = max(0, self._clock() - copy.read_ms) / 1000
        return Found(changes, stale_seconds, len(waiting))

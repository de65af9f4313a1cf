"""Users' preferences: kept per user, and what a new session of theirs begins with."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from sessiond.codec import json
from sessiond.errors import AlreadyExists, Contended, InvalidInput, StoreDamaged, TooLarge
from sessiond.model import Preferences
from sessiond.service.clock import Clock, system_clock
from sessiond.service.content.shapes import check_preferences
from sessiond.service.identity import Entropy, content_digest
from sessiond.service.writing import PLAIN, Queues, Request
from sessiond.store.preferences import PreferenceStore
from sessiond.sync.documents import merge_patch
from sessiond.sync.names import checked, is_name
from sessiond.sync.position import Position
from sessiond.sync.preferences import KnownWrite, PreferenceChanges, mark_of, stamp_of

OnSeen = Callable[[str, PreferenceChanges], None]
"""Told of what Redis has of a user's preferences, whenever that was read or changed."""

LARGEST_BYTES = 65_536
_ATTEMPTS = 32
_KEY_BYTES = 12


class ChangedPreferences(Struct, frozen=True):
    """What a change made of a user's preferences, and what it is known by."""

    preferences: Preferences
    position: Position


class UserPreferences:
    """Reads and changes the preferences of users in Redis.

    Changes merge by the time at which they were asked for, whenever they arrive: of the same field
    the latest stands. Who has seen a change is later, whatever the clocks say. One that comes once
    more changes nothing.

    Args:
        store: the preferences in Redis.
        clock: milliseconds since 1970.
        entropy: returns that many random bytes.
    """

    def __init__(
        self,
        store: PreferenceStore,
        *,
        clock: Clock = system_clock,
        entropy: Entropy = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._queues = Queues()
        self.on_seen: list[OnSeen] = []

    async def read(self, user_id: str) -> Preferences:
        """Return a user's preferences; none of somebody unknown.

        Raises:
            InvalidInput: this is no user's id.
            StoreUnavailable, StoreDamaged.
        """
        return (await self.changes(user_id)).preferences()

    async def changes(self, user_id: str) -> PreferenceChanges:
        """Return what a user's preferences are made of.

        Raises:
            InvalidInput, StoreUnavailable, StoreDamaged: as `read`.
        """
        changes = await self._store.read(checked("user_id", user_id))
        self._tell(user_id, changes)
        return changes

    async def change(self, user_id: str, patch: Any, request: Request = PLAIN) -> Preferences:
        """Apply a merge patch (RFC 7396), and return the preferences.

        Raises:
            InvalidInput: it is no object, or a name is not allowed.
            TooLarge: the preferences would be more than 64 KiB of JSON.
            AlreadyExists: the idempotency key was used for another patch.
            StoreUnavailable, StoreDamaged, Contended.
        """
        before = await self.changes(user_id)
        check_patch(before.preferences(), patch)
        at_ms = before.next_ms(self._clock())
        request = msgspec.structs.replace(request, at_ms=at_ms)
        return (await self.perform(user_id, patch, request)).preferences

    async def perform(self, user_id: str, patch: Any, request: Request) -> ChangedPreferences:
        """Apply a patch that was checked before: when it was asked for there was room for it.

        Raises:
            AlreadyExists, StoreUnavailable, StoreDamaged, Contended: as `change`.
        """
        key = request.key or f"w-{self._entropy(_KEY_BYTES).hex()}"
        stamp = stamp_of(request.at_ms or self._clock(), key)
        mark, digest = mark_of(key), content_digest(json.encode(patch))
        async with self._queues.of(user_id, "preferences"):
            for _ in range(_ATTEMPTS):
                before = await self._store.read(user_id)
                if known := before.writes.get(mark):
                    return _known(before, mark, known, digest)
                after = before.with_patch(patch, stamp).with_write(mark, digest)
                if await self._store.replace(user_id, before, after):
                    self._tell(user_id, after)
                    return ChangedPreferences(after.preferences(), after.position)
        raise Contended(
            f"{_ATTEMPTS} tries met other writers each time", hint="try again in a moment"
        )

    async def have(self, user_id: str, positions: list[Position]) -> list[bool]:
        """Tell which of these writes Redis has; of what is damaged nothing is missed.

        Raises:
            StoreUnavailable.
        """
        try:
            changes = await self._store.read(user_id)
        except StoreDamaged:
            return [True] * len(positions)
        return [changes.has(position) for position in positions]

    async def of_new_session(self, user_id: str, given: Preferences) -> Preferences:
        """Return what a session of a user begins with: what is given, before the user's own.

        An id that cannot be a key has no preferences of its own.
        """
        if not is_name("user_id", user_id):
            return given
        return {**await self.read(user_id), **given}

    def _tell(self, user_id: str, changes: PreferenceChanges) -> None:
        for told in self.on_seen:
            told(user_id, changes)


def check_patch(before: Preferences, patch: Any) -> None:
    """Check a merge patch for preferences.

    Raises:
        InvalidInput: it is no object, or a name is not allowed.
        TooLarge: it makes of these preferences more than 64 KiB of JSON, and no less than before.
    """
    if not isinstance(patch, dict):
        raise InvalidInput("preferences are an object", hint='for example {"theme": "dark"}')
    check_preferences(patch)
    size = len(json.encode(merge_patch(before, patch)))
    grows = size >= len(json.encode(before))
    if len(json.encode(patch)) > LARGEST_BYTES or (size > LARGEST_BYTES and grows):
        raise TooLarge(
            f"preferences of more than {LARGEST_BYTES // 1024} KiB",
            hint="keep large things in a session's context",
        )


def _known(
    changes: PreferenceChanges, mark: str, known: KnownWrite, digest: str
) -> ChangedPreferences:
    """Return what is there of a write that was applied before.

    Raises:
        AlreadyExists: its key was used for another patch.
    """
    if known.digest != digest:
        raise AlreadyExists(
            "this Idempotency-Key was used for a different request",
            hint="use a new key for every new write",
        )
    return ChangedPreferences(changes.preferences(), Position(mark, known.number))

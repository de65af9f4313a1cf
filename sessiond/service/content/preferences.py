"""Users' preferences: kept per user, and what a new session of theirs begins with."""

from __future__ import annotations

from typing import Any

from sessiond.codec import json
from sessiond.errors import InvalidInput, TooLarge
from sessiond.model import Preferences
from sessiond.service.content.shapes import check_preferences
from sessiond.store.preferences import PreferenceStore
from sessiond.sync.documents import changed_fields, merge_patch
from sessiond.sync.names import checked, is_name

LARGEST_BYTES = 65_536


class UserPreferences:
    """Reads and changes the preferences of users.

    They are in Redis only: while it is away they are neither read nor changed.

    Args:
        store: the preferences in Redis.
    """

    def __init__(self, store: PreferenceStore) -> None:
        self._store = store

    async def read(self, user_id: str) -> Preferences:
        """Return a user's preferences; none of somebody unknown.

        Raises:
            InvalidInput: this is no user's id.
            StoreUnavailable, StoreDamaged.
        """
        return await self._store.read(checked("user_id", user_id))

    async def change(self, user_id: str, patch: Any) -> Preferences:
        """Apply a merge patch (RFC 7396), and return the preferences.

        Only fields that it changes are written: of two at once, each gets its own; of the same
        field the later one stands.

        Raises:
            InvalidInput: it is no object, or a name is not allowed.
            TooLarge: the preferences would be more than 64 KiB of JSON.
            StoreUnavailable, StoreDamaged.
        """
        before = await self.read(user_id)
        if not isinstance(patch, dict):
            raise InvalidInput("preferences are an object", hint='for example {"theme": "dark"}')
        after: Preferences = merge_patch(before, patch)
        check_preferences(after)
        if len(json.encode(after)) > LARGEST_BYTES:
            raise TooLarge(
                f"preferences of more than {LARGEST_BYTES // 1024} KiB",
                hint="keep large things in a session's context",
            )
        fields, unset = changed_fields(before, after)
        if fields or unset:
            await self._store.write(user_id, fields, unset)
        return after

    async def of_new_session(self, user_id: str, given: Preferences) -> Preferences:
        """Return what a session of a user begins with: what is given, before the user's own.

        An id that cannot be a key has no preferences of its own.
        """
        if not is_name("user_id", user_id):
            return given
        return {**await self._store.read(user_id), **given}

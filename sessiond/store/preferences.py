"""The preferences of users in Redis: what their new sessions begin with."""

from __future__ import annotations

from typing import Any

import msgspec
from redis.asyncio import Redis

from sessiond.codec import json
from sessiond.errors import StoreDamaged
from sessiond.model import Preferences
from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.store.scripts import CHANGE_PREFERENCES
from sessiond.sync.preferences import PreferenceChanges, changes_of

_CHANGES = msgspec.json.Decoder(PreferenceChanges)


class PreferenceStore:
    """Reads and writes of one Redis. Every method may raise StoreUnavailable.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def read(self, user_id: str) -> PreferenceChanges:
        """Return what a user's preferences are made of; nothing of somebody unknown.

        Raises:
            StoreDamaged: the keys hold something else.
        """
        preferences, changes = self._names(user_id)
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hgetall(preferences)
            pipeline.hget(changes, "changes")
            fields, made_of = await answered(pipeline.execute())
        try:
            found: Preferences = {
                name.decode(): msgspec.json.decode(value) for name, value in fields.items()
            }
            return _CHANGES.decode(made_of) if made_of else changes_of(found)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StoreDamaged(
                f"the preferences of {user_id!r} are damaged: {error}",
                hint="look at them with `sessiond redis cat`",
            ) from error

    async def replace(
        self, user_id: str, before: PreferenceChanges, after: PreferenceChanges
    ) -> bool:
        """Put a user's preferences in the place of those that were read, all at once.

        Returns:
            Whether they were still the ones that were read; else nothing is done.
        """
        words: list[Any] = []
        for name, value in after.preferences().items():
            words += [name, json.encode(value)]
        read = str(before.position) if before.writes else ""
        return bool(
            await answered(
                CHANGE_PREFERENCES.run(
                    self._redis.execute_command,
                    self._names(user_id),
                    [read, str(after.position), json.encode(after), *words],
                )
            )
        )

    def _names(self, user_id: str) -> tuple[str, str]:
        return self._keys.user_preferences(user_id), self._keys.user_changes(user_id)

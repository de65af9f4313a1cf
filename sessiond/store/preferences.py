"""The preferences of users in Redis: what their new sessions begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from redis.asyncio import Redis

from sessiond.codec import json
from sessiond.errors import StoreDamaged
from sessiond.store.connection import answered
from sessiond.store.keys import Keys


class PreferenceStore:
    """Reads and writes of one Redis. Every method may raise StoreUnavailable.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def read(self, user_id: str) -> dict[str, Any]:
        """Return a user's preferences; none of somebody unknown.

        Raises:
            StoreDamaged: the key holds something else.
        """
        fields = await answered(self._redis.hgetall(self._keys.user_preferences(user_id)))
        try:
            return {name.decode(): msgspec.json.decode(value) for name, value in fields.items()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StoreDamaged(
                f"the preferences of {user_id!r} are damaged: {error}",
                hint="look at them with `sessiond redis cat`",
            ) from error

    async def write(self, user_id: str, fields: Mapping[str, Any], unset: Iterable[str]) -> None:
        """Set fields and remove others, all at once."""
        key = self._keys.user_preferences(user_id)
        removed = list(unset)
        words: list[str | bytes] = []
        for name, value in fields.items():
            words += [name, json.encode(value)]
        async with self._redis.pipeline(transaction=True) as pipeline:
            if words:
                pipeline.execute_command("HSET", key, *words)
            if removed:
                pipeline.hdel(key, *removed)
            await answered(pipeline.execute())

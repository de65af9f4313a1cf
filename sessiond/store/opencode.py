"""What the opencode integration keeps in Redis beside the log, and asks of it."""

from __future__ import annotations

import contextlib

import msgspec
from redis.asyncio import Redis

from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.store.recall import Recall
from sessiond.sync.unlogged import MARK


def outbox_mark(replica: str) -> str:
    """Return the name under which is kept how far a replica's own log is written."""
    return f"{MARK}{replica}"


class OpencodeStore:
    """Reads and writes of one Redis. Every method may raise StoreUnavailable.

    Args:
        redis: client for commands.
        keys: names of the keys.
        recall: brings archived sessions back.
    """

    def __init__(self, redis: Redis, keys: Keys, recall: Recall) -> None:
        self._redis = redis
        self._keys = keys
        self._recall = recall

    async def written_up_to(self, session_id: str, replica: str) -> int | None:
        """Return the sequence in opencode's log up to which a replica's events are written."""
        key = self._keys.applied(session_id)
        value = await answered(self._redis.hget(key, outbox_mark(replica)))
        if value is None and await self._recall(session_id):
            value = await answered(self._redis.hget(key, outbox_mark(replica)))
        return int(value) if value is not None and value.isdigit() else None

    async def message_ids(self, session_id: str) -> set[str]:
        """Return the ids of all messages a session ever had."""
        key = self._keys.messages(session_id)
        ids = await answered(self._redis.hkeys(key))
        if not ids and await self._recall(session_id):
            ids = await answered(self._redis.hkeys(key))
        return {message_id.decode() for message_id in ids}

    async def context_fields(self, session_ids: list[str], field: str) -> dict[str, bytes]:
        """Return one field of the sessions' contexts, undecoded, where there is one.

        Archived sessions have none, and stay archived.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            for session_id in session_ids:
                pipeline.hget(self._keys.document(session_id, "context"), field)
            values = await answered(pipeline.execute(raise_on_error=False))
        pairs = zip(session_ids, values, strict=True)
        return {session_id: value for session_id, value in pairs if isinstance(value, bytes)}

    async def server_ms(self) -> int:
        """Return the server's time in milliseconds since 1970."""
        seconds, micros = await answered(self._redis.time())
        return int(seconds) * 1000 + int(micros) // 1000

    async def beat(self, instances: dict[str, bytes]) -> None:
        """Write down what is to be known of attached instances: name → JSON."""
        fields = [word for pair in instances.items() for word in pair]
        await answered(self._redis.execute_command("HSET", self._keys.opencodes, *fields))

    async def leave(self, names: list[str]) -> None:
        """Take instances off the list."""
        if names:
            await answered(self._redis.hdel(self._keys.opencodes, *names))

    async def instances(self) -> dict[str, dict[str, object]]:
        """Return what is known of attached instances; damaged entries are passed over."""
        found = {}
        for name, value in (await answered(self._redis.hgetall(self._keys.opencodes))).items():
            with contextlib.suppress(msgspec.DecodeError):
                found[name.decode()] = msgspec.json.decode(value, type=dict[str, object])
        return found

"""Putting something else in the place of a session's keys: all at once, or nothing.

What is to stand there is prepared under names of its own first; then one script compares the
session with what the repair was made from, moves the old keys aside and the new ones in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.store.connection import answered
from sessiond.store.content import Hash, Stream
from sessiond.store.keys import Keys
from sessiond.store.scripts import SWAP

_PREPARED_MS = 10 * 60 * 1000
_AT_ONCE = 500


class Standing(Struct, frozen=True):
    """What a session was when it was looked at: any write changes it.

    `conversation`: its last id and its length.
    """

    types: Mapping[str, str]
    position: tuple[str, str]
    conversation: tuple[str, int]


class Replacement(Struct, frozen=True):
    """What takes the place of a key: a hash, a stream, or None for nothing.

    `key` is its whole name, `kind` the last word of those that it gets meanwhile.
    """

    key: str
    kind: str
    content: Hash | Stream | None


class RepairStore:
    """Replaces keys of sessions.

    Args:
        redis: client for commands.
        keys: names of the keys.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def standing(self, session_id: str, types: Mapping[str, str]) -> Standing:
        """Return what a session of these types of keys is now."""
        position, conversation = ("", ""), ("", 0)
        if types.get("metadata") == "hash":
            key = self._keys.metadata(session_id)
            epoch, version = await answered(self._redis.hmget(key, ["epoch", "version"]))
            position = (_text(epoch), _text(version))
        if types.get("conversation") == "stream":
            key = self._keys.conversation(session_id)
            newest = await answered(
                self._redis.execute_command("XREVRANGE", key, "+", "-", "COUNT", 1)
            )
            length = await answered(self._redis.xlen(key))
            conversation = (_text(newest[0][0]) if newest else "", length)
        return Standing(types, position, conversation)

    async def replace(
        self,
        session_id: str,
        standing: Standing,
        replacements: Sequence[Replacement],
        time: str,
    ) -> bool:
        """Replace keys at once, and keep the old ones in quarantine.

        Args:
            session_id: whose keys they are.
            standing: what the session must be still.
            replacements: the keys; none twice.
            time: the word that the names in quarantine carry.

        Returns:
            Whether it was done: somebody may have written meanwhile.
        """
        names = [self._keys.metadata(session_id), self._keys.conversation(session_id)]
        verbs = []
        for each in replacements:
            prepared = self._keys.repair(session_id, each.kind)
            names += [each.key, prepared, self._keys.quarantine(session_id, time, each.kind)]
            verbs.append("put" if each.content else "move")
            await self._prepare(prepared, each.content)
        arguments = [
            standing.types.get("metadata", "none"),
            *standing.position,
            standing.types.get("conversation", "none"),
            *standing.conversation,
            *verbs,
        ]
        done = await answered(SWAP.run(self._redis.execute_command, names, arguments))
        return bool(done)

    async def list(self, session_id: str, workspace: str, active_ms: int) -> None:
        """Enter a session in the indexes, unless it stands there with a later activity."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for index in (self._keys.sessions, self._keys.workspace(workspace)):
                pipeline.zadd(index, {session_id: active_ms}, gt=True)
            await answered(pipeline.execute())

    async def _prepare(self, name: str, content: Hash | Stream | None) -> None:
        await answered(self._redis.delete(name))
        if not content:
            return
        commands: list[list[Any]]
        if isinstance(content, dict):
            commands = [["HSET", name, field, value] for field, value in content.items()]
        else:
            commands = [["XADD", name, place, *fields] for place, fields in content]
        commands.append(["PEXPIRE", name, _PREPARED_MS])
        for start in range(0, len(commands), _AT_ONCE):
            async with self._redis.pipeline(transaction=False) as pipeline:
                for command in commands[start : start + _AT_ONCE]:
                    pipeline.execute_command(*command)
                await answered(pipeline.execute())


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "surrogateescape")

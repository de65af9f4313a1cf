"""The janitor of one Redis: who may clean up now, and when that was done last."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.errors import StoreDamaged
from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.store.scripts import JANITOR

_Verb = Literal["begin", "renew", "finish", "look"]


class JanitorState(Struct, frozen=True):
    """What the server answered: was it granted, who is the janitor, and when was it done last.

    `token` grows with every janitor. `until_ms`, `now_ms` and `finished_ms` are the server's time;
    `instance` is empty for nobody, `finished_ms` None for never. `report` is undecoded.
    """

    granted: bool
    token: int
    until_ms: int
    now_ms: int
    instance: str
    finished_ms: int | None
    report: bytes


class JanitorStore:
    """The right to clean up one Redis. Every method may raise StoreUnavailable.

    Args:
        redis: client for commands.
        keys: names of the keys.
        life_ms: how long the right lasts without a renewal.
    """

    def __init__(self, redis: Redis, keys: Keys, life_ms: int) -> None:
        self._redis = redis
        self._keys = keys
        self.life_ms = life_ms

    async def begin(self, instance: str, at_least_ms: int = 0) -> JanitorState:
        """Become the janitor, if nobody is, and if the last clean-up is over for so long."""
        return await self._ask("begin", instance, last=at_least_ms)

    async def renew(self, token: int) -> JanitorState:
        """Stay the janitor."""
        return await self._ask("renew", token=token)

    async def finish(self, token: int, report: bytes) -> JanitorState:
        """Note what was done, and be the janitor no more."""
        return await self._ask("finish", token=token, last=report)

    async def look(self) -> JanitorState:
        """Return who is the janitor, and when it was done last."""
        return await self._ask("look")

    async def _ask(
        self, verb: _Verb, instance: str = "", *, token: int = 0, last: int | bytes = 0
    ) -> JanitorState:
        reply = await answered(
            JANITOR.run(
                self._redis.execute_command,
                [self._keys.janitor],
                [verb, instance, self.life_ms, token, last],
            )
        )
        granted, held, until_ms, now_ms, by, finished_ms, report = reply
        try:
            finished = int(finished_ms) if finished_ms else None
            return JanitorState(granted == 1, held, until_ms, now_ms, by.decode(), finished, report)
        except ValueError as error:
            raise StoreDamaged(
                "the key of the janitor is damaged", hint=f"remove {self._keys.janitor!r}"
            ) from error

"""The turn leases in Redis: who may run the next turn of a session."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.errors import StoreDamaged
from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.store.scripts import LEASE

Verb = Literal["acquire", "renew", "release"]


class LeaseState(Struct, frozen=True):
    """What the server answered: was it granted, and who holds the lease now.

    `token` grows with every new holder; `since_ms` is the server's time; nobody holds it when
    `instance` is empty.
    """

    granted: bool
    token: int
    instance: str
    machine: str
    since_ms: int


class LeaseStore:
    """Leases of one Redis.

    Args:
        redis: client for commands.
        keys: names of the keys.
        ttl_ms: how long a lease lasts without a renewal.
    """

    def __init__(self, redis: Redis, keys: Keys, ttl_ms: int) -> None:
        self._redis = redis
        self._keys = keys
        self.ttl_ms = ttl_ms

    async def ask(
        self, verb: Verb, session_id: str, instance: str, machine: str, token: int = 0
    ) -> LeaseState:
        """Acquire, renew or release the lease of a session.

        An instance that holds it already is granted it again, with the same token.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        reply = await answered(
            LEASE.run(
                self._redis.execute_command,
                [self._keys.lease(session_id)],
                [verb, instance, machine, self.ttl_ms, token],
            )
        )
        try:
            granted, held, by, on, since = reply
            return LeaseState(granted == 1, int(held), by.decode(), on.decode(), int(since))
        except (ValueError, AttributeError) as error:
            raise StoreDamaged(f"the lease of session {session_id!r} is damaged") from error

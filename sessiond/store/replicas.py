"""Replicas that confirm what was written, before it is acknowledged (`redis.durability: replica`).

Each script call is followed by WAIT, in one round trip. A replica that does not confirm in time
never blocks a writer: the write is there, its acknowledgement is *degraded*, and from then on
nobody waits. One probe at a time asks on a connection of its own, again and again; once it is
confirmed, so is everything that was written before it, and writes wait again.

WAIT speaks for the last write of its connection. From Redis 7.2 on, a call that changed nothing
is no write, so it says nothing of a duplicate whose first try went another way: for that there is
`confirm`, which writes first. PUBLISH is the write: replicas get it, and it leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from msgspec import Struct
from redis.exceptions import RedisError, ResponseError

from sessiond.store.connection import OrderedConnection, OrderedConnections

_RECHECK_SECONDS = 1.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Acknowledged(Struct, frozen=True):
    """What a script answered. `degraded`: fewer replicas than wanted confirmed its writes."""

    answer: Any
    degraded: bool


class ReplicaAcks:
    """Sends scripts and tells whether replicas have what they wrote.

    Args:
        connections: those of the commit path.
        own: a connection for probes, which may wait without holding up a write.
        channel: where probes publish; nobody listens.
        wanted: replicas that are to confirm a write.
        wait_seconds: how long they may take.
        clock: milliseconds since 1970.
        sleep: how to pause between probes.
    """

    def __init__(
        self,
        connections: OrderedConnections,
        own: OrderedConnection,
        channel: str,
        *,
        wanted: int,
        wait_seconds: float,
        clock: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.wanted = wanted
        self.degraded_since: int | None = None
        """Milliseconds since 1970; None while replicas confirm."""
        self.degraded_writes = 0
        """Groups acknowledged without enough replicas, in this life of the process."""
        self._connections = connections
        self._own = own
        self._channel = channel
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._sleep = sleep
        self._recovery: asyncio.Task[None] | None = None

    async def execute(self, command: str, script: str, count: int, *arguments: Any) -> Acknowledged:
        """Send EVAL or EVALSHA with at least one key, and wait for the replicas.

        Raises:
            redis.exceptions.RedisError: as OrderedConnection.execute does. Replicas that do not
                confirm are no error.
        """
        connection = self._connections.of(arguments[0])
        call = (command, script, count, *arguments)
        if self.degraded_since is not None:
            return Acknowledged(await connection.execute(*call), degraded=True)
        answer, confirmed = await connection.execute_together(
            call, self._wait(), patience_seconds=self._wait_seconds
        )
        if isinstance(answer, ResponseError):
            raise answer
        if self._is_enough(confirmed):
            return Acknowledged(answer, degraded=False)
        self._begin_degraded()
        await connection.close()  # calls behind this one would each wait as long; they are repeated
        return Acknowledged(answer, degraded=True)

    async def confirm(self) -> bool:
        """Tell whether enough replicas have all that was written until now.

        Raises:
            redis.exceptions.RedisError: nobody knows, or this user may not ask.
        """
        published, confirmed = await self._own.execute_together(
            ("PUBLISH", self._channel, ""), self._wait(), patience_seconds=self._wait_seconds
        )
        for answer in (published, confirmed):
            if isinstance(answer, ResponseError):
                raise answer
        return self._is_enough(confirmed)

    async def has_confirmed(self) -> bool:
        """Tell it as `confirm` does; without an answer nobody knows, which is a no.

        After a no, acknowledgements are degraded.
        """
        confirmed = False
        with contextlib.suppress(RedisError):
            confirmed = await self.confirm()
        if not confirmed:
            self._begin_degraded()
        return confirmed

    async def check(self) -> None:
        """Look now, so that the first write need not find out.

        Raises:
            redis.exceptions.RedisError: see `confirm`.
        """
        if self.degraded_since is None and not await self.confirm():
            self._begin_degraded()

    async def close(self) -> None:
        """Stop probing."""
        if self._recovery:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        await self._own.close()

    def _wait(self) -> tuple[str, int, int]:
        return ("WAIT", self.wanted, max(1, round(self._wait_seconds * 1000)))

    def _is_enough(self, confirmed: Any) -> bool:
        return isinstance(confirmed, int) and confirmed >= self.wanted

    def _begin_degraded(self) -> None:
        if self.degraded_since is None:
            self.degraded_since = self._clock()
            self._recovery = asyncio.create_task(self._recover())
            _log.warning("replicas.degraded", wanted=self.wanted)

    async def _recover(self) -> None:
        """Probe until replicas confirm again; what fails meanwhile is a reason to go on."""
        confirmed = False
        while not confirmed:
            await self._sleep(_RECHECK_SECONDS)
            with contextlib.suppress(RedisError, OSError):
                confirmed = await self.confirm()
        seconds = round((self._clock() - (self.degraded_since or 0)) / 1000, 1)
        _log.info("replicas.confirming", seconds=seconds, count=self.degraded_writes)
        self.degraded_since = None

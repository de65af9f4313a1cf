"""The bus: wake-ups from Redis pub/sub, over one connection for the whole process.

Pub/sub forgets: what is published while a connection is down, or while a slow reader is being
cut, is gone without a sign. The one sign is another confirmation of the subscription, so every
confirmation is handed on as a gap, and listeners look into the log for what they missed. A
connection that went silent is found by a ping that is not answered.

One task connects, subscribes anew and reads. Everybody else only writes to the connection it has:
the client's own PubSub lets any caller reconnect, and two at once read each other's replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from sessiond.errors import StoreUnavailable

Listener = Callable[[bytes | None], None]
"""Takes a message of its channel, or None for a gap: something may have been missed."""

_PING_SECONDS = 2.0
_CONFIRMATION_SECONDS = 3.0
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0


class Bus:
    """Subscriptions of one process.

    Args:
        redis: a client without a read timeout (see `connect_subscriber`).
    """

    def __init__(self, redis: Redis) -> None:
        self.connected = True
        self._pool = redis.connection_pool
        self._connection: AbstractConnection | None = None
        self._listeners: dict[str, set[Listener]] = {}
        self._confirmed: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = True
        patience = self._pool.connection_kwargs.get("socket_connect_timeout")
        self._patience_seconds = float(patience or _CONFIRMATION_SECONDS)

    async def listen(self, channel: str, listener: Listener) -> None:
        """Subscribe; when this returns, no later message of the channel is missed unnoticed.

        Raises:
            StoreUnavailable: Redis did not confirm the subscription in time.
        """
        first = channel not in self._listeners
        self._listeners.setdefault(channel, set()).add(listener)
        confirmed = self._confirmed.setdefault(channel, asyncio.Event())
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._ping())]
        elif first:
            await self._send("SUBSCRIBE", channel)
        try:
            async with asyncio.timeout(self._patience_seconds):
                await confirmed.wait()
        except BaseException as error:
            await self.leave(channel, listener)
            if isinstance(error, TimeoutError):
                raise StoreUnavailable("Redis does not confirm the subscription") from error
            raise

    async def leave(self, channel: str, listener: Listener) -> None:
        """Take a listener off; the last one's leaving ends the subscription."""
        listeners = self._listeners.get(channel, set())
        listeners.discard(listener)
        if channel in self._listeners and not listeners:
            del self._listeners[channel], self._confirmed[channel]
            await self._send("UNSUBSCRIBE", channel)

    async def close(self) -> None:
        """End all subscriptions."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self) -> None:
        """Keep a connection, subscribed to every channel that somebody listens to."""
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            try:
                async with asyncio.timeout(self._patience_seconds):
                    await connection.connect()
                self._connection = connection
                if self._listeners:
                    await self._send("SUBSCRIBE", *self._listeners)
                while True:
                    self._hand_on(await connection.read_response(timeout=math.inf))
                    self.connected = self._heard = True
                    pause = 0.0
            except (RedisError, OSError):
                self.connected = False
                pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause or _FIRST_PAUSE_SECONDS)
            finally:
                self._connection = None
                await connection.disconnect(nowait=True)

    async def _send(self, *command: str) -> None:
        """Send a command on the connection there is; without one, `_run` makes it good."""
        connection = self._connection
        if connection is not None and connection.is_connected:
            with contextlib.suppress(RedisError, OSError):
                await connection.send_command(*command, check_health=False)

    def _hand_on(self, reply: Any) -> None:
        if not isinstance(reply, list) or reply[0] not in (b"message", b"subscribe"):
            return
        channel = reply[1].decode()
        confirmation = reply[0] == b"subscribe"
        if confirmation and channel in self._confirmed:
            self._confirmed[channel].set()
        for listener in list(self._listeners.get(channel, ())):
            listener(None if confirmation else reply[2])

    async def _ping(self) -> None:
        while True:
            self._heard = False
            asked = self._connection
            await self._send("PING")
            await asyncio.sleep(_PING_SECONDS)
            if asked is not None and asked is self._connection and not self._heard:
                await asked.disconnect(nowait=True)

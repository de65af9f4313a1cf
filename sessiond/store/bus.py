"""The bus: wake-ups from Redis pub/sub, over one connection for the whole process.

Pub/sub forgets: what is published while a connection is down, or while a slow reader is being
cut, is gone without a sign. The one sign is another confirmation of the subscription, so every
confirmation is handed on as a gap, and listeners look into the log for what they missed. A
connection that went silent is found by a ping that is not answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from sessiond.errors import StoreUnavailable
from sessiond.store.connection import translate

Listener = Callable[[bytes | None], None]
"""Takes a message of its channel, or None for a gap: something may have been missed."""

_PING_SECONDS = 5.0
_CONFIRMATION_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 1.0


class Bus:
    """Subscriptions of one process.

    Args:
        redis: a client for pub/sub (see `connect_subscriber`).
    """

    def __init__(self, redis: Redis) -> None:
        self._pubsub = redis.pubsub()
        self._listeners: dict[str, set[Listener]] = {}
        self._confirmed: dict[str, asyncio.Event] = {}
        self._reader: asyncio.Task[None] | None = None
        self._pinger: asyncio.Task[None] | None = None
        self._heard = self._asked = False
        self.connected = True

    async def listen(self, channel: str, listener: Listener) -> None:
        """Subscribe; when this returns, no later message of the channel is missed unnoticed.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        first = channel not in self._listeners
        self._listeners.setdefault(channel, set()).add(listener)
        if first:
            self._confirmed[channel] = asyncio.Event()
            try:
                await self._pubsub.subscribe(channel)
            except RedisError as error:
                await self.leave(channel, listener)
                raise translate(error) from error
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
            self._pinger = asyncio.create_task(self._ping())
        try:
            async with asyncio.timeout(_CONFIRMATION_SECONDS):
                await self._confirmed[channel].wait()
        except TimeoutError as error:
            await self.leave(channel, listener)
            raise StoreUnavailable("Redis does not confirm the subscription") from error

    async def leave(self, channel: str, listener: Listener) -> None:
        """Take a listener off; the last one's leaving ends the subscription."""
        listeners = self._listeners.get(channel)
        if listeners is None:
            return
        listeners.discard(listener)
        if not listeners:
            del self._listeners[channel], self._confirmed[channel]
            with contextlib.suppress(RedisError, OSError):
                await self._pubsub.unsubscribe(channel)

    async def close(self) -> None:
        """End all subscriptions."""
        for task in (self._reader, self._pinger):
            if task:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._pubsub.aclose()

    async def _read(self) -> None:
        pause = 0.0
        while True:
            try:
                if pause:
                    await asyncio.sleep(pause)
                    await self._pubsub.connect()
                message = await self._pubsub.get_message(timeout=None)
            except (RedisError, OSError):
                self.connected = False
                pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause or 0.02)
                continue
            pause = 0.0
            self._heard = self.connected = True
            if message is not None:
                self._hand_on(message)

    def _hand_on(self, message: dict[str, Any]) -> None:
        if message["type"] not in ("message", "subscribe"):
            return
        channel = message["channel"].decode()
        listeners = self._listeners.get(channel, set())
        confirmation = message["type"] == "subscribe"
        if confirmation and channel in self._confirmed:
            self._confirmed[channel].set()
        for listener in list(listeners):
            listener(None if confirmation else message["data"])

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(_PING_SECONDS)
            heard, self._heard = self._heard, False
            if not self._pubsub.subscribed:
                continue
            with contextlib.suppress(RedisError, OSError):
                if not heard and self._asked:
                    await self._disconnect()
                self._asked = True
                await self._pubsub.ping()

    async def _disconnect(self) -> None:
        connection: Any = self._pubsub.connection
        if connection is not None:
            await connection.disconnect(nowait=True)

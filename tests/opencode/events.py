"""What `/global/event` shows, collected."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class SeenEvent:
    """One event. `at` is when it came, in seconds of `time.time()`; `directory` the instance's."""

    at: float
    directory: str
    id: str
    type: str
    properties: dict[str, Any]

    @property
    def session(self) -> str:
        """The session it is about, if any."""
        info = self.properties.get("info") or {}
        return str(self.properties.get("sessionID") or info.get("id") or "")


class Events:
    """The events since the stream was opened, in their order.

    `seen` are those that hooks get too; `logged` the durable ones once more as opencode's log
    has them, with their `seq`.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.seen: list[SeenEvent] = []
        self.logged: list[dict[str, Any]] = []
        self._connected = asyncio.Event()
        self._changed = asyncio.Condition()
        self._response = response
        self._task = asyncio.create_task(self._collect())

    async def connected(self) -> None:
        """Return when opencode has confirmed that nothing is missed from here on."""
        await asyncio.wait_for(self._connected.wait(), PATIENCE_SECONDS)

    def close(self) -> None:
        self._task.cancel()
        self._response.close()

    def of(self, *types: str, session: str = "") -> list[SeenEvent]:
        """Return the events of these types, of any session or of one."""
        return [e for e in self.seen if e.type in types and session in ("", e.session)]

    def types(self, session: str = "") -> list[str]:
        """Return the types of the events, of any session or of one."""
        return [event.type for event in self.seen if session in ("", event.session)]

    async def wait_for(
        self, wanted: Callable[[SeenEvent], bool], seconds: float = PATIENCE_SECONDS
    ) -> SeenEvent:
        """Return the first event that is wanted, of the past or to come.

        Raises:
            AssertionError: there was none in time.
        """
        next_one = 0

        async def search() -> SeenEvent:
            nonlocal next_one
            async with self._changed:
                while True:
                    for event in self.seen[next_one:]:
                        if wanted(event):
                            return event
                    next_one = len(self.seen)
                    await self._changed.wait()

        try:
            return await asyncio.wait_for(search(), seconds)
        except TimeoutError:
            raise AssertionError(f"no such event in {seconds} s; seen: {self.types()}") from None

    async def wait_for_type(self, type_: str, session: str = "") -> SeenEvent:
        """Return the first event of a type."""
        return await self.wait_for(lambda e: e.type == type_ and session in ("", e.session))

    async def _collect(self) -> None:
        async for data in _messages(self._response):
            await self._take(json.loads(data), time.time())

    async def _take(self, event: dict[str, Any], at: float) -> None:
        payload = event["payload"]
        if payload["type"] == "server.connected":
            self._connected.set()
        elif payload["type"] == "sync":
            self.logged.append(payload["syncEvent"])
        elif payload["type"] not in _NOISE:
            async with self._changed:
                self.seen.append(
                    SeenEvent(
                        at=at,
                        directory=event.get("directory", ""),
                        id=payload.get("id", ""),
                        type=payload["type"],
                        properties=payload.get("properties", {}),
                    )
                )
                self._changed.notify_all()


_NOISE = ("server.heartbeat", "plugin.added")


async def _messages(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the data of a stream of server-sent events; a message may be of any length."""
    rest = b""
    try:
        async for chunk in response.content.iter_any():
            *complete, rest = (rest + chunk).split(b"\n\n")
            for message in complete:
                if message.startswith(b"data:"):
                    yield message[5:]
    except aiohttp.ClientError:
        return  # opencode was killed

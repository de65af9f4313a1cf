"""Observers and writers of the system tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from sessiond.client import DaemonClient
from sessiond.errors import SessiondError
from sessiond.model import NewMessage, Operation, Written
from sessiond.service.status import Status


class Observer:
    """Watches a session through one daemon, reconnecting, and keeps what it saw."""

    def __init__(self, client: DaemonClient, session_id: str) -> None:
        self.operations: list[Operation] = []
        self.names: list[str] = []
        self._client = client
        self._session_id = session_id
        self._task: asyncio.Task[None] | None = None

    async def start(self, after: str = "0") -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch(after))

    async def stop(self) -> None:
        """Watch no more."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def until(self, count: int, seconds: float = 30) -> None:
        """Return when so many operations were seen."""
        deadline = time.monotonic() + seconds
        while len(self.operations) < count:
            assert time.monotonic() < deadline, f"saw {len(self.operations)} of {count}"
            assert self._task
            assert not self._task.done(), self._task
            await asyncio.sleep(0.01)

    @property
    def offsets(self) -> list[int]:
        """The offsets seen, in order of arrival."""
        return [int(each.position.partition(":")[2]) for each in self.operations]

    async def _watch(self, after: str) -> None:
        path = f"/v1/sessions/{self._session_id}/events"
        async for event in self._client.stream(path, after):
            self.names.append(event.name)
            if event.name not in ("live", "journaled", "reset"):
                self.operations.append(msgspec.json.decode(event.data, type=Operation))


async def append_surely(
    client: DaemonClient, session_id: str, content: str, *, seconds: float = 30
) -> Written:
    """Append a message as a careful client does: the same key until there is an answer."""
    deadline = time.monotonic() + seconds
    message = NewMessage(role="user", content=content)
    while True:
        try:
            return await client.append(session_id, [message], key=f"key-{content}")
        except SessiondError as error:
            if not error.temporary or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


async def settled(client: DaemonClient, seconds: float = 20) -> None:
    """Return when everything that a daemon acknowledged is in Redis."""

    async def is_settled() -> bool:
        status: Status
        status, _ = await client.call("GET", "/v1/status", Status)
        return status.outbox.waiting == 0 and status.outbox.journal.pending == 0

    await until(is_settled, seconds)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    """Return when a condition holds that nobody tells of."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)

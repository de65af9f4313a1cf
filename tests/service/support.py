"""What the tests of the services share: sessions as programs see them, and subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
from msgspec import UNSET

from sessiond.model import MessagePage, NewMessage, NewSession, Operation, Session
from sessiond.service.live.feed import Event
from sessiond.service.live.feeds import Events
from sessiond.sync.position import START, Position
from tests.store.support import PATIENCE_SECONDS, Services, until

_SESSION = msgspec.json.Decoder(Session)
_PAGE = msgspec.json.Decoder(MessagePage)
_OPERATION = msgspec.json.Decoder(Operation)


def said(content: str, message_id: str = "", **more: Any) -> NewMessage:
    return NewMessage(role="user", content=content, id=message_id or UNSET, **more)


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


async def create(core: Services, session_id: str = "ses_1", **more: Any) -> str:
    created = await core.sessions.create(NewSession(session_id=session_id, **more))
    return created.session_id


async def load(core: Services, session_id: str = "ses_1") -> Session:
    return _SESSION.decode(await core.sessions.load(session_id))


async def page(core: Services, after: int = 0, limit: int = 500) -> MessagePage:
    return _PAGE.decode(await core.messages.page("ses_1", after, limit))


def operation(event: Event) -> Operation:
    return _OPERATION.decode(event.data)


def offset(event: Event) -> int:
    return int(operation(event).position.partition(":")[2])


def body(event: Event) -> Any:
    return msgspec.json.decode(event.data)


class Subscriber:
    """What a subscriber was told so far, gathered in the background."""

    def __init__(self, events: Events) -> None:
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.ended = False
        self._moved = asyncio.Event()
        self.task = asyncio.create_task(self._gather(events))

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    @property
    def ids(self) -> list[str]:
        """The record ids of the operations told."""
        return [operation(event).id for event in self.events if "." in event.name]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, looking whenever something was told."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                if self.error:
                    raise self.error
                assert not self.ended, f"ended after {self.names}"
                self._moved.clear()
                await self._moved.wait()

    async def told(self, count: int) -> list[Event]:
        """Wait for this many events."""
        await self.until(lambda: len(self.events) >= count)
        return self.events

    async def end(self) -> None:
        """Wait until the feed ends by itself."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.wait([self.task])
        if self.error:
            raise self.error

    async def _gather(self, events: Events) -> None:
        try:
            async for batch in events:
                self.events += batch
                self._moved.set()
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            self.error = error
        self.ended = True
        self._moved.set()


@asynccontextmanager
async def _subscribed(feed: AbstractAsyncContextManager[Events]) -> AsyncIterator[Subscriber]:
    async with feed as events:
        subscriber = Subscriber(events)
        try:
            yield subscriber
        finally:
            while not subscriber.task.done():  # asyncio.wait_for of Python 3.11 may lose a cancel
                subscriber.task.cancel()
                await asyncio.wait([subscriber.task], timeout=0.1)


@asynccontextmanager
async def watching(
    core: Services, session_id: str = "ses_1", after: Position = START
) -> AsyncIterator[Subscriber]:
    """A subscriber of a session; it may still be reading the past."""
    async with _subscribed(core.feeds.session(session_id, after)) as subscriber:
        yield subscriber


@asynccontextmanager
async def live_from_now(core: Services, session_id: str = "ses_1") -> AsyncIterator[Subscriber]:
    """A subscriber that has read the past of a session and waits for what happens."""
    before = core.feeds.subscribers
    end = (await core.store.end(session_id)).position
    async with watching(core, session_id, end) as subscriber:
        await until(lambda: core.feeds.subscribers > before)
        yield subscriber


@asynccontextmanager
async def watching_workspace(
    core: Services, workspace: str = "default", last_id: str = ""
) -> AsyncIterator[Subscriber]:
    """A subscriber of a workspace that was told its first event."""
    async with _subscribed(core.feeds.workspace(workspace, last_id)) as subscriber:
        yield subscriber


async def cut(core: Services) -> None:
    """End the connection of the bus; on fakeredis, which cannot, only tell of the gap."""
    if core.kind == "fakeredis":
        for listeners in list(core.bus._listeners.values()):
            for listener in list(listeners):
                listener(None)
    else:
        await core.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

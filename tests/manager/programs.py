"""What the tests of the Python API share: what programs see of a session, and lost answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec

from sessiond import Session, SessionManager
from sessiond.backend import Backend
from sessiond.errors import StoreUnavailable
from sessiond.manager.session import Event
from sessiond.model import Operation, Part

Connect = Callable[..., SessionManager]


def text_part(part_id: str, text: str, **more: Any) -> Part:
    return {"id": part_id, "type": "text", "text": text, **more}


def state(session: Session) -> list[Any]:
    """Everything that a program sees of a session."""
    return [
        msgspec.to_builtins(seen)
        for seen in (session.metadata, session.messages, session.context, session.preferences)
    ] + [session.position]


def contents(session: Session) -> list[str]:
    return [message.content for message in session.messages]


async def log_of(session: Session) -> list[Operation]:
    return (await session._backend.operations(session.id)).operations


@asynccontextmanager
async def following(session: Session, after: str | None = None) -> AsyncIterator[list[Event]]:
    """Subscribe, and give the list that events are added to."""
    events: list[Event] = []

    async def follow() -> None:
        async for event in session.subscribe(after=after):
            events.append(event)  # noqa: PERF401 - seen as they come

    task = asyncio.create_task(follow())
    try:
        yield events
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Slow:
    """A backend whose first answer of a call takes so long that something happens meanwhile."""

    def __init__(
        self,
        backend: Backend,
        call: str,
        meanwhile: Callable[[], Awaitable[object]] | None = None,
        *,
        loses: bool = False,
    ) -> None:
        self.backend = backend
        self.call = call
        self.meanwhile = meanwhile
        self.loses = loses

    def __getattr__(self, name: str) -> Any:
        if name != self.call:
            return getattr(self.backend, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            answer = await getattr(self.backend, name)(*args, **kwargs)
            if self.call == name:
                self.call = ""
                if self.meanwhile:
                    await self.meanwhile()
                if self.loses:
                    raise StoreUnavailable("the answer was lost")
            return answer

        return call


def slow(
    manager: SessionManager, call: str, meanwhile: Callable[[], Awaitable[object]]
) -> SessionManager:
    return SessionManager(cast("Backend", Slow(manager._backend, call, meanwhile)))


def forgetting(
    manager: SessionManager, call: str, meanwhile: Callable[[], Awaitable[object]] | None = None
) -> SessionManager:
    return SessionManager(cast("Backend", Slow(manager._backend, call, meanwhile, loses=True)))

"""Sessions directly on Redis, for programs that run without a daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from sessiond.backend import RawEvent
from sessiond.core import Core
from sessiond.model import (
    Document,
    DocumentName,
    MessagePage,
    NewMessage,
    NewSession,
    OperationPage,
    Part,
    Session,
    SessionPage,
    VersionedMessage,
    Written,
    WrittenRecord,
)
from sessiond.service.feeds import Events
from sessiond.service.sessions import Filter
from sessiond.service.writing import Request
from sessiond.sync.position import parse_position

_SESSION = msgspec.json.Decoder(Session)
_MESSAGE_PAGE = msgspec.json.Decoder(MessagePage)
_OPERATION_PAGE = msgspec.json.Decoder(OperationPage)


class DirectBackend:
    """The calls of `backend.Backend`, on the services of this process."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def create(self, new: NewSession, *, key: str = "") -> Session:
        """Create a session."""
        created = await self._core.sessions.create(new, Request(key=key))
        return _SESSION.decode(created.json)

    async def load(self, session_id: str) -> Session:
        """Return a whole session."""
        return _SESSION.decode(await self._core.sessions.load(session_id))

    async def list_sessions(
        self, *, cursor: str | None = None, limit: int = 50, **filters: str
    ) -> SessionPage:
        """Return sessions, the most recently active first."""
        return await self._core.sessions.list_page(Filter(**filters), cursor, limit)

    async def delete(self, session_id: str, *, expected: str = "", key: str = "") -> str:
        """Delete a session and return the position of that."""
        request = Request(key=key, expected=expected)
        return str(await self._core.sessions.delete(session_id, request))

    async def append(
        self, session_id: str, messages: list[NewMessage], *, key: str = ""
    ) -> Written:
        """Append messages as one atomic group."""
        return await self._core.messages.append(session_id, messages, Request(key=key))

    async def page(self, session_id: str, *, after: int = 0, limit: int = 100) -> MessagePage:
        """Return messages first written after an offset."""
        return _MESSAGE_PAGE.decode(await self._core.messages.page(session_id, after, limit))

    async def message(self, session_id: str, message_id: str) -> VersionedMessage:
        """Return one message."""
        return await self._core.messages.read(session_id, message_id)

    async def edit(
        self, session_id: str, message_id: str, patch: Any, *, expected: str = "", key: str = ""
    ) -> WrittenRecord:
        """Apply a merge patch to a message."""
        request = Request(key=key, expected=expected)
        return await self._core.messages.edit(session_id, message_id, patch, request)

    async def remove(
        self, session_id: str, message_id: str, *, expected: str = "", key: str = ""
    ) -> WrittenRecord:
        """Remove a message."""
        request = Request(key=key, expected=expected)
        return await self._core.messages.remove(session_id, message_id, request)

    async def put_part(
        self,
        session_id: str,
        message_id: str,
        part_id: str,
        part: Part,
        *,
        expected: str = "",
        key: str = "",
    ) -> WrittenRecord:
        """Write a part of a message."""
        request = Request(key=key, expected=expected)
        return await self._core.messages.put_part(session_id, message_id, part_id, part, request)

    async def remove_part(
        self,
        session_id: str,
        message_id: str,
        part_id: str,
        *,
        expected: str = "",
        key: str = "",
    ) -> WrittenRecord:
        """Remove a part of a message."""
        request = Request(key=key, expected=expected)
        return await self._core.messages.remove_part(session_id, message_id, part_id, request)

    async def document(self, session_id: str, name: DocumentName) -> Document:
        """Return a document."""
        return await self._core.documents.read(session_id, name)

    async def change_document(
        self,
        session_id: str,
        name: DocumentName,
        patch: Any,
        *,
        replace: bool = False,
        expected: str = "",
        key: str = "",
    ) -> Document:
        """Apply a merge patch to a document, or replace it."""
        request = Request(key=key, expected=expected)
        return await self._core.documents.change(session_id, name, patch, request, replace=replace)

    async def position(self, session_id: str) -> str:
        """Return where the session's log ends."""
        return str(await self._core.sessions.position(session_id))

    async def operations(
        self, session_id: str, *, after: str = "0", limit: int = 500
    ) -> OperationPage:
        """Return a stretch of the log."""
        page = await self._core.sessions.operations(session_id, parse_position(after), limit)
        return _OPERATION_PAGE.decode(page)

    async def send_live(self, session_id: str, body: Any) -> None:
        """Announce something passing."""
        await self._core.sessions.send_live(session_id, body)

    @asynccontextmanager
    async def events(
        self, session_id: str, after: str | None = None
    ) -> AsyncIterator[AsyncIterator[RawEvent]]:
        """Watch a session after a position; None for from now on."""
        position = parse_position(after or await self.position(session_id))
        async with self._core.feeds.session(session_id, position) as events:
            yield _single(events)

    async def close(self) -> None:
        """Let go of connections."""
        await self._core.close()


async def _single(events: Events) -> AsyncIterator[RawEvent]:
    async for batch in events:
        for event in batch:
            yield RawEvent(event.name, event.id, event.data)

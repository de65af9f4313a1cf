"""Sessions directly on Redis, for programs that run without a daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from sessiond.backend import RawEvent
from sessiond.codec import json
from sessiond.core import Core
from sessiond.errors import InvalidInput
from sessiond.model import (
    ArchivedSession,
    CacheAnswers,
    CacheContents,
    CacheDropped,
    CacheLookup,
    CacheStored,
    ChangedFiles,
    Choice,
    ConflictRecord,
    ConflictState,
    Document,
    DocumentName,
    MessagePage,
    NewCacheValue,
    NewMessage,
    NewMessages,
    NewPresence,
    NewSession,
    OperationPage,
    Part,
    Preferences,
    Session,
    SessionPage,
    SessionPresence,
    VersionedMessage,
    Window,
    Written,
    WrittenRecord,
)
from sessiond.policy.caching import checked_key
from sessiond.service.content.sessions import Filter
from sessiond.service.live.feeds import Events
from sessiond.service.retention.archiving import IDLE_SECONDS
from sessiond.service.writing import Request
from sessiond.sync.names import checked, checked_version
from sessiond.sync.position import parse_position

Given = TypeVar("Given")

_NEW_SESSION = msgspec.json.Decoder(NewSession)
_NEW_MESSAGES = msgspec.json.Decoder(NewMessages)
_CHOICE = msgspec.json.Decoder(Choice)
_NEW_PRESENCE = msgspec.json.Decoder(NewPresence)
_LOOKUP = msgspec.json.Decoder(CacheLookup)
_CACHED = msgspec.json.Decoder(NewCacheValue)
_CHANGED = msgspec.json.Decoder(ChangedFiles)
_ANY = msgspec.json.Decoder()
_FILTERS = frozenset(Filter.__struct_fields__)
_LONGEST_LISTING, _LONGEST_PAGE, _LONGEST_LOG = 500, 10_000, 1_000
_SESSION = msgspec.json.Decoder(Session)
_MESSAGE_PAGE = msgspec.json.Decoder(MessagePage)
_OPERATION_PAGE = msgspec.json.Decoder(OperationPage)


class DirectBackend:
    """The calls of `backend.Backend`, on the services of this process."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def create(self, new: NewSession, *, key: str = "") -> Session:
        """Create a session."""
        given = _given(new, _NEW_SESSION)
        created = await self._core.sessions.create(given, _request(key))
        return _SESSION.decode(created.json)

    async def load(self, session_id: str) -> Session:
        """Return a whole session."""
        loaded = await self._core.sessions.load(_session(session_id))
        self._core.note_read(session_id)
        return _SESSION.decode(loaded)

    async def window(
        self, session_id: str, *, tokens: int | None = None, strategy: str | None = None
    ) -> Window:
        """Return what of a conversation fits a window."""
        loaded = await self._core.sessions.load(_session(session_id))
        return await self._core.windows.of(loaded, tokens, strategy)

    async def list_sessions(
        self, *, cursor: str | None = None, limit: int = 50, **filters: str
    ) -> SessionPage:
        """Return sessions, the most recently active first."""
        if unknown := filters.keys() - _FILTERS:
            raise InvalidInput(f"there is no filter {min(unknown)!r}")
        _check_limit(limit, _LONGEST_LISTING)
        return await self._core.sessions.list_page(Filter(**filters), cursor, limit)

    async def delete(
        self, session_id: str, *, expected: str = "", base: str = "", key: str = ""
    ) -> str:
        """Delete a session and return the position of that."""
        request = _request(key, expected, base)
        return str(await self._core.sessions.delete(_session(session_id), request))

    async def archive(self, session_id: str, *, idle_seconds: int | None = None) -> ArchivedSession:
        """Archive a session that nobody has written to for so long; None: some minutes."""
        where, idle = _session(session_id), IDLE_SECONDS if idle_seconds is None else idle_seconds
        return await self._core.archiving.archive(where, idle_seconds=idle)

    async def restore(self, session_id: str) -> ArchivedSession:
        """Bring an archived session back."""
        return await self._core.archiving.restore(_session(session_id))

    async def append(
        self, session_id: str, messages: list[NewMessage], *, key: str = ""
    ) -> Written:
        """Append messages as one atomic group."""
        given = _given(NewMessages(messages=messages), _NEW_MESSAGES).messages
        return await self._core.messages.append(_session(session_id), given, _request(key))

    async def page(self, session_id: str, *, after: int = 0, limit: int = 100) -> MessagePage:
        """Return messages first written after an offset."""
        _check_limit(limit, _LONGEST_PAGE)
        page = await self._core.messages.page(_session(session_id), after, limit)
        self._core.note_read(session_id)
        return _MESSAGE_PAGE.decode(page)

    async def message(self, session_id: str, message_id: str) -> VersionedMessage:
        """Return one message."""
        return await self._core.messages.read(*_message(session_id, message_id))

    async def edit(
        self,
        session_id: str,
        message_id: str,
        patch: Any,
        *,
        expected: str = "",
        base: str = "",
        key: str = "",
    ) -> WrittenRecord:
        """Apply a merge patch to a message."""
        request = _request(key, expected, base)
        return await self._core.records.edit(
            *_message(session_id, message_id), _given(patch, _ANY), request
        )

    async def remove(
        self, session_id: str, message_id: str, *, expected: str = "", base: str = "", key: str = ""
    ) -> WrittenRecord:
        """Remove a message."""
        request = _request(key, expected, base)
        return await self._core.records.remove(*_message(session_id, message_id), request)

    async def put_part(
        self,
        session_id: str,
        message_id: str,
        part_id: str,
        part: Part,
        *,
        expected: str = "",
        base: str = "",
        key: str = "",
    ) -> WrittenRecord:
        """Write a part of a message."""
        request = _request(key, expected, base)
        return await self._core.records.put_part(
            *_part(session_id, message_id, part_id), _given(part, _ANY), request
        )

    async def remove_part(
        self,
        session_id: str,
        message_id: str,
        part_id: str,
        *,
        expected: str = "",
        base: str = "",
        key: str = "",
    ) -> WrittenRecord:
        """Remove a part of a message."""
        request = _request(key, expected, base)
        return await self._core.records.remove_part(
            *_part(session_id, message_id, part_id), request
        )

    async def document(self, session_id: str, name: DocumentName) -> Document:
        """Return a document."""
        return await self._core.documents.read(_session(session_id), name)

    async def change_document(
        self,
        session_id: str,
        name: DocumentName,
        patch: Any,
        *,
        replace: bool = False,
        expected: str = "",
        base: str = "",
        key: str = "",
    ) -> Document:
        """Apply a merge patch to a document, or replace it."""
        request = _request(key, expected, base)
        return await self._core.documents.change(
            _session(session_id), name, _given(patch, _ANY), request, replace=replace
        )

    async def conflicts(
        self, session_id: str | None = None, *, state: ConflictState | None = None
    ) -> list[ConflictRecord]:
        """Return the conflicts of a session, or of all."""
        if session_id is None:
            return await self._core.conflicts.of_all(state)
        return await self._core.conflicts.of_session(_session(session_id), state)

    async def conflict(self, session_id: str, number: str) -> ConflictRecord:
        """Return one conflict."""
        return await self._core.conflicts.read(_session(session_id), checked("conflict", number))

    async def resolve(
        self, session_id: str, number: str, choice: Choice, *, expected: str = "", key: str = ""
    ) -> ConflictRecord:
        """Decide a conflict."""
        return await self._core.conflicts.resolve(
            _session(session_id),
            checked("conflict", number),
            _given(choice, _CHOICE),
            _request(key, expected),
        )

    async def position(self, session_id: str) -> str:
        """Return where the session's log ends."""
        return str(await self._core.sessions.position(_session(session_id)))

    async def operations(
        self, session_id: str, *, after: str = "0", limit: int = 500
    ) -> OperationPage:
        """Return a stretch of the log."""
        _check_limit(limit, _LONGEST_LOG)
        page = await self._core.sessions.operations(
            _session(session_id), parse_position(after), limit
        )
        return _OPERATION_PAGE.decode(page)

    async def user_preferences(self, user_id: str) -> Preferences:
        """Return what new sessions of a user begin with."""
        return await self._core.preferences.read(user_id)

    async def change_user_preferences(self, user_id: str, patch: Any) -> Preferences:
        """Apply a merge patch to it."""
        return await self._core.preferences.change(user_id, _given(patch, _ANY))

    async def send_live(self, session_id: str, body: Any) -> None:
        """Announce something passing."""
        await self._core.sessions.send_live(_session(session_id), _given(body, _ANY))

    async def announce(
        self, session_id: str, instance: str, active_files: list[str]
    ) -> SessionPresence:
        """Say that an instance is at a session, for a while; return who is there."""
        where = _session(session_id), checked("instance", instance)
        new = _given(NewPresence(active_files=active_files), _NEW_PRESENCE)
        return await self._core.presences.announce(*where, new.active_files)

    async def leave(self, session_id: str, instance: str) -> None:
        """Say that an instance is not at a session any more."""
        where = _session(session_id), checked("instance", instance)
        await self._core.presences.leave(*where)

    async def presence(self, session_id: str) -> SessionPresence:
        """Return who is at a session."""
        return await self._core.presences.present(_session(session_id))

    async def look_up_cached(self, session_id: str, lookup: CacheLookup) -> CacheAnswers:
        """Look for what tools answered to calls, and stamps for what is not found."""
        return await self._core.caches.lookup(_session(session_id), _given(lookup, _LOOKUP))

    async def cache(self, session_id: str, key: str, new: NewCacheValue) -> CacheStored:
        """Cache what a tool answered, if the files are as they were at the lookup."""
        where = _session(session_id), checked_key(key)
        return await self._core.caches.put(*where, _given(new, _CACHED))

    async def invalidate_cached(self, session_id: str, paths: list[str]) -> CacheDropped:
        """Drop what depends on files that changed."""
        changed = _given(ChangedFiles(paths=paths), _CHANGED)
        return await self._core.caches.invalidate(_session(session_id), changed.paths)

    async def clear_cached(self, session_id: str) -> CacheDropped:
        """Drop all that a session has cached."""
        return await self._core.caches.clear(_session(session_id))

    async def cached(self, session_id: str) -> CacheContents:
        """Return what a session has cached."""
        return await self._core.caches.contents(_session(session_id))

    @asynccontextmanager
    async def events(
        self, session_id: str, after: str | None = None
    ) -> AsyncIterator[AsyncIterator[RawEvent]]:
        """Watch a session after a position; None for from now on."""
        position = parse_position(after or await self.position(session_id))
        async with self._core.feeds.session(_session(session_id), position) as events:
            self._core.note_read(session_id)
            yield _single(events)

    async def close(self) -> None:
        """Let go of connections."""
        await self._core.close()


async def _single(events: Events) -> AsyncIterator[RawEvent]:
    async for batch in events:
        for event in batch:
            yield RawEvent(event.name, event.id, event.data)


def _given(value: Any, decoder: msgspec.json.Decoder[Given]) -> Given:
    """Return what a program gave as the API would have received it: the same checks, a copy."""
    return json.decode(json.encode_given(value), decoder)


def _request(key: str = "", expected: str = "", base: str = "") -> Request:
    return Request(
        key=checked("Idempotency-Key", key) if key else "",
        expected=checked_version(expected),
        base=checked_version(base),
    )


def _session(session_id: str) -> str:
    return checked("session_id", session_id)


def _message(session_id: str, message_id: str) -> tuple[str, str]:
    return _session(session_id), checked("message_id", message_id)


def _part(session_id: str, message_id: str, part_id: str) -> tuple[str, str, str]:
    return *_message(session_id, message_id), checked("part_id", part_id)


def _check_limit(limit: int, most: int) -> None:
    if not 1 <= limit <= most:
        raise InvalidInput(f"limit is {limit}, expected a whole number from 1 to {most}")

"""What a SessionManager stands on: the same calls through a daemon or directly on Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from msgspec import Struct

from sessiond.model import (
    ArchivedSession,
    CacheAnswers,
    CacheContents,
    CacheDropped,
    CacheLookup,
    CacheStored,
    Choice,
    ConflictRecord,
    ConflictState,
    Document,
    DocumentName,
    MessagePage,
    NewCacheValue,
    NewMessage,
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


class RawEvent(Struct, frozen=True):
    """An event before it is decoded: an operation's name, `live`, `reset` or `positions`."""

    name: str
    id: str
    data: bytes


RawEvents = AbstractAsyncContextManager[AsyncIterator[RawEvent]]


class Backend(Protocol):
    """Sessions, whoever keeps them. All calls raise the errors of `sessiond.errors`.

    `key` is an idempotency key: the same call with the same key is done once. `expected` is the
    only version that may be changed, `base` the one that a change was made on: what others wrote
    since is merged with it. Without either, whatever is current is changed.
    """

    async def create(self, new: NewSession, *, key: str = "") -> Session:
        """Create a session."""

    async def load(self, session_id: str) -> Session:
        """Return a whole session."""

    async def window(
        self, session_id: str, *, tokens: int | None = None, strategy: str | None = None
    ) -> Window:
        """Return what of a conversation fits a window."""

    async def list_sessions(
        self, *, cursor: str | None = None, limit: int = 50, **filters: str
    ) -> SessionPage:
        """Return sessions, the most recently active first."""

    async def delete(
        self, session_id: str, *, expected: str = "", base: str = "", key: str = ""
    ) -> str:
        """Delete a session and return the position of that."""

    async def archive(self, session_id: str, *, idle_seconds: int | None = None) -> ArchivedSession:
        """Archive a session that nobody has written to for so long; None: some minutes."""

    async def restore(self, session_id: str) -> ArchivedSession:
        """Bring an archived session back."""

    async def append(
        self, session_id: str, messages: list[NewMessage], *, key: str = ""
    ) -> Written:
        """Append messages as one atomic group."""

    async def page(self, session_id: str, *, after: int = 0, limit: int = 100) -> MessagePage:
        """Return messages first written after an offset."""

    async def message(self, session_id: str, message_id: str) -> VersionedMessage:
        """Return one message."""

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

    async def remove(
        self, session_id: str, message_id: str, *, expected: str = "", base: str = "", key: str = ""
    ) -> WrittenRecord:
        """Remove a message."""

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

    async def document(self, session_id: str, name: DocumentName) -> Document:
        """Return a document."""

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

    async def conflicts(
        self, session_id: str | None = None, *, state: ConflictState | None = None
    ) -> list[ConflictRecord]:
        """Return the conflicts of a session, or of all: the newest 10,000."""

    async def conflict(self, session_id: str, number: str) -> ConflictRecord:
        """Return one conflict."""

    async def resolve(
        self, session_id: str, number: str, choice: Choice, *, expected: str = "", key: str = ""
    ) -> ConflictRecord:
        """Decide a conflict."""

    async def position(self, session_id: str) -> str:
        """Return where the session's log ends."""

    async def operations(
        self, session_id: str, *, after: str = "0", limit: int = 500
    ) -> OperationPage:
        """Return a stretch of the log."""

    async def user_preferences(self, user_id: str) -> Preferences:
        """Return what new sessions of a user begin with."""

    async def change_user_preferences(self, user_id: str, patch: Any) -> Preferences:
        """Apply a merge patch to it."""

    async def send_live(self, session_id: str, body: Any) -> None:
        """Announce something passing."""

    async def announce(
        self, session_id: str, instance: str, active_files: list[str]
    ) -> SessionPresence:
        """Say that an instance is at a session, for a while; return who is there."""

    async def leave(self, session_id: str, instance: str) -> None:
        """Say that an instance is not at a session any more."""

    async def presence(self, session_id: str) -> SessionPresence:
        """Return who is at a session."""

    async def look_up_cached(self, session_id: str, lookup: CacheLookup) -> CacheAnswers:
        """Look for what tools answered to calls, and stamps for what is not found."""

    async def cache(self, session_id: str, key: str, new: NewCacheValue) -> CacheStored:
        """Cache what a tool answered, if the files are as they were at the lookup."""

    async def invalidate_cached(self, session_id: str, paths: list[str]) -> CacheDropped:
        """Drop what depends on files that changed."""

    async def clear_cached(self, session_id: str) -> CacheDropped:
        """Drop all that a session has cached."""

    async def cached(self, session_id: str) -> CacheContents:
        """Return what a session has cached."""

    def events(self, session_id: str, after: str | None = None) -> RawEvents:
        """Watch a session after a position; None for from now on."""

    async def close(self) -> None:
        """Let go of connections."""

"""A client of the local API, for Python programs and for the command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import msgspec
from msgspec import UNSET, UnsetType

from sessiond.backend import RawEvent
from sessiond.codec import json
from sessiond.errors import BY_CODE, DaemonUnreachable, InvalidInput, SessiondError
from sessiond.model import (
    JOURNALED,
    ArchivedSession,
    CacheAnswers,
    CacheContents,
    CacheDropped,
    CacheLookup,
    CacheStored,
    ChangedFiles,
    Choice,
    ConflictPage,
    ConflictRecord,
    ConflictState,
    Document,
    DocumentName,
    Message,
    MessagePage,
    NewCacheValue,
    NewMessage,
    NewMessages,
    NewPresence,
    NewSession,
    OperationPage,
    Part,
    PositionReply,
    Preferences,
    Problem,
    Session,
    SessionPage,
    SessionPresence,
    VersionedMessage,
    Window,
    Written,
    WrittenRecord,
)
from sessiond.policy.caching import checked_key
from sessiond.sync.names import checked, checked_version

Answer = TypeVar("Answer")
Aged = TypeVar("Aged", Session, SessionPage, MessagePage, Window)

Query = Mapping[str, str | int]

_PROBLEM = msgspec.json.Decoder(Problem)
_RETRY_SECONDS = 0.2
_MOST_CONFLICTS = 10_000
_LONGEST_RETRY_SECONDS = 5.0
_SILENCE_SECONDS = 60.0
_CONNECTION_ERRORS = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)


class DaemonClient:
    """The calls of `backend.Backend`, through a daemon.

    Args:
        socket: path of the daemon's Unix socket; or
        address: `http://127.0.0.1:PORT` of its loopback port, with
        token: the content of its token file.
        name: how the daemon is to name this client in the origin of what it writes.
    """

    def __init__(
        self, *, socket: str = "", address: str = "", token: str = "", name: str = ""
    ) -> None:
        if name:
            checked("client", name)
        self._where = socket or address
        self._base = address.rstrip("/") if address else "http://localhost"
        connector = aiohttp.UnixConnector(socket) if socket else aiohttp.TCPConnector()
        headers = {"Sessiond-Client": name} if name else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=60)
        )

    async def call(
        self,
        method: str,
        path: str,
        kind: type[Answer] | Any,
        *,
        body: Any = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[Answer, str]:
        """Send one request and return its decoded answer and its version (ETag).

        Raises:
            DaemonUnreachable: nobody answers there, or the answer broke off.
            InvalidInput: the address is none.
            SessiondError: what the daemon answered, or that it cannot be understood.
        """
        answer, told = await self._exchange(
            method, path, kind, body=body, query=query, headers=headers
        )
        return answer, _version(told)

    async def _exchange(
        self,
        method: str,
        path: str,
        kind: type[Answer] | Any,
        *,
        body: Any = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[Answer, Mapping[str, str]]:
        """Send one request and return its decoded answer and its headers."""
        data = None if body is None else json.encode_given(body)
        wanted = dict(headers or {})
        if data is not None:
            wanted["Content-Type"] = "application/json"
        try:
            async with self._http.request(
                method, self._base + path, data=data, params=query, headers=wanted
            ) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._understood(error) from error
        if response.status >= 400:  # noqa: PLR2004 - where errors begin
            raise rebuilt(content, response.status)
        answer = msgspec.json.decode(content, type=kind) if content and kind else None
        return answer, response.headers  # type: ignore[return-value]

    async def create(self, new: NewSession, *, key: str = "") -> Session:
        """Create a session."""
        headers = _headers(key=key)
        return (await self.call("POST", "/v1/sessions", Session, body=new, headers=headers))[0]

    async def load(self, session_id: str) -> Session:
        """Return a whole session."""
        return await self._read(_session(session_id), Session)

    async def window(
        self, session_id: str, *, tokens: int | None = None, strategy: str | None = None
    ) -> Window:
        """Return what of a conversation fits a window."""
        wanted = {"tokens": tokens, "strategy": strategy}
        query = {name: value for name, value in wanted.items() if value is not None}
        return await self._read(_session(session_id) + "/window", Window, query)

    async def list_sessions(
        self, *, cursor: str | None = None, limit: int = 50, **filters: str
    ) -> SessionPage:
        """Return sessions, the most recently active first."""
        query: dict[str, str | int] = {**filters, "limit": limit}
        if cursor:
            query["cursor"] = cursor
        return await self._read("/v1/sessions", SessionPage, query)

    async def delete(
        self, session_id: str, *, expected: str = "", base: str = "", key: str = ""
    ) -> str:
        """Delete a session and return the position of that."""
        path, headers = _session(session_id), _headers(key=key, expected=expected, base=base)
        reply: PositionReply = (await self.call("DELETE", path, PositionReply, headers=headers))[0]
        return reply.position

    async def archive(self, session_id: str, *, idle_seconds: int | None = None) -> ArchivedSession:
        """Archive a session that nobody has written to for so long; None: some minutes."""
        path = _session(session_id) + "/archive"
        query: Query = {} if idle_seconds is None else {"idle_seconds": idle_seconds}
        return (await self.call("POST", path, ArchivedSession, query=query))[0]

    async def restore(self, session_id: str) -> ArchivedSession:
        """Bring an archived session back."""
        return (await self.call("POST", _session(session_id) + "/restore", ArchivedSession))[0]

    async def append(
        self, session_id: str, messages: list[NewMessage], *, key: str = ""
    ) -> Written:
        """Append messages as one atomic group."""
        path = _session(session_id) + "/messages"
        body = NewMessages(messages=messages)
        return (await self.call("POST", path, Written, body=body, headers=_headers(key=key)))[0]

    async def page(self, session_id: str, *, after: int = 0, limit: int = 100) -> MessagePage:
        """Return messages first written after an offset."""
        path = _session(session_id) + "/messages"
        query = {"after": after, "limit": limit}
        return await self._read(path, MessagePage, query)

    async def message(self, session_id: str, message_id: str) -> VersionedMessage:
        """Return one message."""
        found: Message
        found, told = await self._exchange("GET", _message(session_id, message_id), Message)
        return VersionedMessage(message=found, version=_version(told), stale_seconds=_stale(told))

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
        path = _message(session_id, message_id)
        return await self._write(
            "PATCH", path, patch, _headers(key=key, expected=expected, base=base)
        )

    async def remove(
        self, session_id: str, message_id: str, *, expected: str = "", base: str = "", key: str = ""
    ) -> WrittenRecord:
        """Remove a message."""
        return await self._write(
            "DELETE",
            _message(session_id, message_id),
            None,
            _headers(key=key, expected=expected, base=base),
        )

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
        path = _part(session_id, message_id, part_id)
        return await self._write("PUT", path, part, _headers(key=key, expected=expected, base=base))

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
        path = _part(session_id, message_id, part_id)
        return await self._write(
            "DELETE", path, None, _headers(key=key, expected=expected, base=base)
        )

    async def document(self, session_id: str, name: DocumentName) -> Document:
        """Return a document."""
        value: Any
        value, told = await self._exchange("GET", _session(session_id) + f"/{name}", Any)
        return Document(name=name, value=value, version=_version(told), stale_seconds=_stale(told))

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
        value: Any
        value, told = await self._exchange(
            "PUT" if replace else "PATCH",
            _session(session_id) + f"/{name}",
            Any,
            body=patch,
            headers=_headers(key=key, expected=expected, base=base),
        )
        version, conflicts = _version(told), told.get("Sessiond-Conflicts")
        return Document(
            name=name,
            value=value,
            version=version,
            conflicts=conflicts.split(", ") if conflicts else UNSET,
            durability=JOURNALED if told.get("Sessiond-Durability") == JOURNALED else UNSET,
        )

    async def conflicts(
        self, session_id: str | None = None, *, state: ConflictState | None = None
    ) -> list[ConflictRecord]:
        """Return the conflicts of a session, or of all: the newest 10,000."""
        path = "/v1/conflicts" if session_id is None else _session(session_id) + "/conflicts"
        query: Query = {"limit": _MOST_CONFLICTS, **({"state": state} if state else {})}
        page: ConflictPage = (await self.call("GET", path, ConflictPage, query=query))[0]
        return page.conflicts

    async def conflict(self, session_id: str, number: str) -> ConflictRecord:
        """Return one conflict."""
        return (await self.call("GET", _conflict(session_id, number), ConflictRecord))[0]

    async def resolve(
        self, session_id: str, number: str, choice: Choice, *, expected: str = "", key: str = ""
    ) -> ConflictRecord:
        """Decide a conflict."""
        path = _conflict(session_id, number) + "/resolution"
        headers = _headers(key=key, expected=expected)
        found: ConflictRecord
        found, _ = await self.call("POST", path, ConflictRecord, body=choice, headers=headers)
        return found

    async def position(self, session_id: str) -> str:
        """Return where the session's log ends."""
        path = _session(session_id) + "/position"
        reply: PositionReply = (await self.call("GET", path, PositionReply))[0]
        return reply.position

    async def operations(
        self, session_id: str, *, after: str = "0", limit: int = 500
    ) -> OperationPage:
        """Return a stretch of the log."""
        path = _session(session_id) + "/operations"
        query: Query = {"after": after, "limit": limit}
        return (await self.call("GET", path, OperationPage, query=query))[0]

    async def user_preferences(self, user_id: str) -> Preferences:
        """Return what new sessions of a user begin with."""
        return (await self.call("GET", _user_preferences(user_id), Preferences))[0]

    async def change_user_preferences(self, user_id: str, patch: Any) -> Preferences:
        """Apply a merge patch to it."""
        path = _user_preferences(user_id)
        return (await self.call("PATCH", path, Preferences, body=patch))[0]

    async def send_live(self, session_id: str, body: Any) -> None:
        """Announce something passing."""
        await self.call("POST", _session(session_id) + "/live", None, body=body)

    async def announce(
        self, session_id: str, instance: str, active_files: list[str]
    ) -> SessionPresence:
        """Say that an instance is at a session, for a while; return who is there."""
        path, body = _instance(session_id, instance), NewPresence(active_files=active_files)
        return (await self.call("PUT", path, SessionPresence, body=body))[0]

    async def leave(self, session_id: str, instance: str) -> None:
        """Say that an instance is not at a session any more."""
        await self.call("DELETE", _instance(session_id, instance), None)

    async def presence(self, session_id: str) -> SessionPresence:
        """Return who is at a session."""
        return (await self.call("GET", _session(session_id) + "/presence", SessionPresence))[0]

    async def look_up_cached(self, session_id: str, lookup: CacheLookup) -> CacheAnswers:
        """Look for what tools answered to calls, and stamps for what is not found."""
        path = _session(session_id) + "/cache/lookup"
        return (await self.call("POST", path, CacheAnswers, body=lookup))[0]

    async def cache(self, session_id: str, key: str, new: NewCacheValue) -> CacheStored:
        """Cache what a tool answered, if the files are as they were at the lookup."""
        path = f"{_session(session_id)}/cache/{checked_key(key)}"
        return (await self.call("PUT", path, CacheStored, body=new))[0]

    async def invalidate_cached(self, session_id: str, paths: list[str]) -> CacheDropped:
        """Drop what depends on files that changed."""
        path, body = _session(session_id) + "/cache/invalidate", ChangedFiles(paths=paths)
        return (await self.call("POST", path, CacheDropped, body=body))[0]

    async def clear_cached(self, session_id: str) -> CacheDropped:
        """Drop all that a session has cached."""
        return (await self.call("DELETE", _session(session_id) + "/cache", CacheDropped))[0]

    async def cached(self, session_id: str) -> CacheContents:
        """Return what a session has cached."""
        return (await self.call("GET", _session(session_id) + "/cache", CacheContents))[0]

    @asynccontextmanager
    async def events(
        self, session_id: str, after: str | None = None
    ) -> AsyncIterator[AsyncIterator[RawEvent]]:
        """Watch a session after a position; None for from now on.

        A lost connection is opened again and resumes where it was; what came twice is dropped
        by the daemon, by position.
        """
        position = after or await self.position(session_id)
        stream = self.stream(_session(session_id) + "/events", position)
        async with aclosing(_until_deleted(stream)) as events, aclosing(stream):
            yield events

    async def stream(self, path: str, last_id: str) -> AsyncGenerator[RawEvent, None]:
        """Yield the events of a stream for ever, reconnecting.

        Raises:
            SessiondError: what the daemon answered, if that is not temporary.
        """
        pause = _RETRY_SECONDS
        while True:
            try:
                async for event in self._stream_once(path, last_id):
                    pause = _RETRY_SECONDS
                    last_id = event.id or last_id
                    yield event
            except SessiondError as error:
                if not error.temporary:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_RETRY_SECONDS)

    async def close(self) -> None:
        """Let go of connections."""
        await self._http.close()

    async def _stream_once(self, path: str, last_id: str) -> AsyncIterator[RawEvent]:
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        timeout = aiohttp.ClientTimeout(total=None, sock_read=_SILENCE_SECONDS)
        try:
            async with self._http.get(
                self._base + path, headers=headers, timeout=timeout
            ) as response:
                if response.status != 200:  # noqa: PLR2004 - a stream, or a problem
                    raise rebuilt(await response.read(), response.status)
                buffer = b""
                async for chunk in response.content.iter_any():
                    *frames, buffer = (buffer + chunk).split(b"\n\n")
                    for frame in frames:
                        event = parse_frame(frame)
                        if event:
                            yield event
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._understood(error) from error

    async def _read(self, path: str, kind: type[Aged], query: Query | None = None) -> Aged:
        answer: Aged
        answer, told = await self._exchange("GET", path, kind, query=query)
        answer.stale_seconds = _stale(told)
        return answer

    async def _write(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> WrittenRecord:
        return (await self.call(method, path, WrittenRecord, body=body, headers=headers))[0]

    def _understood(self, error: aiohttp.ClientError | TimeoutError) -> SessiondError:
        """Return what an error of the HTTP library means to a caller."""
        if isinstance(error, _CONNECTION_ERRORS):
            return self._unreachable(error)
        if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
            return InvalidInput(
                f"{self._where!r} is no address of a daemon", hint="give http://127.0.0.1:PORT"
            )
        reason = getattr(error, "message", "") or str(error) or type(error).__name__
        return SessiondError(
            f"the answer of {self._where} cannot be understood: {reason}",
            hint="is it a daemon of sessiond? A write may be done: look before writing it again",
        )

    def _unreachable(self, error: BaseException) -> DaemonUnreachable:
        cause = getattr(error, "os_error", None) or error
        reason = getattr(cause, "strerror", None) or str(cause) or "no answer in time"
        return DaemonUnreachable(
            f"no daemon answers at {self._where}: {reason}",
            hint="start one with `sessiond run`, or name its address with --socket",
        )


async def _until_deleted(
    events: AsyncGenerator[RawEvent, None],
) -> AsyncGenerator[RawEvent, None]:
    async for event in events:
        yield event
        if event.name == "session.delete":
            return


def parse_frame(frame: bytes) -> RawEvent | None:
    """Return the event of one frame of an event stream; None for a comment."""
    fields = dict(line.split(b": ", 1) for line in frame.split(b"\n") if b": " in line[1:])
    if b"data" not in fields:
        return None
    return RawEvent(
        fields.get(b"event", b"").decode(), fields.get(b"id", b"").decode(), fields[b"data"]
    )


def rebuilt(content: bytes, status: int) -> SessiondError:
    """Return the error that a problem document tells of."""
    try:
        problem = _PROBLEM.decode(content)
    except msgspec.MsgspecError:
        return SessiondError(f"the daemon answered {status} without a problem document")
    kind = BY_CODE.get(problem.code, SessiondError)
    return kind(problem.detail, hint=problem.hint or "")


def _version(told: Mapping[str, str]) -> str:
    return told.get("ETag", "").strip('"')


def _stale(told: Mapping[str, str]) -> float | UnsetType:
    """Return how old an answer is that this machine gave without Redis."""
    stale = told.get("Sessiond-Stale")
    return UNSET if stale is None else float(stale)


def _session(session_id: str) -> str:
    return "/v1/sessions/" + checked("session_id", session_id)


def _message(session_id: str, message_id: str) -> str:
    return f"{_session(session_id)}/messages/{checked('message_id', message_id)}"


def _part(session_id: str, message_id: str, part_id: str) -> str:
    return f"{_message(session_id, message_id)}/parts/{checked('part_id', part_id)}"


def _instance(session_id: str, instance: str) -> str:
    return f"{_session(session_id)}/presence/{checked('instance', instance)}"


def _conflict(session_id: str, number: str) -> str:
    return f"{_session(session_id)}/conflicts/{checked('conflict', number)}"


def _headers(*, key: str = "", expected: str = "", base: str = "") -> dict[str, str]:
    versions = {"If-Match": checked_version(expected), "Sessiond-Base": checked_version(base)}
    quoted = {name: f'"{version}"' for name, version in versions.items() if version}
    return quoted | ({"Idempotency-Key": key} if key else {})


def _user_preferences(user_id: str) -> str:
    return f"/v1/users/{checked('user_id', user_id)}/preferences"

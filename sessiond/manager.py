"""The Python API: `SessionManager` and the sessions it gives.

```python
async with SessionManager.connect() as manager:
    session = await manager.create(user_id="user123", preferences={"theme": "dark"})
    await session.add_message(role="user", content="Help me analyze this codebase")
    session.context.active_files.append("README.md")
    await session.save()
    async for event in session.subscribe():
        ...
```
"""

from __future__ import annotations

import asyncio
import builtins
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import UNSET

from sessiond import __version__, exchange, model
from sessiond.attendance import Attendance
from sessiond.backend import Backend, RawEvent
from sessiond.client import DaemonClient
from sessiond.config import Configuration, RedisOptions, RetentionOptions, SyncOptions
from sessiond.core import Core
from sessiond.direct import DirectBackend
from sessiond.errors import InvalidInput
from sessiond.exchange import ImportReport
from sessiond.model import (
    ArchivedSession,
    Choice,
    ConflictRecord,
    ConflictSide,
    ConflictState,
    Context,
    Document,
    JournaledOperation,
    Live,
    Message,
    Metadata,
    NewMessage,
    NewSession,
    Operation,
    Part,
    Preferences,
    Reset,
    SessionPage,
    SessionPresence,
    Take,
    Window,
    WindowStrategy,
    WrittenRecord,
)
from sessiond.paths import api_socket, host_name
from sessiond.retrying import retried
from sessiond.service.clock import moment, system_clock
from sessiond.service.identity import new_id
from sessiond.session_cache import SessionCache
from sessiond.sync.documents import value_at
from sessiond.sync.merge import Conflict
from sessiond.sync.names import checked
from sessiond.sync.parts import check_part, completed
from sessiond.sync.view import SessionView

Event = Operation | Live | JournaledOperation | Reset

_USER_AGENT = f"sessiond-python/{__version__}"
_OPERATION = msgspec.json.Decoder(Operation)
_LIVE = msgspec.json.Decoder(Live)
_JOURNALED = msgspec.json.Decoder(JournaledOperation)
_RESET = msgspec.json.Decoder(Reset)


class SessionManager:
    """Creates, loads, lists and deletes sessions, through the local daemon or directly on Redis.

    Both ways behave the same. Through a daemon is the usual one; directly suits programs that
    run where no daemon does.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @classmethod
    def connect(
        cls,
        *,
        socket: str = "",
        address: str = "",
        token: str = "",
        name: str = "",
        environ: Mapping[str, str] = os.environ,
    ) -> SessionManager:
        """Use a daemon: the local one by default.

        Args:
            socket: the daemon's Unix socket; or
            address: `http://127.0.0.1:PORT`, with
            token: the content of the daemon's token file.
            name: how this program is to be named in the origin of what it writes.
            environ: where the default socket is looked up.
        """
        if not socket and not address:
            socket = str(api_socket(environ.get("SESSIOND_API_SOCKET", ""), environ))
        return cls(DaemonClient(socket=socket, address=address, token=token, name=name))

    @classmethod
    def on_redis(
        cls,
        url: str,
        *,
        name: str = "",
        workspace: str = "default",
        namespace: str = "sessiond",
        archive: str = "",
    ) -> SessionManager:
        """Use a Redis directly; must be called where an event loop runs.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            name: under which this program writes; its host's name by default.
            workspace: where sessions belong that do not say.
            namespace: the first word of all keys.
            archive: the folder of archived sessions, `file:///path`; Redis itself by default.
        """
        configuration = Configuration(
            redis=RedisOptions(url=url, namespace=namespace),
            sync=SyncOptions(workspace=workspace),
            retention=RetentionOptions(archive=archive),
        )
        instance = checked("client", name) if name else host_name()
        return cls(DirectBackend(Core(url, configuration, instance=instance)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of connections; what was accepted is written first."""
        await self._backend.close()

    async def create(
        self,
        *,
        user_id: str | None = None,
        preferences: Preferences | None = None,
        context: Context | None = None,
        session_id: str | None = None,
        title: str | None = None,
        workspace: str | None = None,
        environment: str = "development",
        user_agent: str = "",
    ) -> Session:
        """Create a session.

        Args:
            user_id: whose it is: it begins with this user's preferences.
            preferences: go before those.
            context: one with the current folder as `working_directory` otherwise.
            session_id: one is made up otherwise.
            title: of the session.
            workspace: that of the daemon otherwise.
            environment: for example `production`.
            user_agent: the program; this library otherwise.

        Raises:
            AlreadyExists: the id is taken.
            SessionDeleted: the id belonged to a session that was deleted.
            InvalidInput, DaemonUnreachable, StoreUnavailable.
        """
        new = NewSession(
            session_id=session_id or UNSET,
            user_id=user_id or UNSET,
            title=title or UNSET,
            workspace=workspace or UNSET,
            environment=environment,
            user_agent=user_agent or _USER_AGENT,
            context=context or Context(working_directory=_current_folder()),
            preferences=preferences or {},
        )
        key = _new_key()
        return Session(self._backend, await retried(lambda: self._backend.create(new, key=key)))

    async def load(self, session_id: str) -> Session:
        """Load a session.

        Raises:
            NotFound, SessionDeleted: there is none, or no more.
        """
        return Session(self._backend, await retried(lambda: self._backend.load(session_id)))

    async def list(
        self, *, cursor: str | None = None, limit: int = 50, **filters: str
    ) -> SessionPage:
        """List sessions, the most recently active first.

        Args:
            cursor: `cursor` of the page before.
            limit: sessions on a page, at most 500.
            filters: any of workspace, status, user_id, environment.
        """
        return await retried(
            lambda: self._backend.list_sessions(cursor=cursor, limit=limit, **filters)
        )

    async def user_preferences(self, user_id: str) -> Preferences:
        """Return what new sessions of a user begin with; nothing for somebody unknown.

        Raises:
            InvalidInput: this is no user's id.
        """
        return await retried(lambda: self._backend.user_preferences(user_id))

    async def change_user_preferences(self, user_id: str, patch: Preferences) -> Preferences:
        """Change it with a merge patch (None removes a field), and return all of it.

        Raises:
            InvalidInput: the id, or the name of a preference, is not allowed.
            TooLarge: the preferences would be more than 64 KiB of JSON.
        """
        return await retried(lambda: self._backend.change_user_preferences(user_id, patch))

    async def conflicts(
        self, *, state: ConflictState | None = None
    ) -> builtins.list[ConflictRecord]:
        """Return the conflicts of all sessions: `open`, `settled` or `resolved` ones, or all."""
        return await retried(lambda: self._backend.conflicts(state=state))

    async def export(self, session_id: str, folder: Path) -> Path:
        """Write a session's JSON files into a folder of its own below `folder`; return that.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
            InvalidInput: there is something by its name in the folder, or it cannot be written.
        """
        loaded = await retried(lambda: self._backend.load(session_id))
        return await asyncio.to_thread(exchange.write_folder, loaded, folder)

    async def import_from(self, path: Path) -> builtins.list[ImportReport]:
        """Take in the sessions at a path: JSON files of `export`, or of `opencode export`.

        What is there already is merged with by the rules of the daemon.

        Raises:
            InvalidInput: something there is no session.
            SessionDeleted: a session was deleted; nothing of it, or after it, was written.
        """
        found = await asyncio.to_thread(lambda: list(exchange.read_sessions(path)))
        return [await exchange.import_session(self._backend, each) for each in found]

    async def delete(self, session_id: str, *, expected: str = "", base: str = "") -> None:
        """Delete a session; its id is never used again.

        Args:
            session_id: which.
            expected: only if the session is still at this position.
            base: the position that is known here: what others appended since is kept as conflicts.

        Raises:
            VersionMismatch: it has moved on.
            NotFound, SessionDeleted: there is none, or no more.
        """
        delete = partial(
            self._backend.delete, session_id, expected=expected, base=base, key=_new_key()
        )
        await retried(delete)

    async def archive(self, session_id: str, *, idle_seconds: int | None = None) -> ArchivedSession:
        """Let a session that nobody uses leave Redis; it comes back when it is loaded.

        Args:
            session_id: which.
            idle_seconds: for how long nobody must have written to it; None: some minutes.

        Raises:
            SessionInUse: somebody is there, or wrote a moment ago.
            NotFound, SessionDeleted: there is none, or no more.
            ArchiveUnavailable: the archive folder does not take it.
        """
        return await self._backend.archive(session_id, idle_seconds=idle_seconds)

    async def restore(self, session_id: str) -> ArchivedSession:
        """Bring an archived session back without loading it.

        Raises:
            NotFound, SessionDeleted: there is none, or no more.
            ArchiveUnavailable, ArchiveDamaged: its archive cannot be read.
        """
        return await retried(lambda: self._backend.restore(session_id))


class Session:
    """A session as this program sees it: its state, and ways to change it.

    `context` and `preferences` may be changed in place; `save` sends what changed. The state
    follows the log while `subscribe` is iterated, and at `refresh`.
    """

    def __init__(self, backend: Backend, loaded: model.Session) -> None:
        self._backend = backend
        self._view = SessionView(loaded)
        self._stale_seconds = loaded.stale_seconds
        self._left: builtins.list[ConflictRecord] = []  # found by saves that failed further on

    @property
    def id(self) -> str:
        """The session's id."""
        return self._view.metadata.session_id

    @property
    def metadata(self) -> Metadata:
        """The specification's metadata."""
        return self._view.metadata

    @property
    def messages(self) -> list[Message]:
        """The conversation, in the order that is the same for all."""
        return self._view.messages

    @property
    def context(self) -> Context:
        """The working context; change it in place and `save`."""
        return self._view.context

    @property
    def preferences(self) -> Preferences:
        """The preferences; change them in place and `save`."""
        return self._view.preferences

    @property
    def position(self) -> str:
        """The position in the log that this state stands for."""
        return self._view.position

    @property
    def stale_seconds(self) -> float | None:
        """How old this state was when it was loaded without Redis; None if it came from there.

        What it is there comes in with the first operation or write after Redis is back.
        """
        return None if self._stale_seconds is UNSET else self._stale_seconds

    async def window(
        self, *, tokens: int | None = None, strategy: WindowStrategy | None = None
    ) -> Window:
        """Return what of the conversation fits a window, and what is left out; it stays as it is.

        Args:
            tokens: what the window may take, at least 64; `performance.context_window_size` else.
            strategy: what it keeps: `recent`, `pinned`, `tools` or `summary`;
                `performance.context_window_strategy` else.

        Raises:
            InvalidInput: there is no such window, or nobody to summarise.
        """
        window = partial(self._backend.window, self.id, tokens=tokens, strategy=strategy)
        return await retried(window)

    async def add_message(self, **fields: Any) -> Message:
        """Append a message: role, content, tool_calls, metadata, parts, and id or timestamp.

        Raises:
            InvalidInput: it is not a message.
            AlreadyExists: the id is taken by another message.
            SessionDeleted: the session is gone.
        """
        return (await self.add_messages([_new_message(fields)]))[0]

    async def add_messages(self, messages: list[NewMessage]) -> list[Message]:
        """Append messages as one group, at consecutive offsets, or none of them.

        While Redis is away they are shown behind all others, until they get their place.
        """
        now = system_clock()
        named = [
            msgspec.structs.replace(new, id=new.id or new_id("msg", now, secrets.token_bytes))
            for new in messages
        ]
        append = partial(self._backend.append, self.id, named, key=_new_key())
        written = await retried(append)
        if written.durability:
            for new in named:
                self._view.take_journaled(completed(new, str(new.id), moment(now)))
        else:
            await self._catch_up()
        found = [self._view.message(record.id) for record in written.records]
        return [
            message or completed(new, str(new.id), moment(now))
            for message, new in zip(found, named, strict=True)
        ]

    async def edit_message(
        self, message_id: str, *, expected: str = "", base: str = "", **fields: Any
    ) -> WrittenRecord:
        """Change fields of a message: role, content, tool_calls, metadata.

        Args:
            message_id: which.
            expected: the only version that may be changed.
            base: the version that the edit was made on: what others changed since is merged.
            fields: the fields to change.

        Raises:
            VersionMismatch: the message is no longer at the expected version.
            NotFound, InvalidInput, SessionDeleted.
        """
        edit = partial(self._backend.edit, self.id, message_id, fields)
        return await self._write(partial(edit, expected=expected, base=base))

    async def remove_message(
        self, message_id: str, *, expected: str = "", base: str = ""
    ) -> WrittenRecord:
        """Remove a message from the conversation; for the versions see `edit_message`.

        Raises:
            VersionMismatch, NotFound, SessionDeleted.
        """
        remove = partial(self._backend.remove, self.id, message_id)
        return await self._write(partial(remove, expected=expected, base=base))

    async def put_part(
        self, message_id: str, part: Part, *, expected: str = "", base: str = ""
    ) -> WrittenRecord:
        """Write a part of a message: a new one, or the one with its id anew.

        For the versions see `edit_message`; that of a part that is not there yet is "0".

        Raises:
            InvalidInput: the part has no id or type.
            VersionMismatch, NotFound, SessionDeleted.
        """
        check_part(part)
        put = partial(self._backend.put_part, self.id, message_id, part["id"], part)
        return await self._write(partial(put, expected=expected, base=base))

    async def remove_part(
        self, message_id: str, part_id: str, *, expected: str = "", base: str = ""
    ) -> WrittenRecord:
        """Remove a part of a message; for the versions see `edit_message`.

        Raises:
            VersionMismatch, NotFound, SessionDeleted.
        """
        remove = partial(self._backend.remove_part, self.id, message_id, part_id)
        return await self._write(partial(remove, expected=expected, base=base))

    async def _write(self, write: Callable[..., Awaitable[WrittenRecord]]) -> WrittenRecord:
        written = await retried(partial(write, key=_new_key()))
        if not written.durability:  # else it is here when it has its place
            await self._catch_up()
        return written

    async def _catch_up(self) -> None:
        """Bring this state to the log's end."""
        while True:
            page = await retried(lambda: self._backend.operations(self.id, after=self.position))
            if page.reset:
                await self.refresh()
                return
            for operation in page.operations:
                self._view.apply(operation)
            if not page.more:
                await self._freshen()
                return

    async def _freshen(self) -> None:
        """Load what was loaded without Redis once more, when it is there; keep unsaved changes."""
        if self._stale_seconds is UNSET:
            return
        loaded = await retried(lambda: self._backend.load(self.id))
        if loaded.stale_seconds is UNSET:
            self._view.take_loaded(loaded)
            self._stale_seconds = UNSET

    async def save(self, *, strict: bool = False) -> builtins.list[ConflictRecord]:
        """Send what changed in `context` and `preferences` since they were loaded or saved.

        What somebody else changed meanwhile is merged with it, by the rules of the daemon, and is
        here afterwards.

        Args:
            strict: refuse instead, if somebody else changed the document.

        Returns:
            What the merge left out of either side, if anything; of very many perhaps not all:
            `conflicts` has them.

            With them, what was changed here while the save was under way and by others before it.
            What stands here is not saved yet; the next save puts it in the place of theirs. Such a
            conflict is told here only: it is not in Redis, its `number` is empty, its `state` is
            `open`. `ours` is what was changed here, `theirs` what the others saved, `base` what
            was sent. To decide it, change the document and save again.

        Raises:
            VersionMismatch: in strict mode. Nothing of the document was written and the change is
                still here: `refresh`, look, and decide.
        """
        for name, value, version in list(self._view.changed_documents()):
            change = partial(self._backend.change_document, self.id, name, value, replace=True)
            versions = {"expected" if strict else "base": version}
            saved = await retried(partial(change, key=_new_key(), **versions))
            contested = self._view.take_saved(saved, value)
            self._left += [self._unsaved(saved, conflict) for conflict in contested]
            for number in saved.conflicts or ():
                record = await retried(partial(self._backend.conflict, self.id, number))
                self._left.append(record)
        left, self._left = self._left, []
        return left

    def _unsaved(self, saved: Document, conflict: Conflict) -> ConflictRecord:
        """Return the record of a field that was changed here while others' change came in."""
        at = moment(system_clock())
        here = msgspec.to_builtins(getattr(self, saved.name))
        is_mixed = conflict.outcome == "merged"
        theirs = ConflictSide(value=conflict.theirs, origin="", at=at, version=saved.version)
        return ConflictRecord(
            number="",
            session_id=self.id,
            document=saved.name,
            path=list(conflict.path),
            strategy=conflict.strategy,
            outcome=conflict.outcome,
            base=conflict.base,
            ours=ConflictSide(value=conflict.ours, origin="", at=at),
            theirs=theirs,
            merged=value_at(here, conflict.path) if is_mixed else UNSET,
            at=at,
            state="open",
        )

    async def conflicts(
        self, *, state: ConflictState | None = None
    ) -> builtins.list[ConflictRecord]:
        """Return what merges left out in this session: `open`, `settled`, `resolved`, or all."""
        return await retried(lambda: self._backend.conflicts(self.id, state=state))

    async def resolve(
        self, number: str, take: Take | None = None, *, value: Any = UNSET, expected: str = ""
    ) -> ConflictRecord:
        """Decide a conflict: take a side, or put a value in its place.

        Args:
            number: of the conflict.
            take: `ours`, `theirs`, `base`, or `merged` for what stands; or
            value: what to put in its place.
            expected: only if the document or record is still at this version.

        Raises:
            InvalidInput, NotFound, VersionMismatch, SessionDeleted.
        """
        choice = Choice(take=take or UNSET, value=value)
        resolve = partial(self._backend.resolve, self.id, number, choice, expected=expected)
        resolved = await retried(partial(resolve, key=_new_key()))
        await self._catch_up()
        return resolved

    async def refresh(self) -> None:
        """Load the session anew; unsaved changes are dropped.

        Raises:
            NotFound, SessionDeleted: it is gone.
        """
        loaded = await retried(lambda: self._backend.load(self.id))
        self._view, self._stale_seconds = SessionView(loaded), loaded.stale_seconds
        self._left.clear()

    async def send_live(self, body: Any) -> None:
        """Announce something passing, such as typing, to whoever listens now; it is not stored."""
        await self._backend.send_live(self.id, body)

    def present(self, *, active_files: Iterable[str] = (), instance: str = "") -> Attendance:
        """Be at the session, for others to see, inside `async with`.

        Args:
            active_files: what this program works on, as others would name it: 256 at most, and
                16 KiB of JSON.
            instance: the name under which others see it; one is made up otherwise.
        """
        name = instance or f"py-{secrets.token_hex(4)}"
        return Attendance(self._backend, self.id, name, active_files)

    async def presence(self) -> SessionPresence:
        """Return who is at the session, and which files two or more have open.

        Raises:
            NotFound, SessionDeleted: it is gone.
        """
        return await retried(lambda: self._backend.presence(self.id))

    @property
    def cache(self) -> SessionCache:
        """What tools answered here and on other machines, while it is right; of this folder."""
        return SessionCache(self._backend, self.id)

    async def subscribe(self, *, after: str | None = None) -> AsyncIterator[Event]:
        """Yield what happens to the session, as it happens, and keep this state up to date.

        It begins after this state's own position, so that nothing is missed in between, and
        ends when the session is deleted. `Reset` means that the history is another one now:
        this state was loaded anew, and the log follows from its beginning. `JournaledOperation` is
        what somebody at the same daemon wrote while Redis is away; its messages are shown here.

        Args:
            after: a position to begin after instead.
        """
        async with self._backend.events(self.id, after or self.position) as events:
            async for raw in events:
                event = _decoded(raw)
                if event is None:
                    continue
                if isinstance(event, Reset):
                    await self.refresh()
                else:
                    self._view.apply(event)
                    if isinstance(event, Operation) and raw.name != "session.delete":
                        await self._freshen()
                yield event
                if raw.name == "session.delete":
                    return


def _decoded(raw: RawEvent) -> Event | None:
    match raw.name:
        case "live":
            return _LIVE.decode(raw.data)
        case "journaled":
            return _JOURNALED.decode(raw.data)
        case "reset":
            return _RESET.decode(raw.data)
        case "positions":
            return None
        case _:
            return _OPERATION.decode(raw.data)


def _new_message(fields: dict[str, Any]) -> NewMessage:
    try:
        return msgspec.convert(fields, NewMessage)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"this is not a message: {error}") from error


def _current_folder() -> str:
    """Return the current folder; nothing where it was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _new_key() -> str:
    return secrets.token_hex(16)

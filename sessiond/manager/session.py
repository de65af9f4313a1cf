"""A session as a program sees it: its state kept up to date, and ways to change it."""

from __future__ import annotations

import builtins
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET

from sessiond import model
from sessiond.backend import Backend, RawEvent
from sessiond.errors import InvalidInput
from sessiond.manager.attendance import Attendance
from sessiond.manager.session_cache import SessionCache
from sessiond.model import (
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
    Operation,
    Part,
    Preferences,
    Reset,
    SessionPresence,
    Take,
    Window,
    WindowStrategy,
    WrittenRecord,
)
from sessiond.retrying import retried
from sessiond.service.clock import moment, system_clock
from sessiond.service.identity import new_id
from sessiond.sync.documents import value_at
from sessiond.sync.merge import Conflict
from sessiond.sync.parts import check_part, completed
from sessiond.sync.view import SessionView

Event = Operation | Live | JournaledOperation | Reset

_OPERATION = msgspec.json.Decoder(Operation)
_LIVE = msgspec.json.Decoder(Live)
_JOURNALED = msgspec.json.Decoder(JournaledOperation)
_RESET = msgspec.json.Decoder(Reset)


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
        append = partial(self._backend.append, self.id, named, key=new_key())
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
        written = await retried(partial(write, key=new_key()))
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
            saved = await retried(partial(change, key=new_key(), **versions))
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
        resolved = await retried(partial(resolve, key=new_key()))
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


def new_key() -> str:
    """Return a key for one write: sent again with it, the write is not done twice."""
    return secrets.token_hex(16)

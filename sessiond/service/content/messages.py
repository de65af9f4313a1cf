"""Messages: appended, paged through, read."""

from __future__ import annotations

import msgspec

from sessiond.codec import json
from sessiond.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    SessionDeleted,
    StoreDamaged,
    StoreWentBack,
    TooLarge,
)
from sessiond.model import (
    Message,
    NewMessage,
    VersionedMessage,
    Written,
    WrittenRecord,
)
from sessiond.service.clock import moment
from sessiond.service.content.deletion import kept
from sessiond.service.content.merging import Subject
from sessiond.service.content.standing import message_entry
from sessiond.service.identity import new_message_id
from sessiond.service.writing import (
    PLAIN,
    Request,
    Surroundings,
    asked_at,
    commit,
    now,
)
from sessiond.store.draft import Draft
from sessiond.store.log import PAGE, LogPage
from sessiond.store.outcome import Committed
from sessiond.sync.entry import Entry
from sessiond.sync.paging import PAGE_BYTES
from sessiond.sync.parts import assemble, completed
from sessiond.sync.position import Position
from sessiond.sync.rendering import message_page_json
from sessiond.sync.replica import Conversation

_MESSAGE = msgspec.json.Decoder(Message)


class Messages:
    """Appends and reads the messages of sessions.

    Args:
        around: the store, time and randomness.
        group_limit: messages in one atomic group, at most.
    """

    def __init__(self, around: Surroundings, *, group_limit: int = 64) -> None:
        self._around = around
        self._group_limit = group_limit

    async def append(
        self, session_id: str, given: list[NewMessage], request: Request = PLAIN
    ) -> Written:
        """Append messages as one group: all at consecutive offsets, or none.

        A retry, by message ids or by idempotency key, returns what the first try wrote.

        Raises:
            AlreadyExists: a message id is taken by another message.
            InvalidInput, TooLarge, NotFound, SessionDeleted, StoreUnavailable.
        """
        if not given:
            raise InvalidInput("a group has at least one message")
        if len(given) > self._group_limit:
            raise TooLarge(
                f"{len(given)} messages in one group; the limit is {self._group_limit}",
                hint="split them, or raise api.max_group_operations",
            )
        ids = [new.id for new in given if new.id]
        if len(set(ids)) != len(ids):
            raise InvalidInput("two messages of the group have the same id")
        messages = [
            self._complete(session_id, new, request, index) for index, new in enumerate(given)
        ]
        at = now(self._around, request)
        group = [
            Draft("message.append", message.id, at, json.encode(message), client=request.client)
            for message in messages
        ]
        try:
            committed = await commit(self._around, session_id, group)
        except AlreadyExists:
            committed = await self._appended_before(session_id, given, messages)
        except SessionDeleted as error:
            came = [
                (Subject(session_id, "message", message.id), msgspec.to_builtins(message))
                for message in messages
            ]
            raise await kept(self._around, request, error, came) from error
        return _written([message.id for message in messages], committed)

    async def page(self, session_id: str, after: int = 0, limit: int = PAGE) -> bytes:
        """Return messages first written after an offset, as `model.MessagePage` in JSON.

        Raises:
            NotFound, SessionDeleted, StoreDamaged, StoreUnavailable.
        """
        found = await self._appended(session_id, after, limit + 1)
        end = await self._around.store.end(session_id)
        if end.amendments:  # what was appended is not what is there now
            found = await self._amended(session_id, after, limit + 1)
        return message_page_json(found, limit, end.position)

    async def read(self, session_id: str, message_id: str) -> VersionedMessage:
        """Return one message with its parts, and the version an edit may be based on.

        Raises:
            NotFound: there is no such message, or no more.
        """
        entry = await message_entry(self._around, session_id, message_id)
        if entry is None or entry.op == "message.remove":
            raise NotFound(f"session {session_id!r} has no message {message_id!r}")
        changed = await self._changed_parts(session_id, message_id)
        body = assemble(entry.json, changed) if changed else entry.json
        return VersionedMessage(message=_MESSAGE.decode(body), version=str(entry.position))

    def _complete(self, session_id: str, new: NewMessage, request: Request, index: int) -> Message:
        """Return the message with what its writer left out."""
        ms = asked_at(self._around, request)
        message_id = new.id or new_message_id(
            session_id, request.key, index, now_ms=ms, entropy=self._around.entropy
        )
        return completed(new, message_id, moment(ms))

    async def _appended_before(
        self, session_id: str, given: list[NewMessage], messages: list[Message]
    ) -> Committed:
        """Return where these very messages were appended before.

        Raises:
            AlreadyExists: at least one of the ids is taken by another message.
            StoreWentBack: one is not there any more.
        """
        store = self._around.store
        versions = await store.message_versions(session_id, [message.id for message in messages])
        known = [index for index, version in enumerate(versions) if version]
        if not known:  # it said a moment ago that it has them
            raise _went_back()
        offsets = [version.first for version in versions if version]
        entries = await store.log.entries_at(session_id, offsets)
        positions = []
        for index, entry in zip(known, entries, strict=True):
            new, message = given[index], messages[index]
            if entry is None or entry.id != message.id:
                raise _went_back()
            if not _is_append_of(entry, new, message):
                raise AlreadyExists(
                    f"message id {message.id!r} is taken by another message",
                    hint="an id, or Idempotency-Key, stands for one message for ever",
                )
            positions.append(entry.position)
        if len(positions) != len(messages):
            raise AlreadyExists(
                "some messages of this group were appended before, some were not",
                hint="retry a group exactly as it was, or use new ids",
            )
        return Committed(positions, "", duplicate=True)

    async def _appended(self, session_id: str, after: int, limit: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        size = 0
        async for page in self._around.store.log.pages(session_id, Position("", after)):
            _require_beginning(page)
            appended = page.appended()
            found += appended
            size += sum(len(body) for _, body in appended)
            if len(found) >= limit or (size > PAGE_BYTES and len(found) > 1):
                break
        return found[:limit]

    async def _amended(self, session_id: str, after: int, limit: int) -> list[tuple[int, bytes]]:
        conversation = Conversation()
        async for page in self._around.store.log.pages(session_id):
            _require_beginning(page)
            for entry in page.entries:
                conversation.apply(entry.op, entry.id, entry.offset, entry.json)
        return conversation.messages_after(after, limit)

    async def _changed_parts(self, session_id: str, message_id: str) -> dict[str, bytes | None]:
        store = self._around.store
        versions = await store.part_versions(session_id, message_id)
        entries = await store.log.entries_at(
            session_id, [version.last for version in versions.values()]
        )
        return {
            part_id: entry.json if entry and entry.op == "part.put" else None
            for part_id, entry in zip(versions, entries, strict=True)
        }


def _require_beginning(page: LogPage) -> None:
    if page.reset == "trimmed":
        raise StoreDamaged(
            "the beginning of the log is missing",
            hint="something other than sessiond trimmed the stream; restore it from a backup",
        )


def _is_append_of(entry: Entry, new: NewMessage, message: Message) -> bool:
    """Tell whether an entry is the append of this message; a time we filled in may differ."""
    if entry.op != "message.append":
        return False
    before = _MESSAGE.decode(entry.json)
    if not new.timestamp:
        before.timestamp = message.timestamp
    return before == message


def _written(ids: list[str], committed: Committed) -> Written:
    versions = [str(position) for position in committed.positions]
    return Written(
        records=[
            WrittenRecord(id=name, version=version)
            for name, version in zip(ids, versions, strict=True)
        ],
        position=versions[-1],
        duplicate=committed.duplicate,
    )


def _went_back() -> StoreWentBack:
    return StoreWentBack("Redis lost these messages just now", hint="try again in a moment")

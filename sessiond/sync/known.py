"""A session as far as its log is known, to be read without the store. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sessiond.codec import json
from sessiond.errors import NotFound
from sessiond.model import DOCUMENTS, Message, VersionedMessage
from sessiond.sync.entry import Entry
from sessiond.sync.outline import Outline
from sessiond.sync.paging import fitting
from sessiond.sync.position import START, Position
from sessiond.sync.rendering import message_page_json, operation_page_json, session_json
from sessiond.sync.replica import Conversation

_MESSAGE = msgspec.json.Decoder(Message)


class KnownSession:
    """What the operations of a log, from its first on, make of a session.

    What waits to be written may be laid over it: `put_message` and the like change what is
    answered, and leave position and operations as they are.

    Args:
        session_id: of which session.
        outline: folded from the same operations.
        entries: the operations.
    """

    def __init__(self, session_id: str, outline: Outline, entries: Iterable[Entry] = ()) -> None:
        self.session_id = session_id
        self.outline = outline
        self.conversation = Conversation()
        self.position = outline.position
        self._entries = list(entries)
        self._versions: dict[str, str] = {}
        self._removed: set[str] = set()
        self._next = self.position.offset + 1
        for entry in self._entries:
            self._take(entry.op, entry.id, entry.offset, entry.json, str(entry.position))

    def session(self, context_window_used: int) -> bytes:
        """Return all of it, as `model.Session` in JSON; tokens of all its messages are given."""
        documents = {name: self.outline.value(name) for name in DOCUMENTS}
        messages = self.conversation.messages()
        versions = self.outline.versions
        return session_json(documents, messages, self.position, versions, context_window_used)

    def page(self, after: int, limit: int) -> bytes:
        """Return messages first written after an offset, as `model.MessagePage` in JSON."""
        found = self.conversation.messages_after(after, limit + 1)
        return message_page_json(found, limit, self.position)

    def message(self, message_id: str) -> VersionedMessage | None:
        """Return a message and its version; None where none of that id is known.

        Raises:
            NotFound: it was removed.
        """
        if message_id in self._removed:
            raise NotFound(f"session {self.session_id!r} has no message {message_id!r}")
        if message_id not in self._versions:
            return None
        body = self.conversation.message(message_id)
        return VersionedMessage(message=_MESSAGE.decode(body), version=self._versions[message_id])

    def operations(self, after: Position, limit: int) -> bytes | None:
        """Return a stretch of the log, as `model.OperationPage` in JSON.

        What is known may be old: behind its end, there is nothing to tell, but no reset either.
        None where another operation is known at the position.
        """
        end = self._entries[-1:]
        if end and end[0].op == "session.delete" and end[0].offset > after.offset:
            return operation_page_json(self.session_id, end, end[0].position)
        if after.offset > self.position.offset:
            return operation_page_json(self.session_id, [], after)
        before = self._entries[after.offset - 1].position if after.offset else START
        if after.epoch not in ("", before.epoch):
            return None
        page = self._entries[after.offset : after.offset + limit]
        page = page[: fitting(len(entry.json) for entry in page)]
        position = page[-1].position if page else before
        more = after.offset + len(page) < len(self._entries)
        return operation_page_json(self.session_id, page, position, more=more)

    def has_had(self, message_id: str) -> bool:
        """Tell whether a message's id is taken, also by one that was removed."""
        return message_id in self._versions or message_id in self._removed

    def lay_over(self, op: str, record_id: str, value: object, version: str) -> None:
        """Take an operation on messages that has no place in the log yet.

        Args:
            op: one that `Conversation` knows; what it changes must be there.
            record_id: of the message or part.
            value: its new value.
            version: what stands for its version.
        """
        self._take(op, record_id, self._next, json.encode(value), version)
        self._next += 1

    def _take(self, op: str, record_id: str, offset: int, body: bytes, version: str) -> None:
        self.conversation.apply(op, record_id, offset, body)
        match op:
            case "message.append" | "message.edit":
                self._versions[record_id] = version
            case "message.remove":
                del self._versions[record_id]
                self._removed.add(record_id)

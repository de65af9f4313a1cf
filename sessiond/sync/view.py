"""A session as one program sees it, kept up to date by operations. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import msgspec

from sessiond.model import (
    Context,
    Document,
    DocumentName,
    Live,
    Message,
    Metadata,
    Operation,
    Preferences,
    Reset,
    Session,
    Written,
)
from sessiond.sync.parts import edited, parts_of, with_parts

_SAVED: tuple[DocumentName, ...] = ("context", "preferences")


class SessionView:
    """The state of a session at a position; `apply` moves it on.

    Operations at or before the position are passed over, so that the same one twice does no harm.
    """

    def __init__(self, loaded: Session) -> None:
        self.metadata: Metadata = loaded.metadata
        self.messages: list[Message] = loaded.conversation.messages
        self.context: Context = loaded.context
        self.preferences: Preferences = loaded.preferences
        self.position = loaded.position
        self._versions: dict[str, str] = {str(name): v for name, v in loaded.versions.items()}
        self._saved: dict[str, Any] = {}
        self._remember("context", "preferences")

    def apply(self, event: Operation | Live | Reset) -> None:
        """Take one event."""
        if isinstance(event, Live):
            return
        if isinstance(event, Reset):
            self.messages.clear()
            self.position = "0:0"
            return
        if _offset(event.position) <= _offset(self.position):
            return
        self._take(event)
        self.position = event.position
        self.metadata.last_activity = max(self.metadata.last_activity, event.at)

    def take_written(self, messages: list[Message], written: Written) -> bool:
        """Take messages that this program appended; False when others wrote something before them.

        Then the log must bring them, in their place.
        """
        if _offset(written.records[0].version) != _offset(self.position) + 1:
            return False
        self.messages += messages
        self.position = written.position
        return True

    def take_document(self, document: Document) -> None:
        """Take a document as it was saved."""
        self._versions[document.name] = document.version
        self._remember(document.name)

    def changed_documents(self) -> Iterator[tuple[DocumentName, Any, str]]:
        """Yield name, value and known version of each document with unsaved changes."""
        for name in _SAVED:
            value = msgspec.to_builtins(getattr(self, name))
            if value != self._saved[name]:
                yield name, value, self._versions[name]

    def _take(self, operation: Operation) -> None:
        index = self._index(operation.id.partition("/")[0])
        match operation.op:
            case "message.append" if index is None:
                self.messages.append(msgspec.convert(operation.body, Message))
            case "message.edit" if index is not None:
                body = msgspec.convert(operation.body, Message)
                self.messages[index] = edited(self.messages[index], body)
            case "message.remove" if index is not None:
                del self.messages[index]
            case "part.put" | "part.remove" if index is not None:
                self._take_part(index, operation)
            case "document.change":
                self._take_change(operation)
            case "session.delete":
                self.metadata.status = "deleted"

    def _take_part(self, index: int, operation: Operation) -> None:
        message = self.messages[index]
        part_id = operation.id.partition("/")[2]
        parts = {part["id"]: part for part in parts_of(message)}
        if operation.op == "part.put":
            parts[part_id] = operation.body
        else:
            parts.pop(part_id, None)
        self.messages[index] = with_parts(message, list(parts.values()))

    def _take_change(self, operation: Operation) -> None:
        """Take another's change of a document; fields changed here and not yet saved stay."""
        name = operation.id
        fields, unset = operation.body["set"], operation.body["unset"]
        if name == "metadata":
            changed = {**msgspec.to_builtins(self.metadata), **fields}
            self.metadata = msgspec.convert(
                {field: value for field, value in changed.items() if field not in unset}, Metadata
            )
        else:
            mine = msgspec.to_builtins(getattr(self, name))
            before = self._saved[name]
            after = {**before, **fields}
            for field in unset:
                after.pop(field, None)
            unsaved = {field: mine[field] for field in mine if before.get(field) != mine[field]}
            merged = {**after, **unsaved}
            self._saved[name] = after
            if name == "context":
                self.context = msgspec.convert(merged, Context)
            else:
                self.preferences = merged
        self._versions[name] = operation.position

    def _index(self, message_id: str) -> int | None:
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].id == message_id:
                return index
        return None

    def _remember(self, *names: str) -> None:
        for name in names:
            self._saved[name] = copy.deepcopy(msgspec.to_builtins(getattr(self, name)))


def _offset(position: str) -> int:
    return int(position.rpartition(":")[2])

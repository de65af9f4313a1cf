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

    def take_document(self, document: Document) -> None:
        """Take a document as it was saved."""
        self._versions[document.name] = document.version
        self._remember(document.name)

    def changed_documents(self) -> Iterator[tuple[DocumentName, Any, str]]:
        """Yield name, value and known version of each document with unsaved changes."""
        for name in _SAVED:
            if self._has_unsaved(name):
                yield name, msgspec.to_builtins(getattr(self, name)), self._versions[name]

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
        """Take a change of a document.

        One with unsaved changes stays as it is, at its version: saving it will tell of the
        mismatch, instead of overwriting what somebody else wrote.
        """
        name = operation.id
        if self._has_unsaved(name):
            return
        document = msgspec.to_builtins(getattr(self, name)) | operation.body["set"]
        for field in operation.body["unset"]:
            document.pop(field, None)
        match name:
            case "metadata":
                self.metadata = msgspec.convert(document, Metadata)
            case "context":
                self.context = msgspec.convert(document, Context)
            case _:
                self.preferences = document
        self._versions[name] = operation.position
        self._remember(name)

    def _has_unsaved(self, name: str) -> bool:
        return name in self._saved and self._saved[name] != msgspec.to_builtins(getattr(self, name))

    def _index(self, message_id: str) -> int | None:
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].id == message_id:
                return index
        return None

    def _remember(self, *names: str) -> None:
        for name in names:
            if name not in _SAVED:
                continue
            self._saved[name] = copy.deepcopy(msgspec.to_builtins(getattr(self, name)))


def _offset(position: str) -> int:
    return int(position.rpartition(":")[2])

"""A session as one program sees it, kept up to date by operations. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from sessiond.model import (
    DOCUMENTS,
    Context,
    Document,
    DocumentName,
    JournaledOperation,
    Live,
    Message,
    Metadata,
    Operation,
    Preferences,
    Reset,
    Session,
)
from sessiond.sync.merge import Conflict, merge
from sessiond.sync.parts import edited, parts_of, with_parts
from sessiond.sync.position import is_journaled
from sessiond.sync.rules import Rules
from sessiond.sync.sides import Side

_RULES = Rules()
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
        self._logged: dict[str, Document] = {}
        self._journaled: set[str] = set()
        for name in DOCUMENTS:
            value = _copied(getattr(self, name))
            self._logged[name] = Document(name=name, value=value, version=self._versions[name])
            if name in _SAVED:
                self._saved[name] = _copied(value)

    def apply(self, event: Operation | Live | JournaledOperation | Reset) -> None:
        """Take one event."""
        if isinstance(event, Live):
            return
        if isinstance(event, JournaledOperation):
            if event.op == "message.append":
                self.take_journaled(msgspec.convert(event.body, Message))
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

    def take_journaled(self, message: Message) -> None:
        """Show a message that was written and has no place in the log yet: behind all that have.

        One that is here already stays where it is.
        """
        if self._index(message.id) is None:
            self.messages.append(message)
            self._journaled.add(message.id)

    def take_loaded(self, loaded: Session) -> None:
        """Take the session as Redis has it now, where what was known may have been old.

        Unsaved changes stay, and so do messages that have no place in the log yet.
        """
        placed = {message.id for message in loaded.conversation.messages}
        self._journaled -= placed
        kept = [message for message in self.messages if message.id in self._journaled]
        self.messages[:] = [*loaded.conversation.messages, *kept]
        self.position = loaded.position
        for name in DOCUMENTS:
            value = _copied(getattr(loaded, name))
            version = loaded.versions[name]
            self._logged[name] = Document(name=name, value=value, version=version)
            self._follow(name)

    def message(self, message_id: str) -> Message | None:
        """Return one message, if it is there."""
        index = self._index(message_id)
        return None if index is None else self.messages[index]

    def changed_documents(self) -> Iterator[tuple[DocumentName, Any, str]]:
        """Yield name, a copy of the value, and known version of each document to save."""
        for name in _SAVED:
            if self._has_unsaved(name):
                yield name, _copied(getattr(self, name)), self._versions[name]

    def take_saved(self, document: Document, sent: Any) -> tuple[Conflict, ...]:
        """Take what became of a document that was sent: itself, merged with what others wrote.

        What changed here since it was sent stays unsaved; what others wrote comes in. Return the
        fields that both changed, where a part of one is not here now. The next save is made on
        the document's new version, and so knows of what others wrote: whoever saves is to be told
        of these conflicts now, for no merge will find them any more.
        """
        name, value = document.name, msgspec.to_builtins(document.value)
        here = Side(msgspec.to_builtins(getattr(self, name)), at=1)
        merged = merge(sent, here, Side(value), _RULES.of(name))
        self._set(name, _copied(merged.value))  # the conflicts share parts with it
        self._saved[name] = _copied(value)
        self._versions[name] = document.version
        if not is_journaled(document.version):  # what is not in the log yet is ahead of it
            self._follow(name)
        return merged.conflicts

    def _take(self, operation: Operation) -> None:
        index = self._index(operation.id.partition("/")[0])
        if operation.op == "message.append" and index is not None and self._is_placed(operation.id):
            del self.messages[index]
            index = None
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

    def _is_placed(self, message_id: str) -> bool:
        """Tell whether this is the place of a message that had none until now."""
        if message_id not in self._journaled:
            return False
        self._journaled.remove(message_id)
        return True

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

        One with unsaved changes stays as it is, at the version that they were made on. A save says
        which one that is: what somebody else wrote since is merged with it, or it is refused
        (strict); it is never just overwritten.
        """
        name = operation.id
        known = self._logged[name]
        value = known.value | operation.body["set"]
        for field in operation.body["unset"]:
            value.pop(field, None)
        self._logged[name] = Document(name=known.name, value=value, version=operation.position)
        self._follow(name)

    def _follow(self, name: str) -> None:
        """Show a document as the log has it, unless it has unsaved changes or is ahead."""
        logged = self._logged[name]
        known = self._versions[name]
        behind = not is_journaled(known) and _offset(logged.version) < _offset(known)
        if not behind and not self._has_unsaved(name):
            self._set(name, copy.deepcopy(logged.value))
            self._versions[name] = logged.version

    def _set(self, name: str, value: Any) -> None:
        """Give a document this value, in place: whoever holds it sees it."""
        match name:
            case "metadata":
                active = self.metadata.last_activity  # every operation moves it, not this one alone
                _overwrite(self.metadata, msgspec.convert(value, Metadata))
                self.metadata.last_activity = max(active, self.metadata.last_activity)
            case "context":
                _overwrite(self.context, msgspec.convert(value, Context))
            case _:
                self.preferences.clear()
                self.preferences.update(value)
        if name in _SAVED:
            self._saved[name] = _copied(getattr(self, name))

    def _has_unsaved(self, name: str) -> bool:
        if name not in self._saved:
            return False
        return _canonical(self._saved[name]) != _canonical(getattr(self, name))

    def _index(self, message_id: str) -> int | None:
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].id == message_id:
                return index
        return None


def _overwrite(target: Struct, source: Struct) -> None:
    for field in target.__struct_fields__:
        setattr(target, field, getattr(source, field))


def _copied(value: Any) -> Any:
    return copy.deepcopy(msgspec.to_builtins(value))


def _canonical(value: Any) -> bytes:
    """Return what tells two documents apart as JSON does: 1, 1.0 and true are different."""
    return msgspec.json.encode(msgspec.to_builtins(value), order="deterministic")


def _offset(position: str) -> int:
    return int(position.rpartition(":")[2])

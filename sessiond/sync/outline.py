"""What a session is beside its messages, folded from its log one operation after the other. Pure.

It is small, whatever was said: enough to list the session and to answer for its documents without
reading its log again.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from sessiond.errors import StoreDamaged
from sessiond.model import (
    DOCUMENTS,
    Context,
    Document,
    DocumentName,
    Metadata,
    NewSession,
    SessionSummary,
)
from sessiond.sync.entry import Entry
from sessiond.sync.position import NO_EPOCH, Position

_CREATION = msgspec.json.Decoder(NewSession)


class FieldsChanged(Struct):
    """The body of a `document.change`."""

    set: dict[str, Any] = {}
    unset: list[str] = []


_CHANGE = msgspec.json.Decoder(FieldsChanged)


class Outline(Struct):
    """A session's documents with their versions, and how many messages it has, at a position.

    Attributes:
        documents: as plain JSON; empty before the session was created.
        deleted: nothing but this is left of the session.
    """

    epoch: str = NO_EPOCH
    offset: int = 0
    documents: dict[DocumentName, dict[str, Any]] = {}
    versions: dict[DocumentName, str] = {}
    total_messages: int = 0
    deleted: bool = False

    @property
    def position(self) -> Position:
        """The place of the last operation that was applied."""
        return Position(self.epoch, self.offset)

    def apply(self, entry: Entry) -> None:
        """Take the next operation of the log.

        Raises:
            StoreDamaged: its body is not that of such an operation.
        """
        try:
            self._take(entry)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError) as error:
            raise StoreDamaged(f"operation {entry.offset} cannot be applied: {error}") from error
        self.epoch, self.offset = entry.epoch, entry.offset
        self.touch(entry.at)

    def touch(self, at: str) -> None:
        """Note that something happened at a time, as the log has it."""
        metadata = self.documents.get("metadata")
        if metadata and at > metadata["last_activity"]:
            metadata["last_activity"] = at

    def create(self, new: NewSession, at: str, version: str) -> None:
        """Become the session that somebody created, at a time as the log has it."""
        given = msgspec.to_builtins(new)
        context, preferences = given.pop("context"), given.pop("preferences")
        fixed = {"created_at": at, "last_activity": at, "status": "active"}
        self.documents = {
            "metadata": {**fixed, **given},
            "context": context,
            "preferences": preferences,
        }
        self.versions = dict.fromkeys(DOCUMENTS, version)

    def document(self, name: DocumentName) -> Document:
        """Return a document as the specification shapes it.

        Raises:
            StoreDamaged: it is no such document.
        """
        return Document(name=name, value=self.value(name), version=self.versions[name])

    def value(self, name: DocumentName) -> Metadata | Context | dict[str, Any]:
        """Return a document's value; raises as `document`."""
        value = self.documents[name]
        try:
            match name:
                case "metadata":
                    return msgspec.convert(value, Metadata)
                case "context":
                    return msgspec.convert(value, Context)
                case _:
                    return value
        except msgspec.ValidationError as error:
            raise StoreDamaged(f"this is no {name}: {error}") from error

    def summary(self) -> SessionSummary:
        """Return the session as listings have it; raises as `document`."""
        metadata: Any = self.value("metadata")
        return SessionSummary(
            metadata=metadata, total_messages=self.total_messages, position=str(self.position)
        )

    def _take(self, entry: Entry) -> None:
        match entry.op:
            case "session.create":
                self.create(_CREATION.decode(entry.json), entry.at, str(entry.position))
            case "document.change":
                self._change(entry)
            case "message.append":
                self.total_messages += 1
            case "message.remove":
                self.total_messages -= 1
            case "session.delete":
                self.deleted, self.total_messages = True, 0
                self.documents, self.versions = {}, {}

    def _change(self, entry: Entry) -> None:
        name: DocumentName = msgspec.convert(entry.id, DocumentName)
        change = _CHANGE.decode(entry.json)
        value = self.documents[name] | change.set
        for field in change.unset:
            value.pop(field, None)
        self.documents[name] = value
        self.versions[name] = str(entry.position)

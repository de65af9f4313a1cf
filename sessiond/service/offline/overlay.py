"""What waits to be written, laid over a session as it is known: as its writers see it. Pure.

The merge with what others wrote comes later, when Redis is back. What could not be done to the
session as it is known changes nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import structs

from sessiond.errors import InvalidInput
from sessiond.model import Message, NewMessage, NewSession
from sessiond.service.clock import moment, timestamp
from sessiond.service.content.records import check_edit, edited
from sessiond.service.content.shapes import checked_document
from sessiond.service.durable.waiting import Journaled
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    Create,
    Delete,
    Edit,
    PutPart,
    Remove,
    RemovePart,
    op_of,
)
from sessiond.sync.documents import merge_patch
from sessiond.sync.known import KnownSession
from sessiond.sync.outline import Outline
from sessiond.sync.parts import completed

_ANY = msgspec.json.Decoder()


def created(waiting: Journaled, workspace: str) -> Outline | None:
    """Return the session that a write is to create; None where it is another write.

    Args:
        waiting: the write.
        workspace: where it belongs if its creator did not say.
    """
    write = waiting.write
    if not isinstance(write, Create):
        return None
    home = write.new.workspace or workspace
    new: NewSession = structs.replace(write.new, session_id=write.session_id, workspace=home)
    outline = Outline()
    outline.create(new, timestamp(write.request.at_ms), waiting.version)
    return outline


def lay_over(known: KnownSession, waiting: Iterable[Journaled]) -> None:
    """Change what is known of a session by writes that wait, in their order."""
    for each in waiting:
        if known.outline.deleted:
            return
        match each.write:
            case Append():
                _append(known, each.write, each.version)
            case ChangeDocument():
                _change(known.outline, each.write, each.version)
            case Edit() | Remove() | PutPart() | RemovePart():
                _amend(known, each.write, each.version)
            case Delete():
                known.outline.deleted = True
        known.outline.touch(timestamp(each.write.request.at_ms))


def lay_over_outline(outline: Outline, waiting: Iterable[Journaled]) -> None:
    """The same for what a listing shows; that removed messages were there is taken for granted."""
    for each in waiting:
        match each.write:
            case Append():
                outline.total_messages += len(each.write.messages)
            case Remove():
                outline.total_messages -= 1
            case ChangeDocument():
                _change(outline, each.write, each.version)
            case Delete():
                outline.deleted = True
        outline.touch(timestamp(each.write.request.at_ms))


def _append(known: KnownSession, write: Append, version: str) -> None:
    for new in write.messages:
        try:
            message = _completed(new, write.request.at_ms)
        except InvalidInput:
            continue
        if not known.has_had(message.id):
            known.lay_over("message.append", message.id, message, version)
            known.outline.total_messages += 1


def _completed(new: NewMessage, at_ms: int) -> Message:
    return completed(new, str(new.id), moment(at_ms))


def _change(outline: Outline, write: ChangeDocument, version: str) -> None:
    current = outline.documents.get(write.name)
    if current is None or not isinstance(write.patch, dict):
        return
    wanted = dict(write.patch) if write.replace else merge_patch(current, write.patch)
    try:
        checked_document(write.name, current, wanted)
    except InvalidInput:
        return
    outline.documents[write.name] = wanted
    outline.versions[write.name] = version


def _amend(known: KnownSession, write: Edit | Remove | PutPart | RemovePart, version: str) -> None:
    body = known.conversation.body(write.message_id)
    if body is None:
        return
    value: Any = {}
    match write:
        case Edit():
            try:
                check_edit(write.patch)
                value = edited(_ANY.decode(body), write.patch)
            except InvalidInput:
                return
        case Remove():
            known.outline.total_messages -= 1
        case PutPart():
            value = {"id": write.part_id} | write.part
    known.lay_over(op_of(write), write.record_id, value, version)

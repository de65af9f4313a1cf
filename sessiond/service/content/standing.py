"""Messages and parts as they stand, and as they were at a version: found by index and log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from sessiond.errors import StoreDamaged
from sessiond.model import Message, Part
from sessiond.service.clock import milliseconds
from sessiond.service.content.merging import Subject
from sessiond.service.writing import Surroundings
from sessiond.store.sessions import RecordVersion
from sessiond.sync.entry import Entry
from sessiond.sync.position import parse_position
from sessiond.sync.sides import Side

NEW = "0"
"""The version of a record that is not there yet."""

_MESSAGE = msgspec.json.Decoder(Message)
_ANY = msgspec.json.Decoder()


class Standing(Struct, frozen=True):
    """A record as it stands, and who wrote it last; UNSET when it was removed, or never was.

    Attributes:
        side: the record and its last writing.
        version: what a change may be based on; "0" before the first writing.
        own_version: the same by its own writings: "0" of a part that came inside its message.
        may_be_new: whether there is a place for it, though it never was there.
    """

    side: Side
    version: str
    own_version: str
    may_be_new: bool = False


async def standing_of(around: Surroundings, subject: Subject) -> Standing:
    """Return a record as it stands.

    Raises:
        NotFound: there is no such session.
    """
    if subject.document == "message":
        return await _message_standing(around, subject.session_id, subject.id)
    return await _part_standing(around, subject)


async def value_at(around: Surroundings, subject: Subject, base: str) -> Any:
    """Return a record as it was at a version; UNSET if that is not known, or there was none."""
    position = parse_position(base)
    (entry,) = await around.store.log.entries_at(subject.session_id, [position.offset])
    if entry is None or position.epoch not in ("", entry.epoch):
        return UNSET
    message_id, _, part_id = subject.id.partition("/")
    if entry.op in ("message.append", "message.edit") and entry.id == message_id:
        message = _builtins(entry)
        if not part_id:
            return message
        return next((part for part in _parts(message) if part["id"] == part_id), UNSET)
    if entry.op == "part.put" and entry.id == subject.id:
        return _ANY.decode(entry.json)
    return UNSET


async def message_entry(around: Surroundings, session_id: str, message_id: str) -> Entry | None:
    """Return the operation that last wrote a message, or removed it; None if it never was there.

    Raises:
        NotFound, SessionDeleted: there is no such session, or no more.
        StoreDamaged: its index leads elsewhere.
    """

    async def last() -> RecordVersion | None:
        (version,) = await around.store.message_versions(session_id, [message_id])
        return version

    return await _last_entry(around, session_id, message_id, last)


async def _message_standing(around: Surroundings, session_id: str, message_id: str) -> Standing:
    """Return a message as it was written last, without its parts that were written on their own.

    Raises: see `message_entry`.
    """
    entry = await message_entry(around, session_id, message_id)
    if entry is None:
        return Standing(Side(UNSET), NEW, NEW)
    return _standing(entry, UNSET if entry.op == "message.remove" else _builtins(entry))


async def _part_standing(around: Surroundings, subject: Subject) -> Standing:
    session_id = subject.session_id
    message_id, _, part_id = subject.id.partition("/")
    message = await _message_standing(around, session_id, message_id)
    if message.side.value is UNSET:  # without its message there is no place for it
        return message
    entry = await _last_entry(
        around, session_id, subject.id, lambda: around.store.part_version(session_id, subject.id)
    )
    if entry:
        return _standing(entry, _ANY.decode(entry.json) if entry.op == "part.put" else UNSET)
    for part in _parts(message.side.value):
        if part["id"] == part_id:
            return Standing(message.side.holding(part), message.version, NEW)
    return Standing(message.side.holding(UNSET), NEW, NEW, may_be_new=True)


async def _last_entry(
    around: Surroundings,
    session_id: str,
    name: str,
    last: Callable[[], Awaitable[RecordVersion | None]],
) -> Entry | None:
    """Return the operation to which the index of a record leads; None if it was never written.

    Raises:
        NotFound, SessionDeleted: there is no such session, or no more.
        StoreDamaged: it is not in the log, or about something else.
    """
    version, before = await last(), None
    while version and version != before:
        (entry,) = await around.store.log.entries_at(session_id, [version.last])
        if entry and entry.id == name and entry.op.startswith(("message.", "part.")):
            return entry
        version, before = await last(), version  # Redis may have been rolled back in between
    await around.store.end(session_id)  # is there a session at all?
    if version is None:
        return None
    raise StoreDamaged(
        f"the index of {name!r} leads to entry {version.last} of the log, which is not about it",
        hint="something other than sessiond changed the stream; restore it from a backup",
    )


def _standing(entry: Entry, value: Any) -> Standing:
    side = Side(value, milliseconds(entry.at), entry.offset, entry.origin)
    return Standing(side, str(entry.position), str(entry.position))


def _builtins(entry: Entry) -> Any:
    return msgspec.to_builtins(_MESSAGE.decode(entry.json))


def _parts(message: Any) -> list[Part]:
    parts: list[Part] = message.get("parts", []) if isinstance(message, dict) else []
    return parts

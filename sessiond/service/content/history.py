"""What a document was at an earlier version, and who changed it since: from memory or the log."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec
from msgspec import UNSET

from sessiond.model import DocumentName
from sessiond.service.clock import milliseconds
from sessiond.store.draft import Draft
from sessiond.store.log import LogReader
from sessiond.sync.documents import fields_written
from sessiond.sync.entry import Entry
from sessiond.sync.position import Position, parse_position
from sessiond.sync.rebase import Writing, document_before, touched_fields
from sessiond.sync.recent import History, Recent

_ANY = msgspec.json.Decoder()
_REMEMBERED = 32
_CATCH_UP = 64
"""Entries: more are not worth it, the document itself is smaller."""


async def history_since(
    log: LogReader,
    session_id: str,
    name: DocumentName,
    base: Position,
    current: Recent,
    *,
    fields: AbstractSet[str],
) -> History:
    """Find out what a document was at a version, from what it is now.

    The fields that were written since are looked for in what was written before, newest first.
    Where the log does not lead back to the version, the history has no base, and what wrote each
    of some fields of the document last.

    Args:
        log: reads the log.
        session_id: whose document it is.
        name: which document.
        base: the version.
        current: the document now.
        fields: those that are to be changed: who wrote the others does not matter without a base.
    """
    since: list[Writing] = []
    now = parse_position(current.version).offset
    async for page in log.pages(session_id, base, until=max(now, base.offset + 1)):
        if page.reset:
            return History(None, await _last_writings(log, session_id, name, current, fields))
        since += [
            found
            for entry in page.entries
            if entry.offset <= now and (found := writing_of(entry, name))
        ]
    wanted = touched_fields(since)
    earlier: dict[str, Any] = {}
    reached = base.offset + 1
    async for entries in log.back_from(session_id, base.offset if wanted else 0):
        for entry in entries:
            reached = entry.offset
            stood = (writing_of(entry, name) or Writing({}, 0, 0, "")).fields
            earlier = {field: stood[field] for field in wanted & stood.keys()} | earlier
        if earlier.keys() == wanted:
            break
    if earlier.keys() != wanted and reached != 1:
        return History(None, await _last_writings(log, session_id, name, current, fields))
    earlier = (
        dict.fromkeys(wanted, UNSET) | earlier
    )  # what the creation does not name was not there
    return History(document_before(current.value, since, earlier), since)


async def _last_writings(
    log: LogReader, session_id: str, name: DocumentName, current: Recent, fields: AbstractSet[str]
) -> list[Writing]:
    """Return the operations that last wrote fields of a document, oldest first."""
    missing, found = current.value.keys() & fields, list[Writing]()
    end = parse_position(current.version).offset if missing else 0
    async for entries in log.back_from(session_id, end):
        for entry in entries:
            writing = writing_of(entry, name)
            if writing and missing & writing.fields.keys():
                missing -= writing.fields.keys()
                found.append(writing)
        if not missing:
            break
    return found[::-1]


class Remembered:
    """The documents that this process wrote or read last. Nobody else may change their values."""

    def __init__(self) -> None:
        self._recent: OrderedDict[tuple[str, DocumentName], Recent] = OrderedDict()

    def get(self, session_id: str, name: DocumentName) -> Recent | None:
        """Return a document as it was known last."""
        return self._recent.get((session_id, name))

    def keep(self, session_id: str, name: DocumentName, recent: Recent) -> None:
        """Remember a document, and forget the one that was not kept for longest."""
        self._recent[session_id, name] = recent
        self._recent.move_to_end((session_id, name))
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)


async def catch_up(log: LogReader, session_id: str, name: DocumentName, recent: Recent) -> bool:
    """Lead a document on to the log's end; tell whether a few entries were enough for that."""
    page = await log.page(session_id, parse_position(recent.version), _CATCH_UP)
    if page.reset or len(page.entries) == _CATCH_UP:
        return False
    for entry in page.entries:
        if entry.op == "document.change" and entry.id == name:
            # One that lost all it wanted changed no field, but the version.
            writing = writing_of(entry, name) or Writing({}, 0, entry.offset, entry.origin)
            recent.take(str(entry.position), writing, len(entry.json))
        elif entry.op == "session.delete":
            return False
    return True


def writing_of(entry: Entry, name: DocumentName) -> Writing | None:
    """Return what an operation did to a document; None when it did nothing to it."""
    if entry.op not in ("document.change", "session.create"):
        return None
    fields = fields_written(entry.op, entry.id, _ANY.decode(entry.json), name)
    if fields is None:
        return None
    return Writing(fields, milliseconds(entry.at), entry.offset, entry.origin)


def written(draft: Draft, offset: int, origin: str) -> Writing:
    """Return what an operation that was just written did to its document."""
    body = _ANY.decode(draft.json)
    fields = {**body["set"], **dict.fromkeys(body["unset"], UNSET)}
    return Writing(fields, milliseconds(draft.at), offset, origin)

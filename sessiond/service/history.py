"""What a document was at an earlier version, and who changed it since: found in the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from sessiond.model import DocumentName
from sessiond.service.clock import milliseconds
from sessiond.store.log import LogReader
from sessiond.sync.documents import fields_written
from sessiond.sync.entry import Entry
from sessiond.sync.position import Position
from sessiond.sync.rebase import Writing, document_before, touched_fields

_ANY = msgspec.json.Decoder()


class History(Struct, frozen=True):
    """A document at its base, and what was written since, oldest first.

    Without a base (None) nobody knows it any more: the log was trimmed, or is another one.
    """

    base: dict[str, Any] | None
    since: list[Writing]


async def history_since(
    log: LogReader,
    session_id: str,
    name: DocumentName,
    base: Position,
    current: Mapping[str, Any],
) -> History:
    """Find out what a document was at a version, from what it is now.

    The fields that were written since are looked for in what was written before, newest first.
    """
    since: list[Writing] = []
    async for page in log.pages(session_id, base):
        if page.reset:
            return History(None, since)
        since += [found for entry in page.entries if (found := writing_of(entry, name))]
    wanted = touched_fields(since)
    earlier: dict[str, Any] = {}
    reached = base.offset + 1
    async for entries in log.back_from(session_id, base.offset if wanted else 0):
        for entry in entries:
            reached = entry.offset
            fields = (writing_of(entry, name) or Writing({}, 0, 0, "")).fields
            earlier = {field: fields[field] for field in wanted & fields.keys()} | earlier
        if earlier.keys() == wanted:
            break
    if earlier.keys() != wanted and reached != 1:
        return History(None, since)
    earlier = (
        dict.fromkeys(wanted, UNSET) | earlier
    )  # what the creation does not name was not there
    return History(document_before(current, since, earlier), since)


def writing_of(entry: Entry, name: DocumentName) -> Writing | None:
    """Return what an operation did to a document; None when it did nothing to it."""
    if entry.op not in ("document.change", "session.create"):
        return None
    fields = fields_written(entry.op, entry.id, _ANY.decode(entry.json), name)
    if fields is None:
        return None
    return Writing(fields, milliseconds(entry.at), entry.offset, entry.origin)

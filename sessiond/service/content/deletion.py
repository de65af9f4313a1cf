"""A session deleted while others write: the deletion stands, and what they wrote is kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET

from sessiond.codec import json
from sessiond.errors import SessionDeleted, TooLarge
from sessiond.service.clock import milliseconds
from sessiond.service.content.merging import (
    DELETION,
    Outcomes,
    Subject,
    conflict_entry,
    conflict_records,
    own_origin,
    own_side,
    whole,
)
from sessiond.service.writing import Request, Surroundings, asked_at, now
from sessiond.store.draft import FieldChange
from sessiond.sync.defaults import MergedDocument
from sessiond.sync.entry import Entry
from sessiond.sync.position import parse_position
from sessiond.sync.sides import Side

_ANY = msgspec.json.Decoder()
_END = 10**15 - 1
_MOST_UNSEEN = 4_000
_MOST_UNSEEN_BYTES = 32 * 1024 * 1024

Unseen: TypeAlias = dict[tuple[MergedDocument, str], Side]
"""What of a session somebody had not seen: document or kind of record, and id → as it was last."""


async def kept(
    around: Surroundings,
    request: Request,
    error: SessionDeleted,
    came: Iterable[tuple[Subject, Any]],
) -> SessionDeleted:
    """Keep what came for a deleted session as conflicts, and return the refusal that says so.

    Args:
        around: the stores.
        request: who asks.
        error: the refusal of the store.
        came: what was to be written, each with its value.
    """
    try:
        numbers = await keep(around, request, came)
    except TooLarge:
        return error
    if not numbers:
        return error
    return SessionDeleted(
        error.detail,
        hint=f"what you wrote is kept as conflict {', '.join(numbers)} of that session; "
        "create a new one, ids are not used again",
    )


async def keep(
    around: Surroundings, request: Request, came: Iterable[tuple[Subject, Any]]
) -> list[str]:
    """Keep what came for a deleted session as conflicts, and return their numbers.

    The same request, by its key, is kept once.

    Raises:
        TooLarge: as much is kept already as may be.
    """
    kept = [
        await _keep(around, request, subject, value, place)
        for place, (subject, value) in enumerate(came)
    ]
    return [number for number in kept if number]


def kept_unseen(
    around: Surroundings, session_id: str, request: Request, unseen: Unseen, at: str
) -> tuple[FieldChange, ...]:
    """Return what a deletion keeps: what others wrote, which whoever deletes had not seen."""
    ours = own_side(around, request, UNSET, milliseconds(at))
    kept = []
    for (document, name), theirs in unseen.items():
        contest = whole(UNSET, ours, theirs, DELETION, "ours")
        subject = Subject(session_id, document, name)
        (record,) = conflict_records(Outcomes(subject, request.base, UNSET, (contest,)), at)
        kept.append(FieldChange("kept", f"{document} {name}", json.encode(record)))
    return tuple(kept)


async def unseen_after(around: Surroundings, session_id: str, request: Request) -> Unseen:
    """Return what others wrote after the base of a request, each record as it was last.

    What was removed again is not kept. Where the base is not part of the log any more, nobody can
    tell what was unseen: nothing then.

    Raises:
        TooLarge: it is more than a deletion can keep.
    """
    own = own_origin(around, request)
    unseen: Unseen = {}
    size = 0
    async for page in around.store.log.pages(session_id, parse_position(request.base)):
        for entry in () if page.reset else page.entries:
            if not entry.origin.startswith(own):
                _take(unseen, entry)
                size += len(entry.json)
        if len(unseen) > _MOST_UNSEEN or size > _MOST_UNSEEN_BYTES:
            raise TooLarge(
                f"more was written to session {session_id!r} since {request.base} than a deletion "
                "can keep",
                hint="load the session, and delete it with the position that you have seen",
            )
    return unseen


def _take(unseen: Unseen, entry: Entry) -> None:
    side = Side(UNSET, milliseconds(entry.at), entry.offset, entry.origin)
    match entry.op:
        case "message.append" | "message.edit":
            unseen["message", entry.id] = side.holding(_ANY.decode(entry.json))
        case "part.put":
            unseen["part", entry.id] = side.holding(_ANY.decode(entry.json))
        case "message.remove":
            for kind, record in list(unseen):
                if kind in ("message", "part") and record.partition("/")[0] == entry.id:
                    del unseen[kind, record]
        case "part.remove":
            unseen.pop(("part", entry.id), None)
        case "document.change" if entry.id in ("context", "preferences"):
            document: MergedDocument = "context" if entry.id == "context" else "preferences"
            known = unseen.get((document, ""), side.holding({})).value
            unseen[document, ""] = side.holding({**known, **_ANY.decode(entry.json)["set"]})


async def _keep(
    around: Surroundings, request: Request, subject: Subject, value: Any, place: int
) -> str | None:
    at, at_ms = now(around, request), asked_at(around, request)
    contest = whole(
        UNSET,
        own_side(around, request, value, at_ms),
        await _deletion(around, subject.session_id),
        DELETION,
        "theirs",
    )
    (record,) = conflict_records(Outcomes(subject, "", UNSET, (contest,)), at)
    fields = conflict_entry(record, at).items()
    await around.conflicts.note(subject.session_id, around.clock())
    words = [word for field in fields for word in field]
    key = f"{request.key}:{place}" if request.key else ""
    return await around.conflicts.keep_refused(subject.session_id, key, words)


async def _deletion(around: Surroundings, session_id: str) -> Side:
    """Return who deleted the session, and when: the log's only entry."""
    async for entries in around.store.log.back_from(session_id, _END):
        entry = entries[0]
        return Side(UNSET, milliseconds(entry.at), entry.offset, entry.origin)
    return Side(UNSET)

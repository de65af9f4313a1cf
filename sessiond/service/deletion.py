"""A session deleted while others write: the deletion stands, and what they wrote is kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from sessiond.codec import json
from sessiond.errors import SessionDeleted
from sessiond.service.clock import milliseconds
from sessiond.service.merging import (
    DELETION,
    Outcomes,
    Subject,
    conflict_entry,
    conflict_records,
    own_side,
    whole,
)
from sessiond.service.writing import Request, Surroundings, now
from sessiond.store.committer import FieldChange
from sessiond.sync.entry import Entry
from sessiond.sync.sides import Side

_ANY = msgspec.json.Decoder()
_END = 10**15 - 1


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
    numbers = [await _keep(around, request, subject, value) for subject, value in came]
    if None in numbers:
        return error
    return SessionDeleted(
        error.detail,
        hint=f"what you wrote is kept as conflict {', '.join(map(str, numbers))} of that session; "
        "create a new one, ids are not used again",
    )


def kept_messages(
    around: Surroundings, session_id: str, request: Request, unseen: Iterable[Entry], at: str
) -> tuple[FieldChange, ...]:
    """Return what a deletion keeps: messages that whoever deletes had not seen."""
    ours = own_side(around, request, UNSET, milliseconds(at))
    kept = []
    for entry in unseen:
        theirs = Side(_ANY.decode(entry.json), milliseconds(entry.at), entry.offset, entry.origin)
        contest = whole(UNSET, ours, theirs, DELETION, "ours")
        subject = Subject(session_id, "message", entry.id)
        (record,) = conflict_records(Outcomes(subject, request.base, UNSET, (contest,)), at)
        kept.append(FieldChange("kept", entry.id, json.encode(record)))
    return tuple(kept)


async def _keep(around: Surroundings, request: Request, subject: Subject, value: Any) -> str | None:
    at, at_ms = now(around), around.clock()
    contest = whole(
        UNSET,
        own_side(around, request, value, at_ms),
        await _deletion(around, subject.session_id),
        DELETION,
        "theirs",
    )
    (record,) = conflict_records(Outcomes(subject, "", UNSET, (contest,)), at)
    fields = conflict_entry(record, at).items()
    await around.conflicts.note(subject.session_id, at_ms)
    words = [word for field in fields for word in field]
    return await around.conflicts.keep_refused(subject.session_id, words)


async def _deletion(around: Surroundings, session_id: str) -> Side:
    """Return who deleted the session, and when: the log's only entry."""
    async for entries in around.store.log.back_from(session_id, _END):
        entry = entries[0]
        return Side(UNSET, milliseconds(entry.at), entry.offset, entry.origin)
    return Side(UNSET)

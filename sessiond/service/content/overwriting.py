"""Records that somebody writes anew without knowing what stands: that is kept before it is lost.

So it is with opencodes: each writes into its own database first, and what two of them wrote at once
meets in the log. The later writing stands there, for all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct, structs

from sessiond.errors import NotFound
from sessiond.service.clock import milliseconds
from sessiond.service.content.merging import (
    Outcomes,
    Subject,
    commit_with_conflicts,
    conflict_drafts,
    own_side,
)
from sessiond.service.identity import content_digest
from sessiond.service.writing import Request, Surroundings, now
from sessiond.store.draft import IdempotencyKey
from sessiond.store.outcome import KeyUsed
from sessiond.sync.documents import fields_written
from sessiond.sync.merge import Conflict
from sessiond.sync.rebase import Contest
from sessiond.sync.sides import Path, Side, canonical, same

_END = 10**15 - 1
_ANY = msgspec.json.Decoder()


class Known(Struct, frozen=True):
    """A record as it was known to somebody, and the offset of that writing; 0 for their own."""

    offset: int
    value: Any


class Rewriting(Struct, frozen=True):
    """A part that is about to be written anew.

    Attributes:
        session_id: the session.
        name: `<message>/<part>`.
        value: the part as it will be.
        request: who writes it; its key tells this writing from others.
        known: finds out what was known of it; asked only if somebody else wrote it last.
    """

    session_id: str
    name: str
    value: Any
    request: Request
    known: Callable[[], Awaitable[Known | None]]


async def keep_other_title(
    around: Surroundings, session_id: str, base: str, title: str, request: Request
) -> None:
    """Keep the title of a session that a rename is about to replace unseen.

    To be called before the new title is written; the same call keeps it once.

    Args:
        around: the stores.
        session_id: the session.
        base: the title that was renamed.
        title: the new one.
        request: who renames; its key tells this rename from others.

    Raises:
        SessionDeleted, StoreUnavailable.
    """
    try:
        snapshot = await around.store.snapshot(session_id)
    except NotFound:  # it is created with this title
        return
    standing = snapshot.metadata.get("title", "")
    if standing not in (base, title):
        theirs = (await _last_title(around, session_id)).holding(standing)
        conflict = _conflict(("title",), base, title, standing)
        await _keep(around, Subject(session_id, "metadata"), conflict, theirs, request)


async def keep_other_part(around: Surroundings, rewriting: Rewriting) -> None:
    """Keep a part of a message that is about to be written anew unseen; see `keep_other_title`.

    Raises:
        StoreUnavailable, and what finding out raises what was known.
    """
    session_id, name, request = rewriting.session_id, rewriting.name, rewriting.request
    version = await around.store.part_version(session_id, name)
    if version is None or version.removed:
        return
    (entry,) = await around.store.log.entries_at(session_id, [version.last])
    if entry is None or entry.id != name or entry.origin.startswith(f"{request.client}@"):
        return
    known = await rewriting.known()
    standing = _ANY.decode(entry.json)
    if known is None or version.last <= known.offset or same(standing, known.value):
        return
    if not same(standing, rewriting.value):
        theirs = Side(standing, milliseconds(entry.at), entry.offset, entry.origin)
        conflict = _conflict((), known.value, rewriting.value, standing)
        await _keep(around, Subject(session_id, "part", name), conflict, theirs, request)


def _conflict(path: Path, base: Any, ours: Any, theirs: Any) -> Conflict:
    return Conflict(
        path=path,
        base=base,
        ours=ours,
        theirs=theirs,
        strategy="last-writer-wins",
        outcome="ours",
    )


async def _keep(
    around: Surroundings, subject: Subject, conflict: Conflict, theirs: Side, request: Request
) -> None:
    ours = own_side(around, request, conflict.ours, around.clock())
    outcomes = Outcomes(subject, "", None, (Contest(conflict, ours, theirs),))
    (draft,) = conflict_drafts(outcomes, at=now(around, request), client=request.client)
    key = IdempotencyKey(f"key:{request.key}", content_digest(canonical(conflict.ours)))
    with contextlib.suppress(KeyUsed):  # it was kept when this was tried before
        group = [structs.replace(draft, key=key)]
        await commit_with_conflicts(around, subject.session_id, group)


async def _last_title(around: Surroundings, session_id: str) -> Side:
    """Return who wrote the title last, and when."""
    async for entries in around.store.log.back_from(session_id, _END):
        for entry in entries:
            if entry.op in ("document.change", "session.create"):
                fields = fields_written(entry.op, entry.id, _ANY.decode(entry.json), "metadata")
                if fields and "title" in fields:
                    at_ms = milliseconds(entry.at)
                    return Side(fields["title"], at_ms, entry.offset, entry.origin)
    return Side("")

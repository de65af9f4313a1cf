"""Two who renamed a session at once: the later name stands, and the other is kept."""

from __future__ import annotations

import contextlib

import msgspec

from sessiond.errors import NotFound
from sessiond.service.clock import milliseconds
from sessiond.service.identity import content_digest
from sessiond.service.merging import (
    Outcomes,
    Subject,
    commit_with_conflicts,
    conflict_drafts,
    own_side,
)
from sessiond.service.writing import Request, Surroundings, now
from sessiond.store.committer import IdempotencyKey, KeyUsed
from sessiond.sync.documents import fields_written
from sessiond.sync.merge import Conflict
from sessiond.sync.rebase import Contest
from sessiond.sync.sides import Side

_END = 10**15 - 1
_ANY = msgspec.json.Decoder()


async def keep_other_title(
    around: Surroundings, session_id: str, *, base: str, title: str, request: Request
) -> None:
    """Keep the title that stands as a conflict, if it is about to be lost unseen.

    So it is where the one who renames the session did not know it. To be called before the new
    title is written; the same call, by the key of the request, keeps it once.

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
    if standing in (base, title):
        return
    theirs = (await _last_title(around, session_id)).holding(standing)
    ours = own_side(around, request, title, around.clock())
    conflict = Conflict(
        path=("title",),
        base=base,
        ours=title,
        theirs=standing,
        strategy="last-writer-wins",
        outcome="ours",
    )
    contest = Contest(conflict, ours, theirs)
    outcomes = Outcomes(Subject(session_id, "metadata"), "", {"title": title}, (contest,))
    (draft,) = conflict_drafts(outcomes, at=now(around), client=request.client)
    key = IdempotencyKey(f"key:{request.key}", content_digest(title.encode()))
    with contextlib.suppress(KeyUsed):  # it was kept when this was tried before
        await commit_with_conflicts(around, session_id, [msgspec.structs.replace(draft, key=key)])


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

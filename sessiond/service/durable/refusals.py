"""Writes that were acknowledged and are refused when they are performed: kept as conflicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, structs

from sessiond.errors import SessionDeleted, SessiondError, StoreDamaged
from sessiond.service import writes
from sessiond.service.content.deletion import keep
from sessiond.service.content.merging import (
    REFUSAL,
    Outcomes,
    Subject,
    commit_with_conflicts,
    conflict_drafts,
    own_side,
    whole,
)
from sessiond.service.content.shapes import decoded_document
from sessiond.service.content.standing import standing_of
from sessiond.service.writes import Write
from sessiond.service.writing import Surroundings, asked_at, now, written_before
from sessiond.store.draft import Draft, IdempotencyKey
from sessiond.store.outcome import KeyUsed
from sessiond.sync.documents import merge_patch
from sessiond.sync.position import Position
from sessiond.sync.sides import Side


class Refusals:
    """Keeps what is refused.

    Args:
        around: the stores, time and randomness.
    """

    def __init__(self, around: Surroundings) -> None:
        self._around = around

    async def keep(self, write: Write, error: SessiondError) -> Position | None:
        """Keep a refused write in its session's conflicts, with the reason; once.

        A user's preferences have no conflicts: a change of them waits until what is damaged is
        mended, and one under a key that another one has is dropped.

        Returns:
            Where the session's log has it; None where it has nothing of it, for it was deleted.

        Raises:
            SessionMissing: there is no such session.
            StoreUnavailable, StoreDamaged.
        """
        if isinstance(write, writes.ChangePreferences):
            if isinstance(error, StoreDamaged):
                raise error
            return None
        try:
            group = [
                draft
                for place, (subject, value) in enumerate(_asked_for(write))
                for draft in await self._drafts(write, subject, value, place, error)
            ]
            return await self._commit(write.session_id, group)
        except SessionDeleted:
            await keep(self._around, write.request, _asked_for(write))
            return None

    async def _commit(self, session_id: str, group: list[Draft]) -> Position:
        while True:
            try:
                return (await commit_with_conflicts(self._around, session_id, group))[-1]
            except KeyUsed:  # it was kept before, unless Redis has just lost that
                if before := await written_before(self._around, session_id, group[-1].key):
                    return before

    async def _drafts(
        self, write: Write, subject: Subject, value: Any, place: int, error: SessiondError
    ) -> list[Draft]:
        around, request = self._around, write.request
        theirs = await self._standing(subject)
        if isinstance(write, writes.ChangeDocument | writes.Edit) and isinstance(
            theirs.value, dict
        ):
            value = merge_patch(theirs.value, value)
        ours = own_side(around, request, value, asked_at(around, request))
        contest = whole(UNSET, ours, theirs, REFUSAL, "theirs")
        outcomes = Outcomes(subject, request.base, UNSET, (contest,), reason=str(error))
        drafts = conflict_drafts(outcomes, at=now(around, request), client=request.client)
        key = IdempotencyKey(f"key:{request.key}:refused:{place}", "") if request.key else None
        return [structs.replace(draft, key=key) for draft in drafts]

    async def _standing(self, subject: Subject) -> Side:
        """Return what stands where a write was to go."""
        match subject.document:
            case "message" | "part":
                return (await standing_of(self._around, subject)).side
            case name:
                snapshot = await self._around.store.snapshot(subject.session_id)
                return Side(decoded_document(snapshot, name))


def _asked_for(write: Write) -> Iterator[tuple[Subject, Any]]:
    """Yield what a write was to change, and the value it brought."""
    session_id = write.session_id
    match write:
        case writes.Append():
            for message in write.messages:
                yield Subject(session_id, "message", str(message.id)), msgspec.to_builtins(message)
        case writes.Edit():
            yield Subject(session_id, "message", write.record_id), write.patch
        case writes.Remove():
            yield Subject(session_id, "message", write.record_id), UNSET
        case writes.PutPart():
            yield Subject(session_id, "part", write.record_id), write.part
        case writes.RemovePart():
            yield Subject(session_id, "part", write.record_id), UNSET
        case writes.ChangeDocument():
            yield Subject(session_id, write.name), write.patch
        case writes.Create() | writes.Resolve() | writes.Delete() | writes.ChangePreferences():
            yield Subject(session_id, "metadata"), msgspec.to_builtins(write)

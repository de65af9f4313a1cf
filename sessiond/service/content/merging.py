"""What merges leave out of their results, on its way into the log: a conflict for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from sessiond.codec import json
from sessiond.model import ConflictRecord, ConflictSide
from sessiond.service.clock import moment, moment_of
from sessiond.service.writing import Request, Surroundings, commit
from sessiond.store.draft import Draft, FieldChange
from sessiond.sync.defaults import MergedDocument
from sessiond.sync.documents import value_at
from sessiond.sync.globs import dotted
from sessiond.sync.merge import Conflict
from sessiond.sync.position import Position
from sessiond.sync.rebase import Contest
from sessiond.sync.sides import Outcome, Side, canonical
from sessiond.sync.strategies import MANUAL

NOT_IN_THE_LOG = 2**53
"""The offset of a change that is not in the log yet, from here on: after all that are."""

REMOVAL, DELETION, SEVERAL, REFUSAL = "removal", "deletion", "several", "refusal"
"""The rules by which a removed record stays removed, and a deleted session deleted; the name of
those of many fields, where one conflict tells of all; and of what was acknowledged and refused."""

_MOST_CONTESTS = 64
_MOST_BYTES = 256 * 1024


class Subject(Struct, frozen=True):
    """What is merged: a document of a session, or the message or part of an id."""

    session_id: str
    document: MergedDocument
    id: str = ""


class Outcomes(Struct, frozen=True):
    """What a merge made of a subject, and what it left out.

    `base` is the version it began at, `reason` why something was refused.
    """

    subject: Subject
    base: str
    value: Any
    contests: tuple[Contest, ...] = ()
    reason: str = ""


def own_origin(around: Surroundings, request: Request) -> str:
    """Return who makes a change, as the log will say."""
    writer = around.store.writer
    return f"{request.client}@{writer}" if request.client else writer


def own_side(
    around: Surroundings, request: Request, value: Any, at_ms: int, place: int = 0
) -> Side:
    """Return a change that is not written yet as a side of a merge; `place`: in its group."""
    return Side(value, at_ms, NOT_IN_THE_LOG + place, own_origin(around, request))


def whole(base: Any, ours: Side, theirs: Side, strategy: str, outcome: Outcome) -> Contest:
    """Return the contest of two about a record as a whole."""
    conflict = Conflict(
        path=(), base=base, ours=ours.value, theirs=theirs.value, strategy=strategy, outcome=outcome
    )
    return Contest(conflict, ours, theirs)


def told_of(
    contests: Sequence[Contest], base: Any, ours: Side, theirs: Side
) -> tuple[Contest, ...]:
    """Return what is to be recorded of a merge: each conflict, or one of the whole for many.

    Each holds three values, and those of nested lists hold one another: what is kept of a change
    must not be many times as large as the change.

    Args:
        contests: the conflicts.
        base: what both sides began with, as a whole.
        ours: what we made of it.
        theirs: what the others made of it.
    """
    size = sum(
        len(canonical(value))
        for contest in contests
        for value in (contest.conflict.base, contest.conflict.ours, contest.conflict.theirs)
    )
    if len(contests) <= 1 or (len(contests) <= _MOST_CONTESTS and size <= _MOST_BYTES):
        return tuple(contests)
    is_open = any(contest.conflict.is_open for contest in contests)
    return (whole(base, ours, theirs, MANUAL.name if is_open else SEVERAL, "merged"),)


async def commit_merged(
    around: Surroundings, draft: Draft, outcomes: Outcomes
) -> tuple[Position, list[str] | UnsetType]:
    """Write an operation together with the conflicts that it came with, all or nothing.

    Returns:
        Where the operation went, and the numbers of the conflicts.
    """
    group = [draft, *conflict_drafts(outcomes, at=draft.at, client=draft.client)]
    written, *conflicts = await commit_with_conflicts(around, outcomes.subject.session_id, group)
    return written, [str(position.offset) for position in conflicts] or UNSET


async def commit_with_conflicts(
    around: Surroundings, session_id: str, group: list[Draft]
) -> list[Position]:
    """Write a group that may hold conflicts, and return where each operation went."""
    if any(draft.op.startswith("conflict.") for draft in group):  # first: no crash may hide them
        await around.conflicts.note(session_id, around.clock())
    return (await commit(around, session_id, group)).positions


def conflict_drafts(outcomes: Outcomes, *, at: str, client: str) -> list[Draft]:
    """Return the operations that record what a merge left out, to be written behind its own."""
    subject = outcomes.subject
    return [
        Draft(
            "conflict.record",
            subject.id or subject.document,
            at,
            json.encode(
                {
                    "document": subject.document,
                    "id": subject.id,
                    "path": record.path,
                    "strategy": record.strategy,
                    "outcome": record.outcome,
                    "state": record.state,
                }
            ),
            client=client,
            changes=tuple(
                FieldChange("conflict", *field) for field in conflict_entry(record, at).items()
            ),
        )
        for record in conflict_records(outcomes, at)
    ]


def conflict_entry(record: ConflictRecord, at: str) -> dict[str, str | bytes]:
    """Return the fields of a conflict's entry: what a person filters by, and all of it as JSON.

    Its number is the entry's own, and not known yet.
    """
    content = msgspec.to_builtins(record)
    del content["number"]
    return {
        "what": "conflict",
        "document": record.document,
        "id": record.id,
        "path": dotted(record.path),
        "strategy": record.strategy,
        "outcome": record.outcome,
        "at": at,
        "json": json.encode(content),
    }


async def recorded_behind(
    around: Surroundings, session_id: str, position: Position
) -> list[str] | UnsetType:
    """Return the numbers of the conflicts that were written behind an operation, some time ago."""
    page = await around.store.log.page(session_id, position)
    numbers = []
    for entry in page.entries:
        if entry.op != "conflict.record":
            break
        numbers.append(str(entry.offset))
    return numbers or UNSET


def conflict_records(outcomes: Outcomes, at: str) -> Iterator[ConflictRecord]:
    """Yield what a merge left out, as it is kept; the number is that of the operation to come."""
    subject = outcomes.subject
    for contest in outcomes.contests:
        conflict = contest.conflict
        is_mixed = conflict.outcome == "merged"
        yield ConflictRecord(
            session_id=subject.session_id,
            document=subject.document,
            id=subject.id,
            path=list(conflict.path),
            strategy=conflict.strategy,
            outcome=conflict.outcome,
            base_version=outcomes.base,
            base=conflict.base,
            ours=_side(contest.ours, conflict.ours),
            theirs=_side(contest.theirs, conflict.theirs),
            merged=value_at(outcomes.value, conflict.path) if is_mixed else UNSET,
            at=moment_of(at),
            reason=outcomes.reason or UNSET,
            state="open" if conflict.is_open else "settled",
        )


def _side(side: Side, value: Any) -> ConflictSide:
    return ConflictSide(
        value=value,
        origin=side.origin,
        at=moment(side.at),
        version=UNSET if side.offset >= NOT_IN_THE_LOG else str(side.offset),
    )

"""Changes of messages and parts that are there: edited, removed, written anew.

A change that names the version it was made on is merged with what others made of the record since.
What was removed stays removed: a change that came too late for it is kept as a conflict.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import msgspec
from msgspec import UNSET, structs

from sessiond.codec import json
from sessiond.errors import InvalidInput, NotFound, SessionDeleted, SessiondError
from sessiond.model import Message, Part, WrittenRecord
from sessiond.service.content.deletion import kept
from sessiond.service.content.merging import (
    REMOVAL,
    Outcomes,
    Subject,
    commit_merged,
    commit_with_conflicts,
    conflict_drafts,
    own_side,
    recorded_behind,
    told_of,
    whole,
)
from sessiond.service.content.standing import NEW, Standing, standing_of, value_at
from sessiond.service.writing import (
    PLAIN,
    Request,
    Surroundings,
    asked_at,
    attempt,
    check_expected,
    commit,
    idempotency_key,
    now,
    seen,
    written_before,
)
from sessiond.store.draft import Draft, IdempotencyKey
from sessiond.sync.documents import merge_patch
from sessiond.sync.merge import merge
from sessiond.sync.parts import check_not_own, check_part, with_parts
from sessiond.sync.rebase import Contest
from sessiond.sync.recent import is_version
from sessiond.sync.rules import LAST_WRITER

_EDITABLE = frozenset({"role", "content", "tool_calls", "metadata"})
_MESSAGE = msgspec.json.Decoder(Message)
_ANY = msgspec.json.Decoder()

Make = Callable[[Any], Any]
"""Makes of a record what a change makes of it."""


class Records:
    """Edits and removes messages, writes and removes parts.

    Args:
        around: the stores, the rules of merging, time and randomness.
    """

    def __init__(self, around: Surroundings) -> None:
        self._around = around

    async def edit(
        self, session_id: str, message_id: str, patch: Any, request: Request = PLAIN
    ) -> WrittenRecord:
        """Apply a JSON Merge Patch (RFC 7396) to a message; its parts are edited one by one.

        Raises:
            InvalidInput: the patch touches other fields, or makes it no message.
            VersionMismatch: the expected version is not the current one.
            NotFound: there is no such message, or no more.
            SessionDeleted, Contended, AlreadyExists (the key): see `writing`.
        """
        check_edit(patch)
        subject = Subject(session_id, "message", message_id)
        key = idempotency_key(request, json.encode(["edit", message_id, patch]))
        try:
            return await self._put(
                "message.edit", subject, request, key, lambda before: edited(before, patch)
            )
        except SessionDeleted as error:
            raise await kept(self._around, request, error, [(subject, patch)]) from error

    async def put_part(
        self, session_id: str, message_id: str, part_id: str, part: Part, request: Request = PLAIN
    ) -> WrittenRecord:
        """Write a part of a message: a new one, or the part of that id anew.

        Raises:
            InvalidInput: the part has no type, or another id.
            NotFound: there is no such message, or the part was removed.
            SessionDeleted, VersionMismatch, AlreadyExists (the key).
        """
        part = {"id": part_id} | part
        if part["id"] != part_id:
            raise InvalidInput(f"the part says its id is {part['id']!r}, the address {part_id!r}")
        check_part(part)
        subject = Subject(session_id, "part", f"{message_id}/{part_id}")
        body = json.encode(part)
        key = idempotency_key(request, b"part.put %b %b" % (subject.id.encode(), body))
        try:
            if request.base:
                return await self._put("part.put", subject, request, key, lambda _: part)
            return await self._write("part.put", subject, body, request, key)
        except SessionDeleted as error:
            raise await kept(self._around, request, error, [(subject, part)]) from error

    async def remove(
        self, session_id: str, message_id: str, request: Request = PLAIN
    ) -> WrittenRecord:
        """Remove a message and its parts from the conversation; the log keeps what it was.

        Raises:
            NotFound, SessionDeleted, VersionMismatch, AlreadyExists (the key).
        """
        subject = Subject(session_id, "message", message_id)
        return await self._remove("message.remove", subject, request)

    async def remove_part(
        self, session_id: str, message_id: str, part_id: str, request: Request = PLAIN
    ) -> WrittenRecord:
        """Remove one part of a message.

        Raises:
            NotFound, SessionDeleted, VersionMismatch, AlreadyExists (the key).
        """
        check_not_own(part_id)
        subject = Subject(session_id, "part", f"{message_id}/{part_id}")
        standing = await standing_of(self._around, subject)
        if standing.version == NEW:
            raise NotFound(f"message {message_id!r} has no part {part_id!r}")
        return await self._remove("part.remove", subject, request)

    # Writing

    async def _put(
        self,
        op: str,
        subject: Subject,
        request: Request,
        key: IdempotencyKey | None,
        make: Make,
    ) -> WrittenRecord:
        """Write a record anew: what a change makes of it, whatever it was made on."""
        around, at_ms = self._around, asked_at(self._around, request)

        async def write() -> WrittenRecord:
            standing = await standing_of(self._around, subject)
            if standing.side.value is UNSET and not standing.may_be_new:
                if before := await self._written(subject, key):
                    return before
                await self._refuse_too_late(subject, request, make, key, at_ms)
            check_expected(request.expected, standing.version)
            merged = await self._merged(subject, standing, request, make, at_ms)
            draft = Draft(
                op,
                subject.id,
                now(around, request),
                json.encode(merged.value),
                expected=standing.own_version,
                key=key,
                client=request.client,
            )
            try:
                position, conflicts = await commit_merged(around, draft, merged)
            except NotFound:  # removed since it was read
                await self._refuse_too_late(subject, request, make, key, at_ms)
            return WrittenRecord(id=subject.id, version=str(position), conflicts=conflicts)

        return await self._attempt(subject, request, key, write)

    async def _remove(self, op: str, subject: Subject, request: Request) -> WrittenRecord:
        key = idempotency_key(request, b"%b %b {}" % (op.encode(), subject.id.encode()))
        if not request.base:
            return await self._write(op, subject, b"{}", request, key)
        around, at_ms = self._around, asked_at(self._around, request)

        async def write() -> WrittenRecord:
            standing = await standing_of(self._around, subject)
            outcomes = Outcomes(subject, "", UNSET)
            if not is_version(request.base, standing.version) and standing.side.value is not UNSET:
                base = await value_at(self._around, subject, request.base)
                ours = own_side(around, request, UNSET, at_ms)
                contest = whole(base, ours, standing.side, REMOVAL, "ours")
                known = "" if base is UNSET else request.base
                outcomes = Outcomes(subject, known, UNSET, (contest,))
            draft = Draft(
                op,
                subject.id,
                now(around, request),
                b"{}",
                expected=standing.own_version,
                key=key,
                client=request.client,
            )
            position, conflicts = await commit_merged(around, draft, outcomes)
            return WrittenRecord(id=subject.id, version=str(position), conflicts=conflicts)

        return await self._attempt(subject, request, key, write)

    async def _write(
        self,
        op: str,
        subject: Subject,
        body: bytes,
        request: Request,
        key: IdempotencyKey | None,
    ) -> WrittenRecord:
        """Write an operation that needs to know nothing of what stands."""
        around = self._around

        async def write() -> WrittenRecord:
            draft = Draft(
                op,
                subject.id,
                now(around, request),
                body,
                expected=request.expected,
                key=key,
                client=request.client,
            )
            committed = await commit(around, subject.session_id, [draft])
            return WrittenRecord(id=subject.id, version=str(committed.positions[0]))

        return await self._attempt(subject, request, key, write)

    async def _attempt(
        self,
        subject: Subject,
        request: Request,
        key: IdempotencyKey | None,
        write: Callable[[], Awaitable[WrittenRecord]],
    ) -> WrittenRecord:
        """Write until no other writer is met; see `attempt`.

        Whether it was written before is asked only where it fails: with a key that was used, the
        commit script lets nothing through.
        """

        async def once() -> WrittenRecord:
            try:
                return await write()
            except SessiondError:
                if before := await self._written(subject, key):
                    return before
                raise

        return await attempt(self._around, subject.session_id, subject.id, request, once)

    async def _written(self, subject: Subject, key: IdempotencyKey | None) -> WrittenRecord | None:
        """Return what the write of this key came to, if it was made before."""
        before = await written_before(self._around, subject.session_id, key)
        if before is None:
            return None
        conflicts = await recorded_behind(self._around, subject.session_id, before)
        return WrittenRecord(id=subject.id, version=str(before), conflicts=conflicts)

    # Merging

    async def _merged(
        self, subject: Subject, standing: Standing, request: Request, make: Make, at_ms: int
    ) -> Outcomes:
        theirs = standing.side
        if not request.base or (not request.made and is_version(request.base, standing.version)):
            return Outcomes(subject, request.base, make(theirs.value))
        base = seen(await value_at(self._around, subject, request.base), request)
        is_known = base is not UNSET or request.base == NEW
        ours = own_side(self._around, request, make(theirs.value if base is UNSET else base), at_ms)
        rules = self._around.rules.of(subject.document) if is_known else LAST_WRITER
        merged = merge(base, ours, theirs, rules)
        contests = [Contest(conflict, ours, theirs) for conflict in merged.conflicts]
        value = _derived(merged.value) if subject.document == "message" else merged.value
        known = request.base if is_known else ""
        return Outcomes(subject, known, value, told_of(contests, base, ours, theirs))

    async def _refuse_too_late(
        self, subject: Subject, request: Request, make: Make, key: IdempotencyKey | None, at_ms: int
    ) -> NoReturn:
        """Keep a change of a record that was removed meanwhile, once, and refuse it.

        Raises:
            NotFound: always.
        """
        around, session_id = self._around, subject.session_id
        standing = await standing_of(around, subject)
        base = (
            seen(await value_at(around, subject, request.base), request) if request.base else UNSET
        )
        if base is UNSET or standing.version == NEW:
            raise NotFound(f"session {session_id!r} has no {subject.document} {subject.id!r}")
        once = IdempotencyKey(f"{key.name}:too-late", key.digest) if key else None
        kept = await written_before(around, session_id, once)
        if kept is None:
            ours = own_side(around, request, make(base), at_ms)
            contest = whole(base, ours, standing.side, REMOVAL, "theirs")
            outcomes = Outcomes(subject, request.base, UNSET, (contest,))
            (draft,) = conflict_drafts(outcomes, at=now(around, request), client=request.client)
            draft = structs.replace(draft, key=once)
            (kept,) = await commit_with_conflicts(around, session_id, [draft])
        raise NotFound(
            f"{subject.document} {subject.id!r} was removed",
            hint=f"your change is kept as conflict {kept.offset} of the session",
        )


def check_edit(patch: Any) -> None:
    """Check that a patch changes only what may change of a message.

    Raises:
        InvalidInput: it is no object, or touches other fields.
    """
    if not isinstance(patch, dict) or not patch.keys() <= _EDITABLE:
        raise InvalidInput(
            "an edit is a JSON object of the fields to change",
            hint=f"these can change: {', '.join(sorted(_EDITABLE))}; parts on their own",
        )


def edited(before: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return a message with a patch applied.

    Raises:
        InvalidInput: it is no message then, or its content follows from its parts.
    """
    if "parts" in before and patch.keys() & {"content", "tool_calls"}:
        raise InvalidInput(
            "content and tool_calls of this message follow from its parts",
            hint="change its parts instead",
        )
    try:
        message = msgspec.convert(merge_patch(before, patch), Message)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the edit does not leave a message: {error}") from error
    changed: dict[str, Any] = msgspec.to_builtins(message)
    return changed


def _derived(value: dict[str, Any]) -> dict[str, Any]:
    """Return a merged message with what follows from its parts made anew."""
    message = msgspec.convert(value, Message)
    if message.parts is UNSET:
        return value
    derived: dict[str, Any] = msgspec.to_builtins(with_parts(message, message.parts))
    return derived

"""Conflicts: listed, read, decided by a person, and dropped when they are old."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Struct, structs

from sessiond.codec import json
from sessiond.errors import InvalidInput, NotFound, SessionDeleted, StoreDamaged
from sessiond.model import Choice, ConflictRecord, ConflictState, Message, Resolution
from sessiond.service.clock import milliseconds, moment_of
from sessiond.service.content.merging import Subject, commit_with_conflicts, own_origin
from sessiond.service.content.shapes import (
    checked_document,
    decoded_document,
    document_change,
)
from sessiond.service.content.standing import standing_of
from sessiond.service.identity import new_id
from sessiond.service.writing import (
    PLAIN,
    Request,
    Surroundings,
    attempt,
    check_expected,
    idempotency_key,
    now,
    written_before,
)
from sessiond.store.conflicts import ConflictEntry
from sessiond.store.draft import Draft, FieldChange, IdempotencyKey
from sessiond.sync.documents import replaced_at
from sessiond.sync.parts import check_part

MOST = 10_000
"""Conflicts that are told of at once."""

_DAY_MS = 24 * 3600 * 1000
_RECORD = msgspec.json.Decoder(ConflictRecord)


class _Resolved(Struct):
    """The entry of a resolution: of which conflict."""

    conflict: str
    resolution: Resolution


_RESOLVED = msgspec.json.Decoder(_Resolved)


class Conflicts:
    """The conflicts of sessions.

    Args:
        around: the stores, time and randomness.
        kept_days: how long conflicts are kept that are not open.
    """

    def __init__(self, around: Surroundings, *, kept_days: float) -> None:
        self._around = around
        self._kept_days = kept_days

    async def of_session(
        self, session_id: str, state: ConflictState | None = None, limit: int = MOST
    ) -> list[ConflictRecord]:
        """Return the newest conflicts of a session, oldest first; also of one that was deleted.

        An archived session comes back for it, unless its conflicts stayed because some are open.

        Raises:
            StoreUnavailable, StoreDamaged.
        """
        found = _folded(session_id, await self._entries(session_id))
        if not found:
            await self._check_known(session_id)
        return [record for record in found if state in (None, record.state)][-limit:]

    async def is_open(self, session_id: str) -> bool:
        """Tell whether something in a session is to be decided; an archived one stays so.

        Raises:
            StoreUnavailable, StoreDamaged.
        """
        return has_open(session_id, await self._around.conflicts.entries(session_id))

    async def of_all(
        self, state: ConflictState | None = None, limit: int = MOST
    ) -> list[ConflictRecord]:
        """Return the conflicts of all sessions, the session with the newest first.

        Damaged ones are passed over: they must not hide the others. Archived sessions stay so: of
        them those are here that have something open.
        """
        found: list[ConflictRecord] = []
        for session_id in await self._around.conflicts.sessions():
            with contextlib.suppress(StoreDamaged):
                records = _folded(session_id, await self._around.conflicts.entries(session_id))
                found += [record for record in records if state in (None, record.state)]
            if len(found) >= limit:
                break
        return found[:limit]

    async def read(self, session_id: str, number: str) -> ConflictRecord:
        """Return one conflict.

        Raises:
            NotFound: the session has none of this number, or no more.
        """
        entries = await self._entries(session_id, number)
        for record in _folded(session_id, entries):
            if record.number == number:
                return record
        await self._check_known(session_id)
        raise NotFound(
            f"session {session_id!r} has no conflict {number!r}",
            hint="`sessiond conflicts` lists them; old ones are dropped (sync.conflict_days)",
        )

    async def resolve(
        self, session_id: str, number: str, choice: Choice, request: Request = PLAIN
    ) -> ConflictRecord:
        """Decide a conflict: put a side, or a value, in its place, as a change of its own.

        `merged` leaves what stands. A conflict that was decided may be decided anew.

        Raises:
            InvalidInput: no choice, or two; or the place is not there any more.
            NotFound: there is no such conflict.
            AlreadyExists: the key was used for something else.
            VersionMismatch: the expected version is not that of the document or record.
            SessionDeleted: nothing can be put into it.
        """
        if (choice.take is UNSET) == (choice.value is UNSET):
            raise InvalidInput(
                "a decision is either `take` or `value`",
                hint='for example {"take": "theirs"}, or {"value": 3}',
            )
        record = await self.read(session_id, number)
        key = idempotency_key(request, json.encode([number, choice]))

        async def once() -> ConflictRecord:
            if not await written_before(self._around, session_id, key):
                change = await self._change(record, choice, request)
                resolution = self._resolution(record, choice, request, key)
                await commit_with_conflicts(self._around, session_id, [*change, resolution])
            return await self.read(session_id, number)

        what = record.id or record.document
        return await attempt(self._around, session_id, what, request, once)

    async def trim(self) -> None:
        """Drop what is older than conflicts are kept; what nobody decided yet stays.

        Damaged ones are left for people to look at.
        """
        now_ms = self._around.clock()
        oldest_ms = now_ms - round(self._kept_days * _DAY_MS)
        for session_id in await self._around.conflicts.sessions():
            with contextlib.suppress(StoreDamaged):
                entries = await self._around.conflicts.entries(session_id)
                old = list(_old(session_id, entries, oldest_ms))
                await self._around.conflicts.drop(session_id, old, now_ms)

    async def _entries(self, session_id: str, first: str = "") -> list[ConflictEntry]:
        """Return entries of a session, which comes back if an archive has them alone."""
        found = await self._around.conflicts.entries(session_id, first)
        if not found and await self._around.store.recall(session_id):
            found = await self._around.conflicts.entries(session_id, first)
        return found

    async def _check_known(self, session_id: str) -> None:
        try:
            await self._around.store.end(session_id)
        except SessionDeleted:
            return

    async def _change(
        self, record: ConflictRecord, choice: Choice, request: Request
    ) -> list[Draft]:
        """Return the operation that puts what was chosen in its place; none when it stands."""
        value = _chosen(record, choice)
        if choice.take == "merged":
            return []
        name = record.document
        if name == "message" or name == "part":  # noqa: PLR1714 - so that the type is narrowed
            return await self._record_change(record, value, request)
        snapshot = await self._around.store.snapshot(record.session_id)
        check_expected(request.expected, snapshot.versions[name])
        before, version = decoded_document(snapshot, name), snapshot.versions[name]
        checked = checked_document(name, before, _placed(before, record.path, value))
        at, client = now(self._around, request), request.client
        return [document_change(name, before, checked, version, at=at, client=client)]

    async def _record_change(
        self, record: ConflictRecord, value: Any, request: Request
    ) -> list[Draft]:
        subject = Subject(record.session_id, record.document, record.id)
        standing = await standing_of(self._around, subject)
        check_expected(request.expected, standing.version)
        at = now(self._around, request)
        before = standing.side.value
        if before is UNSET and record.path:
            raise InvalidInput(
                f"{record.document} {record.id!r} was removed; nothing can be set in it"
            )
        wanted = _checked(record, _placed(before, record.path, value))
        if wanted is UNSET:
            if before is UNSET:
                return []
            op = f"{record.document}.remove"
            return [Draft(op, record.id, at, b"{}", standing.own_version, client=request.client)]
        if before is UNSET:
            return [self._anew(record, wanted, at, request)]
        op = "message.edit" if record.document == "message" else "part.put"
        body = json.encode(wanted)
        return [Draft(op, record.id, at, body, standing.own_version, client=request.client)]

    def _anew(self, record: ConflictRecord, wanted: Any, at: str, request: Request) -> Draft:
        """Return what writes a removed record again: under a new id, for the old one is used up."""
        around = self._around
        message_id, _, part_id = record.id.partition("/")
        prefix = "prt" if part_id else "msg"
        name = new_id(prefix, around.clock(), around.entropy)
        op, place = ("part.put", f"{message_id}/{name}") if part_id else ("message.append", name)
        return Draft(op, place, at, json.encode({**wanted, "id": name}), client=request.client)

    def _resolution(
        self,
        record: ConflictRecord,
        choice: Choice,
        request: Request,
        key: IdempotencyKey | None,
    ) -> Draft:
        at = now(self._around, request)
        take = choice.take or "value"
        origin = own_origin(self._around, request)
        resolution = Resolution(
            take=take, value=choice.value, origin=origin, at=moment_of(at), version=""
        )
        fields: dict[str, str | bytes] = {
            "what": "resolution",
            "id": record.number,
            "take": take,
            "at": at,
            "json": json.encode(_Resolved(record.number, resolution)),
        }
        return Draft(
            "conflict.resolve",
            record.number,
            at,
            json.encode({"take": take}),
            key=key,
            client=request.client,
            changes=tuple(FieldChange("conflict", *field) for field in fields.items()),
        )


def has_open(session_id: str, entries: list[ConflictEntry]) -> bool:
    """Tell whether something in a session is still to be decided.

    Raises:
        StoreDamaged: an entry is not one that sessiond writes.
    """
    return any(record.state == "open" for record in _folded(session_id, entries))


def _old(session_id: str, entries: list[ConflictEntry], oldest_ms: int) -> Iterator[str]:
    """Yield the entries from before a time that nobody has to decide about.

    Raises:
        StoreDamaged: an entry is not one that sessiond writes.
    """
    states = {record.number: record.state for record in _folded(session_id, entries)}
    for entry in entries:
        if states.get(entry.number) != "open" and _written_at(session_id, entry) < oldest_ms:
            yield entry.number


def _written_at(session_id: str, entry: ConflictEntry) -> int:
    try:
        return milliseconds(entry.at)
    except ValueError as error:
        raise StoreDamaged(f"conflict {entry.number} of {session_id!r} has no time") from error


def _folded(session_id: str, entries: list[ConflictEntry]) -> list[ConflictRecord]:
    """Return conflicts with what was decided about each last.

    Raises:
        StoreDamaged: an entry is not one that sessiond writes.
    """
    records: dict[str, ConflictRecord] = {}
    for entry in entries:
        try:
            if entry.what == "conflict":
                record = _RECORD.decode(entry.json)
                records[entry.number] = structs.replace(record, number=entry.number)
            elif entry.what == "resolution":
                decided = _RESOLVED.decode(entry.json)
                resolution = structs.replace(decided.resolution, version=entry.number)
                if decided.conflict in records:
                    records[decided.conflict] = structs.replace(
                        records[decided.conflict], state="resolved", resolution=resolution
                    )
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StoreDamaged(
                f"conflict {entry.number} of session {session_id!r} is damaged: {error}",
            ) from error
    return list(records.values())


def _chosen(record: ConflictRecord, choice: Choice) -> Any:
    match choice.take:
        case "ours":
            return record.ours.value
        case "theirs":
            return record.theirs.value
        case "base":
            return record.base
        case _:
            return choice.value


def _placed(value: Any, path: list[str], new: Any) -> Any:
    try:
        return replaced_at(value, path, new)
    except LookupError as error:
        raise InvalidInput(
            f"the place of this conflict is not there any more: {error}",
            hint="change the document itself, then take `merged`",
        ) from None


def _checked(record: ConflictRecord, value: Any) -> Any:
    """Return a message or a part as it would be written; UNSET for none.

    Raises:
        InvalidInput: it would not be one.
    """
    if value is UNSET:
        return UNSET
    if record.document == "part":
        if not isinstance(value, dict):
            raise InvalidInput("this would not be a part, which is a JSON object")
        check_part(value)
        return value
    try:
        return msgspec.to_builtins(msgspec.convert(value, Message))
    except msgspec.ValidationError as error:
        raise InvalidInput(f"this would not be a message: {error}") from error

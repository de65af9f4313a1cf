"""The documents of a session: metadata, context and preferences, read and changed by version."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from sessiond.codec import json
from sessiond.errors import InvalidInput, SessionDeleted, StoreDamaged, VersionMismatch
from sessiond.model import DOCUMENTS, Context, Document, DocumentName, Metadata, NewSession
from sessiond.service.clock import moment_of
from sessiond.service.deletion import kept
from sessiond.service.history import Remembered, catch_up, history_since, written
from sessiond.service.merging import (
    Outcomes,
    Subject,
    commit_merged,
    own_origin,
    own_side,
    recorded_behind,
)
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
from sessiond.store.committer import Draft, FieldChange, IdempotencyKey, KeyUsed
from sessiond.store.sessions import Snapshot
from sessiond.sync.documents import CHANGEABLE_METADATA, changed_fields, merge_patch
from sessiond.sync.position import parse_position
from sessiond.sync.rebase import rebased
from sessiond.sync.recent import History, Recent
from sessiond.sync.rules import LAST_WRITER


class _Change(Struct, frozen=True):
    """A change that somebody asked for, and when; `patch` is the document if it replaces that."""

    subject: Subject
    name: DocumentName
    patch: dict[str, Any]
    replace: bool
    request: Request
    key: IdempotencyKey | None
    at_ms: int

    def made_of(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return what it makes of a document."""
        return dict(self.patch) if self.replace else dict(merge_patch(document, self.patch))


class Documents:
    """Reads and changes documents."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._remembered = Remembered()

    async def read(self, session_id: str, name: DocumentName) -> Document:
        """Return a document and its version.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
        """
        snapshot = await self._around.store.snapshot(session_id)
        return Document(
            name=name, value=document_value(snapshot, name), version=snapshot.versions[name]
        )

    async def change(
        self,
        session_id: str,
        name: DocumentName,
        patch: Any,
        request: Request = PLAIN,
        *,
        replace: bool = False,
    ) -> Document:
        """Apply a JSON Merge Patch (RFC 7396) to a document, or replace it.

        With a base, what others changed since is merged with it by the rules, and what the merge
        leaves out becomes a conflict. With neither a base nor an expected version, the patch is
        applied to whatever is current.

        Raises:
            InvalidInput: the result would not be such a document.
            VersionMismatch: the expected version is not the current one.
            Contended, NotFound, SessionDeleted, AlreadyExists (the key): see `writing`.
        """
        if not isinstance(patch, dict):
            raise InvalidInput("a document is a JSON object")
        around = self._around
        key = idempotency_key(request, json.encode([name, replace, patch]))
        change = _Change(
            Subject(session_id, name), name, patch, replace, request, key, around.clock()
        )
        may_trust = name != "metadata" and not request.expected  # what is remembered, once

        async def once() -> Document:
            nonlocal may_trust
            known = self._remembered.get(session_id, name) if may_trust else None
            may_trust = False
            if known and (history := known.since(request.base or known.version)):
                with suppress(VersionMismatch, KeyUsed, InvalidInput):
                    if answer := await self._write(change, known, history):
                        return answer
            before = await written_before(around, session_id, key)
            known = await self._read(session_id, name)  # not before: it has what was written
            if before:
                conflicts = await recorded_behind(around, session_id, before)
                return _document(name, known, conflicts)
            check_expected(request.expected, known.version)
            history = await self._history(change, known)
            return await self._write(change, known, history) or _document(name, known)

        try:
            return await attempt(around, session_id, name, request, once)
        except SessionDeleted as error:
            raise await kept(around, request, error, [(change.subject, patch)]) from error

    async def _read(self, session_id: str, name: DocumentName) -> Recent:
        """Return a document as Redis has it, and what is known of its way there."""
        snapshot = await self._around.store.snapshot(session_id)
        version, value = snapshot.versions[name], decoded_document(snapshot, name)
        known = self._remembered.get(session_id, name)
        if known and known.version != version:
            await catch_up(self._around.store.log, session_id, name, known, version)
        if known is None or known.version != version:
            known = Recent(version, value)
        if name != "metadata":  # every operation changes it
            self._remembered.keep(session_id, name, known)
        return known

    async def _history(self, change: _Change, known: Recent) -> History:
        """Return what a change was made on, and what others wrote since."""
        base = change.request.base or known.version
        if history := known.since(base):
            return history
        log, session_id = self._around.store.log, change.subject.session_id
        return await history_since(log, session_id, change.name, parse_position(base), known.value)

    async def _write(self, change: _Change, known: Recent, history: History) -> Document | None:
        """Write what a change makes of a document as it is known; None if it makes no difference.

        Raises:
            VersionMismatch: the document is another one by now.
        """
        around, name, request = self._around, change.name, change.request
        merged = self._merged(change, known, history)
        wanted = msgspec.to_builtins(merged.value)  # what is remembered is shared with nobody
        value = checked_document(name, known.value, wanted)
        draft = document_change(
            name, known.value, value, known.version, at=now(around), key=change.key,
            client=request.client,
        )  # fmt: skip
        if not draft.changes and not merged.contests:
            return None
        position, conflicts = await commit_merged(around, draft, merged)
        if isinstance(value, Metadata):
            value.last_activity = moment_of(draft.at)
        writing = written(draft, position.offset, own_origin(around, request))
        known.take(str(position), writing, len(draft.json))
        return Document(name=name, value=value, version=str(position), conflicts=conflicts)

    def _merged(self, change: _Change, known: Recent, history: History) -> Outcomes:
        """Return what a change makes of a document as it is known, whatever it was made on."""
        name, request, current = change.name, change.request, known.value
        if not request.base or (not history.since and history.base is not None):
            return Outcomes(change.subject, request.base, change.made_of(current))
        wanted = change.made_of(current if history.base is None else history.base)
        if name == "metadata" and "last_activity" in wanted:  # every operation moves it
            wanted["last_activity"] = current["last_activity"]
        ours = own_side(self._around, request, wanted, change.at_ms)
        rules = LAST_WRITER if history.base is None else self._around.rules.of(name)
        merged = rebased(history.base, ours, current, history.since, rules)
        base = request.base if history.base is not None else ""
        return Outcomes(change.subject, base, merged.value, merged.contests)


def _document(
    name: DocumentName, known: Recent, conflicts: list[str] | UnsetType = UNSET
) -> Document:
    value = _typed(name, msgspec.to_builtins(known.value))
    return Document(name=name, value=value, version=known.version, conflicts=conflicts)


def document_value(snapshot: Snapshot, name: DocumentName) -> Metadata | Context | dict[str, Any]:
    """Return a document of a snapshot as the specification shapes it.

    Raises:
        StoreDamaged: what Redis holds is not such a document.
    """
    try:
        if name == "metadata":
            return metadata_of(snapshot)
        fields = snapshot.context if name == "context" else snapshot.preferences
        return _typed(name, {field: msgspec.json.decode(text) for field, text in fields.items()})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreDamaged(
            f"the {name} of session {snapshot.metadata.get('session_id')!r} is damaged: {error}",
            hint="look at it with `sessiond redis cat`",
        ) from error


def _typed(name: DocumentName, value: dict[str, Any]) -> Metadata | Context | dict[str, Any]:
    """Return plain JSON as the specification shapes the document.

    Raises:
        ValidationError: it is not such a document.
    """
    match name:
        case "metadata":
            return msgspec.convert(value, Metadata)
        case "context":
            return msgspec.convert(value, Context)
        case _:
            return value


def decoded_document(snapshot: Snapshot, name: DocumentName) -> dict[str, Any]:
    """Return a document of a snapshot as plain JSON.

    Raises:
        StoreDamaged: what Redis holds is not such a document.
    """
    value: dict[str, Any] = msgspec.to_builtins(document_value(snapshot, name))
    return value


def document_change(
    name: DocumentName,
    before: Any,
    after: Any,
    version: str,
    *,
    at: str,
    key: IdempotencyKey | None = None,
    client: str = "",
) -> Draft:
    """Return the operation that makes another document of one; both were checked."""
    changes, body = encode_change(name, before, after)
    return Draft(
        "document.change",
        name,
        at,
        json.encode(body),
        expected=version,
        key=key,
        client=client,
        changes=changes,
    )


def metadata_of(snapshot: Snapshot) -> Metadata:
    """Return the metadata of a snapshot.

    Raises:
        StoreDamaged: what Redis holds is not metadata.
    """
    try:
        return msgspec.convert(snapshot.metadata, Metadata)
    except msgspec.ValidationError as error:
        raise StoreDamaged(f"damaged metadata: {error}") from error


def encode_change(
    name: DocumentName, before: Any, after: Any
) -> tuple[tuple[FieldChange, ...], Any]:
    """Return the fields to write, and the log's account of them: `{"set": …, "unset": […]}`."""
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(after)
    fields, unset = changed_fields(old, new)
    writes = [FieldChange(name, field, _stored(name, value)) for field, value in fields.items()]
    removals = [FieldChange(name, field, None) for field in unset]
    return (*writes, *removals), {"set": fields, "unset": unset}


def check_preferences(preferences: dict[str, Any]) -> None:
    """Check the names of preferences: they are fields of a hash, where some are ours.

    Raises:
        InvalidInput: a name begins with an underscore.
    """
    for name in preferences:
        if name.startswith("_"):
            raise InvalidInput(
                f"the preference {name[:80]!r} begins with an underscore",
                hint="such names are kept for sessiond itself; choose another",
            )


def encode_creation(new: NewSession, created_at: str) -> tuple[FieldChange, ...]:
    """Return the fields of a new session's documents. Its id and workspace are filled in."""
    check_preferences(new.preferences)
    given = msgspec.to_builtins(new)
    context, preferences = given.pop("context"), given.pop("preferences")
    metadata = {"created_at": created_at, "last_activity": created_at, "status": "active", **given}
    documents: dict[DocumentName, dict[str, Any]] = {
        "metadata": metadata,
        "context": context,
        "preferences": preferences,
    }
    return tuple(
        FieldChange(name, field, _stored(name, value))
        for name in DOCUMENTS
        for field, value in documents[name].items()
    )


def _stored(name: DocumentName, value: Any) -> str | bytes:
    """Return a field as its hash holds it: metadata plain, the others as JSON."""
    return str(value) if name == "metadata" else json.encode(value)


def checked_document(name: DocumentName, current: Any, wanted: Any) -> Any:
    """Return what a document would become, as its type.

    Raises:
        InvalidInput: it would not be such a document, or fields changed that nobody may change.
    """
    try:
        match name:
            case "metadata":
                fields, unset = changed_fields(msgspec.to_builtins(current), wanted)
                fixed = {*fields, *unset} - CHANGEABLE_METADATA
                if fixed:
                    raise InvalidInput(
                        f"metadata field {min(fixed)!r} cannot be changed",
                        hint=f"these can: {', '.join(sorted(CHANGEABLE_METADATA))}",
                    )
                if wanted.get("status") == "deleted":
                    raise InvalidInput(
                        "a session is not deleted through its status", hint="use DELETE"
                    )
            case "preferences":
                check_preferences(wanted)
        return _typed(name, wanted)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"this is not a {name}: {error}") from error

"""The documents of a session: metadata, context and preferences, read and changed by version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sessiond.codec import json
from sessiond.errors import InvalidInput, SessionDeleted, StoreDamaged
from sessiond.model import DOCUMENTS, Context, Document, DocumentName, Metadata, NewSession
from sessiond.service.clock import moment_of
from sessiond.service.deletion import kept
from sessiond.service.history import history_since
from sessiond.service.merging import (
    Outcomes,
    Subject,
    commit_merged,
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
    is_current,
    now,
    written_before,
)
from sessiond.store.committer import Draft, FieldChange, IdempotencyKey
from sessiond.store.sessions import Snapshot
from sessiond.sync.documents import CHANGEABLE_METADATA, changed_fields, merge_patch
from sessiond.sync.position import parse_position
from sessiond.sync.rebase import rebased
from sessiond.sync.rules import LAST_WRITER


class Documents:
    """Reads and changes documents."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around

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
        around, at_ms = self._around, self._around.clock()
        key = idempotency_key(request, json.encode([name, replace, patch]))

        def made_of(document: dict[str, Any]) -> dict[str, Any]:
            return dict(patch) if replace else dict(merge_patch(document, patch))

        async def once() -> Document:
            before = await written_before(around, session_id, key)
            snapshot = await around.store.snapshot(
                session_id
            )  # not before: it has what was written
            current, version = document_value(snapshot, name), snapshot.versions[name]
            if before:
                conflicts = await recorded_behind(around, session_id, before)
                return Document(name=name, value=current, version=version, conflicts=conflicts)
            check_expected(request.expected, version)
            merged = await self._merged(
                session_id, snapshot, name, request, at_ms=at_ms, made_of=made_of
            )
            value = checked_document(name, current, merged.value)
            draft = document_change(
                snapshot, name, value, at=now(around), key=key, client=request.client
            )
            if not draft.changes and not merged.contests:
                return Document(name=name, value=current, version=version)
            position, conflicts = await commit_merged(around, draft, merged)
            if isinstance(value, Metadata):
                value.last_activity = moment_of(draft.at)
            return Document(name=name, value=value, version=str(position), conflicts=conflicts)

        try:
            return await attempt(around, session_id, name, request, once)
        except SessionDeleted as error:
            raise await kept(
                around, request, error, [(Subject(session_id, name), patch)]
            ) from error

    async def _merged(
        self,
        session_id: str,
        snapshot: Snapshot,
        name: DocumentName,
        request: Request,
        *,
        at_ms: int,
        made_of: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> Outcomes:
        """Return what a change makes of the current document, whatever it was made on."""
        subject = Subject(session_id, name)
        current = decoded_document(snapshot, name)
        if not request.base or is_current(request.base, snapshot.versions[name]):
            return Outcomes(subject, request.base, made_of(current))
        base = parse_position(request.base)
        history = await history_since(self._around.store.log, session_id, name, base, current)
        wanted = made_of(current if history.base is None else history.base)
        if name == "metadata" and "last_activity" in wanted:  # every operation moves it
            wanted["last_activity"] = current["last_activity"]
        ours = own_side(self._around, request, wanted, at_ms)
        rules = LAST_WRITER if history.base is None else self._around.rules.of(name)
        merged = rebased(history.base, ours, current, history.since, rules)
        known = request.base if history.base is not None else ""
        return Outcomes(subject, known, merged.value, merged.contests)


def document_value(snapshot: Snapshot, name: DocumentName) -> Metadata | Context | dict[str, Any]:
    """Return a document of a snapshot as the specification shapes it.

    Raises:
        StoreDamaged: what Redis holds is not such a document.
    """
    try:
        if name == "metadata":
            return metadata_of(snapshot)
        fields = snapshot.context if name == "context" else snapshot.preferences
        value = {field: msgspec.json.decode(text) for field, text in fields.items()}
        return msgspec.convert(value, Context) if name == "context" else value
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreDamaged(
            f"the {name} of session {snapshot.metadata.get('session_id')!r} is damaged: {error}",
            hint="look at it with `sessiond redis cat`",
        ) from error


def decoded_document(snapshot: Snapshot, name: DocumentName) -> dict[str, Any]:
    """Return a document of a snapshot as plain JSON.

    Raises:
        StoreDamaged: what Redis holds is not such a document.
    """
    value: dict[str, Any] = msgspec.to_builtins(document_value(snapshot, name))
    return value


def document_change(
    snapshot: Snapshot,
    name: DocumentName,
    value: Any,
    *,
    at: str,
    key: IdempotencyKey | None = None,
    client: str = "",
) -> Draft:
    """Return the operation that makes a document of a snapshot this one, which was checked."""
    changes, body = encode_change(name, document_value(snapshot, name), value)
    return Draft(
        "document.change",
        name,
        at,
        json.encode(body),
        expected=snapshot.versions[name],
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
                return msgspec.convert(wanted, Metadata)
            case "context":
                return msgspec.convert(wanted, Context)
            case _:
                check_preferences(wanted)
                return wanted
    except msgspec.ValidationError as error:
        raise InvalidInput(f"this is not a {name}: {error}") from error

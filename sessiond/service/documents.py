"""The documents of a session: metadata, context and preferences, read and changed by version."""

from __future__ import annotations

from typing import Any

import msgspec

from sessiond.codec import json
from sessiond.errors import InvalidInput, StoreDamaged
from sessiond.model import DOCUMENTS, Context, Document, DocumentName, Metadata, NewSession
from sessiond.service.clock import moment_of
from sessiond.service.writing import (
    PLAIN,
    Request,
    Surroundings,
    attempt,
    check_expected,
    commit,
    idempotency_key,
    now,
    written_before,
)
from sessiond.store.committer import Draft, FieldChange
from sessiond.store.sessions import Snapshot
from sessiond.sync.documents import changed_fields, merge_patch

_CHANGEABLE_METADATA = frozenset({"title", "status", "environment", "user_agent"})


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

        Without an expected version the patch is applied to whatever is current.

        Raises:
            InvalidInput: the result would not be such a document.
            VersionMismatch: the expected version is not the current one.
            Contended, NotFound, SessionDeleted, AlreadyExists (the key): see `writing`.
        """
        if not isinstance(patch, dict):
            raise InvalidInput("a document is a JSON object")
        key = idempotency_key(request, json.encode([name, replace, patch]))

        async def once() -> Document:
            snapshot = await self._around.store.snapshot(session_id)
            current = document_value(snapshot, name)
            if before := await written_before(self._around, session_id, key):
                return Document(name=name, value=current, version=str(before))
            check_expected(request.expected, snapshot.versions[name])
            wanted = patch if replace else merge_patch(msgspec.to_builtins(current), patch)
            changes, body = encode_change(name, current, _checked(name, current, wanted))
            if not changes:
                return Document(name=name, value=current, version=snapshot.versions[name])
            draft = Draft(
                "document.change",
                name,
                now(self._around),
                json.encode(body),
                expected=snapshot.versions[name],
                key=key,
                client=request.client,
                changes=changes,
            )
            committed = await commit(self._around, session_id, [draft])
            value = _checked(name, current, wanted)
            if isinstance(value, Metadata):
                value.last_activity = moment_of(draft.at)
            return Document(name=name, value=value, version=str(committed.positions[0]))

        return await attempt(self._around, request, once)


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


def _checked(name: DocumentName, current: Any, wanted: Any) -> Any:
    """Return what a document would become, as its type.

    Raises:
        InvalidInput: it would not be such a document, or fields changed that nobody may change.
    """
    try:
        match name:
            case "metadata":
                fields, unset = changed_fields(msgspec.to_builtins(current), wanted)
                fixed = {*fields, *unset} - _CHANGEABLE_METADATA
                if fixed:
                    raise InvalidInput(
                        f"metadata field {min(fixed)!r} cannot be changed",
                        hint=f"these can: {', '.join(sorted(_CHANGEABLE_METADATA))}",
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

"""What documents look like: in Redis, in the log, as the specification has them."""

from __future__ import annotations

from typing import Any

import msgspec

from sessiond.codec import json
from sessiond.errors import InvalidInput, StoreDamaged
from sessiond.model import DOCUMENTS, Context, DocumentName, Metadata, NewSession
from sessiond.store.draft import Draft, FieldChange, IdempotencyKey
from sessiond.store.sessions import Snapshot
from sessiond.sync.documents import CHANGEABLE_METADATA, changed_fields


def document_value(snapshot: Snapshot, name: DocumentName) -> Metadata | Context | dict[str, Any]:
    """Return a document of a snapshot as the specification shapes it.

    Raises:
        StoreDamaged: what Redis holds is not such a document.
    """
    try:
        if name == "metadata":
            return metadata_of(snapshot)
        fields = snapshot.context if name == "context" else snapshot.preferences
        return typed(name, {field: msgspec.json.decode(text) for field, text in fields.items()})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreDamaged(
            f"the {name} of session {snapshot.metadata.get('session_id')!r} is damaged: {error}",
        ) from error


def typed(name: DocumentName, value: dict[str, Any]) -> Metadata | Context | dict[str, Any]:
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
    return encode_fields(name, fields, unset), {"set": fields, "unset": unset}


def encode_fields(
    name: DocumentName, fields: dict[str, Any], unset: list[str]
) -> tuple[FieldChange, ...]:
    """Return the fields of a document to write and to remove."""
    writes = [FieldChange(name, field, _stored(name, value)) for field, value in fields.items()]
    removals = [FieldChange(name, field, None) for field in unset]
    return (*writes, *removals)


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
        return typed(name, wanted)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"this is not a {name}: {error}") from error

"""Changes of documents: what a patch makes of a document, field by field. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from sessiond.model import DocumentName

CHANGEABLE_METADATA = frozenset({"title", "status", "environment", "user_agent"})
"""The fields of metadata that somebody may change; sessiond keeps the others itself."""


def merge_patch(target: Any, patch: Any) -> Any:
    """Return the target with a JSON Merge Patch applied (RFC 7396): null removes a member."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def patch_between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON Merge Patch that makes one value of another; it cannot set anything to null."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        if _same(before, name, value):
            continue
        old = before.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            patch[name] = patch_between(old, value)
        else:
            patch[name] = value
    return patch


def changed_fields(
    before: dict[str, Any], after: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the top-level fields to set and those to unset, to get from one to the other."""
    changed = {name: value for name, value in after.items() if not _same(before, name, value)}
    return changed, [name for name in before if name not in after]


def _same(before: dict[str, Any], name: str, value: Any) -> bool:
    """Compare as JSON does: 1, 1.0 and true are three different values."""
    return name in before and repr(before[name]) == repr(value)


def fields_written(op: str, record_id: str, body: Any, name: DocumentName) -> dict[str, Any] | None:
    """Return what an operation did to a document: field → value, UNSET for a removed one.

    None when it did nothing to it. Of metadata, only the fields that may change count.
    """
    if op == "document.change" and record_id == name:
        written = {**body["set"], **dict.fromkeys(body["unset"], UNSET)}
    elif op == "session.create":
        given = {"status": "active", **body} if name == "metadata" else body[name]
        return _changeable(name, given)
    else:
        return None
    return _changeable(name, written) or None


def _changeable(name: DocumentName, fields: dict[str, Any]) -> dict[str, Any]:
    if name != "metadata":
        return fields
    return {field: value for field, value in fields.items() if field in CHANGEABLE_METADATA}


def value_at(value: Any, path: Sequence[str]) -> Any:
    """Return what stands at a path (see `replaced_at`); UNSET where nothing does."""
    for name in path:
        if isinstance(value, list):
            value = next((entry for entry in value if _has_id(entry, name)), UNSET)
        elif isinstance(value, dict):
            value = value.get(name, UNSET)
        else:
            return UNSET
    return value


def replaced_at(value: Any, path: Sequence[str], new: Any) -> Any:
    """Return a JSON value with another one at a path; UNSET takes away what is there.

    A path goes through names of fields, and through lists by the ids of their objects.

    Raises:
        LookupError: something on the way is not there any more.
    """
    if not path:
        return new
    name, *rest = path
    if isinstance(value, dict):
        if name not in value and rest:
            raise LookupError(name)
        inner = replaced_at(value.get(name, UNSET), rest, new)
        others = {field: kept for field, kept in value.items() if field != name}
        if inner is UNSET:
            return others
        return {**value, name: inner}
    if isinstance(value, list):
        index = next((i for i, entry in enumerate(value) if _has_id(entry, name)), len(value))
        if index == len(value) and rest:
            raise LookupError(name)
        inner = replaced_at(value[index] if index < len(value) else UNSET, rest, new)
        return [*value[:index], *([] if inner is UNSET else [inner]), *value[index + 1 :]]
    raise LookupError(name)


def _has_id(entry: Any, name: str) -> bool:
    return isinstance(entry, dict) and entry.get("id") == name

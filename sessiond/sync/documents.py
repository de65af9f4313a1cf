"""Changes of documents: what a patch makes of a document, field by field. Pure."""

from __future__ import annotations

from typing import Any


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


def changed_fields(
    before: dict[str, Any], after: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the top-level fields to set and those to unset, to get from one to the other."""
    changed = {name: value for name, value in after.items() if not _same(before, name, value)}
    return changed, [name for name in before if name not in after]


def _same(before: dict[str, Any], name: str, value: Any) -> bool:
    """Compare as JSON does: 1, 1.0 and true are three different values."""
    return name in before and repr(before[name]) == repr(value)

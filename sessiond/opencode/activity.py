"""What opencode's tools did: which were used, and with which files. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from sessiond.opencode.mapping import Change

MOST_FILES = 50
"""Names in `active_files`, at most: the newest."""

MOST_COMMANDS = 100
"""Names in `recent_commands`, at most: the newest; as many as merging keeps."""

LONGEST_NAME = 1024
NEUTRAL_WORKTREE = "${WORKTREE}/"

_READING = ("read",)
_WRITING = ("edit", "multiedit", "write", "patch", "apply_patch")
_ENDED = ("completed", "error")
_PATCHED = re.compile(r"^\*\*\* (?:(?:Add|Update|Delete) File|Move to): (.+)$", re.MULTILINE)


class ToolUse(Struct, frozen=True):
    """A call of a tool that ended: which tool, and the files that it read or wrote.

    Files in the worktree are named relative to it, so that all machines name them alike.
    """

    tool: str
    files: list[str]


def written_files(part: Mapping[str, Any]) -> list[str]:
    """Return the paths that a tool call writes, as it names them; none for any other part."""
    return _files(part, _WRITING)


def has_ended(part: Any) -> bool:
    """Tell whether a part is a call of a tool that ended."""
    if not isinstance(part, dict) or part.get("type") != "tool":
        return False
    return isinstance(part.get("tool"), str) and _of(part, "state").get("status") in _ENDED


def ended_uses(changes: Iterable[Change]) -> dict[str, ToolUse]:
    """Return the calls of tools that ended with these changes, by `<message>/<part>`."""
    return {
        change.id: ToolUse(change.body["tool"], _names(change.body))
        for change in changes
        if change.kind == "part.put" and change.body and has_ended(change.body)
    }


def context_after(context: Mapping[str, Any], uses: Iterable[ToolUse]) -> dict[str, list[str]]:
    """Return `active_files` and `recent_commands` of a context after uses of tools.

    The file used last stands last; of both lists the newest are kept.
    """
    files = dict.fromkeys(context.get("active_files", ()))
    commands = list(context.get("recent_commands", ()))
    for use in uses:
        commands.append(use.tool[:LONGEST_NAME])
        for name in use.files:
            files.pop(name, None)
            files[name] = None
    return {
        "active_files": list(files)[-MOST_FILES:],
        "recent_commands": commands[-MOST_COMMANDS:],
    }


def _names(part: Mapping[str, Any]) -> list[str]:
    paths = map(posixpath.normpath, _files(part, (*_READING, *_WRITING)))
    names = (path.removeprefix(NEUTRAL_WORKTREE) for path in paths)
    return [name for name in names if 0 < len(name) <= LONGEST_NAME]


def _files(part: Mapping[str, Any], tools: tuple[str, ...]) -> list[str]:
    if part.get("type") != "tool" or part.get("tool") not in tools:
        return []
    given = _of(_of(part, "state"), "input")
    path, patch = given.get("filePath"), given.get("patchText")
    named = [path] if isinstance(path, str) and path else []
    return named + (_PATCHED.findall(patch) if isinstance(patch, str) else [])


def _of(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}

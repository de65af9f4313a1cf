"""What opencode's tools did, and what a session's context says of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond.opencode.activity import (
    LONGEST_NAME,
    MOST_COMMANDS,
    MOST_FILES,
    ToolUse,
    context_after,
    ended_uses,
)
from sessiond.opencode.mapping import Change, change_of_event
from sessiond.opencode.protocol import OpencodeEvent
from tests.opencode.test_mapping import HERE, NOW, RECORDED


def put(name: str, tool: Any, status: str = "completed", **given: Any) -> Change:
    body = {"type": "tool", "tool": tool, "state": {"status": status, "input": given}}
    return Change(kind="part.put", id=name, body=body, at_ms=0)


def test_of_recorded_events_each_call_is_found_once_at_its_end() -> None:
    given = [OpencodeEvent(id=e["id"], type=e["type"], properties=e["data"]) for e in RECORDED]
    changes = [change_of_event(event, HERE, NOW) for event in given]
    uses = ended_uses(change for change in changes if change)
    assert [use.tool for use in uses.values()] == ["bash"]


@pytest.mark.parametrize("tool", ["read", "edit", "write"])
def test_files_in_the_worktree_are_named_alike_everywhere(tool: str) -> None:
    (use,) = ended_uses([put("m/p", tool, filePath="${WORKTREE}/src/./main.js")]).values()
    assert use == ToolUse(tool, ["src/main.js"])
    (use,) = ended_uses([put("m/p", tool, filePath="/etc/hosts")]).values()
    assert use.files == ["/etc/hosts"]


def test_files_of_a_patch_are_found() -> None:
    text = "*** Begin Patch\n*** Update File: a.py\n*** Move to: b.py\n*** End Patch"
    (use,) = ended_uses([put("m/p", "apply_patch", patchText=text)]).values()
    assert use.files == ["a.py", "b.py"]


@pytest.mark.parametrize(
    "change",
    [
        put("m/p", "read", "pending"),
        put("m/p", "read", "running", filePath="a"),
        put("m/p", 7),
        put("m/p", None),
        Change(kind="part.put", id="m/p", body={"type": "text", "text": "read"}, at_ms=0),
        Change(kind="part.put", id="m/p", body={"type": "tool", "tool": "read"}, at_ms=0),
        Change(kind="part.put", id="m/p", body={"type": "tool", "tool": "x", "state": 1}, at_ms=0),
        Change(kind="part.remove", id="m/p", body=None, at_ms=0),
        Change(kind="message.put", id="m", body={"type": "tool"}, at_ms=0),
    ],
)
def test_what_is_no_ended_call_is_no_use(change: Change) -> None:
    assert ended_uses([change]) == {}


@pytest.mark.parametrize("path", [1, None, "", "x" * (LONGEST_NAME + 1), ["a"]])
def test_a_path_that_is_none_names_no_file(path: Any) -> None:
    (use,) = ended_uses([put("m/p", "read", filePath=path)]).values()
    assert use.files == []


def test_a_context_has_the_file_used_last_at_its_end_and_every_command() -> None:
    before = {"active_files": ["a", "b"], "recent_commands": ["read"]}
    uses = [ToolUse("read", ["a"]), ToolUse("bash", []), ToolUse("edit", ["c", "a"])]
    assert context_after(before, uses) == {
        "active_files": ["b", "c", "a"],
        "recent_commands": ["read", "read", "bash", "edit"],
    }


names = st.text(max_size=3)
tools = st.builds(ToolUse, names, st.lists(names, max_size=4))


@given(st.lists(tools, max_size=150), st.integers(0, 150))
def test_a_context_is_bounded_and_does_not_depend_on_the_groups(
    uses: list[ToolUse], border: int
) -> None:
    whole = context_after({}, uses)
    assert context_after(context_after({}, uses[:border]), uses[border:]) == whole
    assert len(whole["active_files"]) <= MOST_FILES
    assert len(set(whole["active_files"])) == len(whole["active_files"])
    assert whole["recent_commands"] == [use.tool for use in uses][-MOST_COMMANDS:]

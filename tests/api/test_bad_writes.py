"""Writes of odd shapes: merge patches, messages, parts and groups that make no sense."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.api.client import Client

pytestmark = pytest.mark.usefixtures("_quiet")


def shown(case: object) -> str:
    """A short name for a test's case."""
    return quote(str(case), safe=" {}[]:,'")[:60]


NO_METADATA: list[dict[str, Any]] = [
    {"status": "deleted"},
    {"status": ""},
    {"status": "ACTIVE"},
    {"status": 1},
    {"status": ["active"]},
    {"title": 1},
    {"title": {}},
    {"title": "a" * 1025},
    {"user_agent": "a" * 1025},
    {"environment": ["x"]},
    {"session_id": "other"},
    {"session_id": None},
    {"created_at": "2026-01-01T00:00:00Z"},
    {"created_at": None},
    {"last_activity": None},
    {"user_id": "other"},
    {"workspace": "other"},
    {"workspace": None},
    {"version": 1},
    {"epoch": "x"},
    {"total_messages": 0},
    {"unknown": None, "title": "x", "other": 1},
]


@pytest.mark.parametrize("patch", NO_METADATA, ids=shown)
def test_metadata_that_nobody_may_write_is_refused(
    client: Client, session: str, patch: dict[str, Any]
) -> None:
    before = client.get(session)
    client.assert_refused("PATCH", f"{session}/metadata", patch, status=400)
    client.assert_refused("PUT", f"{session}/metadata", before["metadata"] | patch, status=400)
    assert client.get(session) == before


def test_a_session_is_not_deleted_through_its_status_but_with_delete(
    client: Client, session: str
) -> None:
    said = client.assert_refused("PATCH", f"{session}/metadata", {"status": "deleted"}, status=400)
    assert "DELETE" in said


@pytest.mark.parametrize(
    "title", ["", "\x00", "a\nb\r\n\tc", "\x1b[31mred\x1b[0m", "\u202egnp", "\ufeff", "é" * 1024]
)
@pytest.mark.parametrize("field", ["title", "environment", "user_agent"])
def test_a_text_of_metadata_is_what_was_answered(
    client: Client, session: str, field: str, title: str
) -> None:
    answer = client.call("PATCH", f"{session}/metadata", {field: title})
    assert answer.status == 200
    assert answer.json[field] == title
    assert client.get(f"{session}/metadata")[field] == title
    assert client.get(session)["metadata"][field] == title
    position = client.position(session)
    assert client.call("PATCH", f"{session}/metadata", {field: title}).status == 200
    assert client.position(session) == position, "the same again is no change"


NO_CONTEXT: list[dict[str, Any]] = [
    {"unknown": 1},
    {"_version": "1"},
    {"state": []},
    {"state": "x"},
    {"state": 1},
    {"working_directory": 1},
    {"working_directory": {}},
    {"active_files": {"a": 1}},
    {"active_files": [1]},
    {"active_files": [None]},
    {"active_files": [["a"]]},
    {"recent_commands": "ls"},
    {"recent_commands": ["ls", 1]},
    {"working_directory": "/x", "recent_commands": 1},
]


@pytest.mark.parametrize("patch", NO_CONTEXT, ids=shown)
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_patch_that_leaves_no_context_is_refused_as_a_whole(
    client: Client, session: str, method: str, patch: dict[str, Any]
) -> None:
    before = client.get(session)
    client.assert_refused(method, f"{session}/context", patch, status=400)
    client.assert_refused("POST", "/v1/sessions", {"context": patch}, status=400)
    assert client.get(session) == before


MERGES: list[tuple[Any, Any]] = [
    ({}, {"a": {"b": [1]}}),
    ({"a": None}, {}),
    ({"a": []}, {"a": []}),
    ({"a": 1}, {"a": 1}),
    ({"a": {"b": None}}, {"a": {}}),
    ({"a": {"c": {"d": None}}}, {"a": {"b": [1], "c": {}}}),
    ({"x": {"y": {"z": None}}}, {"a": {"b": [1]}, "x": {"y": {}}}),
    ({"a": [None, {"b": None}]}, {"a": [None, {"b": None}]}),
    ({"x": None}, {"a": {"b": [1]}}),
    ({"": None, "a": {"": 1}}, {"a": {"b": [1], "": 1}}),
]


@pytest.mark.parametrize(("patch", "wanted"), MERGES, ids=shown)
def test_merge_patches_follow_rfc_7396(
    client: Client, session: str, patch: Any, wanted: Any
) -> None:
    start = {"a": {"b": [1]}}
    client.call("PUT", f"{session}/preferences", start)
    assert client.call("PATCH", f"{session}/preferences", patch).json == wanted
    assert client.get(f"{session}/preferences") == wanted
    client.call("PATCH", f"{session}/context", {"state": start})
    assert client.call("PATCH", f"{session}/context", {"state": patch}).json["state"] == wanted
    assert client.get(f"{session}/context")["state"] == wanted


NO_SESSION: list[Any] = [
    {"session_id": ""},
    {"session_id": "a/b"},
    {"session_id": "a\n"},
    {"session_id": "a\x00"},
    {"session_id": "é"},
    {"session_id": "-a"},
    {"session_id": "a" * 65},
    {"session_id": 1},
    {"session_id": None},
    {"workspace": "a/b"},
    {"workspace": "a:events"},
    {"workspace": "a\n"},
    {"workspace": ""},
    {"user_id": "a" * 1025},
    {"title": None},
    {"preferences": []},
    {"context": None},
    {"status": "archived"},
    {"created_at": "yesterday"},
    {"unknown": 1},
]


@pytest.mark.parametrize("new", NO_SESSION, ids=shown)
def test_what_cannot_be_a_session_is_refused_and_not_listed(client: Client, new: Any) -> None:
    before = client.get("/v1/status")["sessions"]
    client.assert_refused("POST", "/v1/sessions", new, status=400)
    assert client.get("/v1/status")["sessions"] == before


TEXT = {"id": "p", "type": "text", "text": "x"}
NO_MESSAGE: list[dict[str, Any]] = [
    {},
    {"role": "robot"},
    {"role": None},
    {"role": "user", "unknown": 1},
    {"role": "user", "id": ""},
    {"role": "user", "id": "a/b"},
    {"role": "user", "id": "a\n"},
    {"role": "user", "id": "a" * 129},
    {"role": "user", "id": 1},
    {"role": "user", "content": 1},
    {"role": "user", "content": None},
    {"role": "user", "content": [TEXT]},
    {"role": "user", "tool_calls": {}},
    {"role": "user", "tool_calls": "read"},
    {"role": "user", "metadata": []},
    {"role": "user", "metadata": None},
    {"role": "user", "timestamp": "2026-01-01T00:00:00"},
    {"role": "user", "timestamp": "yesterday"},
    {"role": "user", "timestamp": "2026-02-30T00:00:00Z"},
    {"role": "user", "timestamp": 1e300},
    {"role": "user", "timestamp": -1},
    {"role": "user", "parts": {}},
    {"role": "user", "parts": None},
    {"role": "user", "parts": ["x"]},
    {"role": "user", "parts": [None]},
    {"role": "user", "parts": [[]]},
    {"role": "user", "parts": [{}]},
    {"role": "user", "parts": [{"id": "p"}]},
    {"role": "user", "parts": [{"type": "text"}]},
    {"role": "user", "parts": [TEXT | {"id": ""}]},
    {"role": "user", "parts": [TEXT | {"id": 1}]},
    {"role": "user", "parts": [TEXT | {"id": None}]},
    {"role": "user", "parts": [TEXT | {"type": ""}]},
    {"role": "user", "parts": [TEXT | {"type": {}}]},
    {"role": "user", "parts": [TEXT | {"id": "own-content"}]},
    {"role": "user", "parts": [TEXT, TEXT]},
    {"role": "user", "parts": [TEXT], "content": "y"},
    {"role": "user", "parts": [TEXT], "content": ""},
    {"role": "user", "parts": [TEXT], "tool_calls": ["read"]},
    {"role": "user", "parts": [], "content": "y"},
    {"role": "user", "parts": [{"id": "t", "type": "tool", "tool": "read"}], "tool_calls": []},
    {"messages": []},
    {"messages": [], "role": "user"},
    {"messages": {}},
    {"messages": None},
    {"messages": "x"},
    {"messages": [[]]},
    {"messages": [None]},
    {"messages": [{"role": "user"}], "unknown": 1},
    {"messages": [{"role": "user"}, {"role": "robot"}]},
    {"messages": [{"messages": [{"role": "user"}]}]},
    {"messages": [{"role": "user", "id": "x"}, {"role": "user", "id": "x"}]},
    {"messages": [{"role": "user", "id": "x", "content": str(n)} for n in range(2)]},
    {"messages": [{"role": "user", "content": "hello", "id": "first"}] * 2},
]


@pytest.mark.parametrize("message", NO_MESSAGE, ids=shown)
def test_what_cannot_be_a_message_is_refused_as_a_whole(
    client: Client, session: str, message: dict[str, Any]
) -> None:
    before = client.get(session)
    client.assert_refused("POST", f"{session}/messages", message, status=400)
    if "messages" not in message:
        group = {"messages": [{"role": "user"}, message]}
        client.assert_refused("POST", f"{session}/messages", group, status=400)
    assert client.get(session) == before


def test_times_at_the_ends_of_the_calendar_are_kept(client: Client, session: str) -> None:
    for number, timestamp in enumerate(("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59")):
        message = {"role": "user", "id": f"t{number}", "timestamp": timestamp}
        assert client.call("POST", f"{session}/messages", message).status == 201
        assert client.call("POST", f"{session}/messages", message).status == 200
        assert client.get(f"{session}/messages/t{number}")["timestamp"] == timestamp
    assert len(client.get(session)["conversation"]["messages"]) == 3


def test_64_messages_are_a_group_and_65_are_too_many(client: Client, session: str) -> None:
    group = [{"role": "user", "content": str(number)} for number in range(65)]
    said = client.assert_refused("POST", f"{session}/messages", {"messages": group}, status=413)
    assert "64" in said
    assert "api.max_group_operations" in said
    written = client.call("POST", f"{session}/messages", {"messages": group[:64]}).json
    offsets = [int(each["version"].partition(":")[2]) for each in written["records"]]
    assert offsets == list(range(3, 67))


def test_a_group_with_a_message_that_is_there_already_is_refused_and_names_the_problem(
    client: Client, session: str
) -> None:
    known = {"role": "user", "id": "first", "content": "hello"}
    new = {"role": "user", "id": "brand-new", "content": "hello"}
    before = client.get(session)
    for group in ([known, new], [new, known]):
        said = client.assert_refused("POST", f"{session}/messages", {"messages": group}, status=409)
        assert "'brand-new' is taken" not in said
    other = known | {"content": "other"}
    for group in ([other, new], [new, other]):
        said = client.assert_refused("POST", f"{session}/messages", {"messages": group}, status=409)
        assert "'first'" in said
    assert client.get(session) == before


def test_every_part_that_is_taken_has_an_address(client: Client, session: str) -> None:
    for number, name in enumerate(("a/b", "a b", "é", "..", "a" * 200, "-a", "%2F", "a\n")):
        message = {"role": "user", "id": f"m{number}", "parts": [TEXT | {"id": name}]}
        answer = client.call("POST", f"{session}/messages", message)
        if answer.status != 201:
            assert answer.status == 400, answer
            continue
        address = f"{session}/messages/m{number}/parts/{quote(name, safe='')}"
        assert client.call("PUT", address, TEXT | {"id": name}).status == 200, name


NO_PART: list[Any] = [
    {},
    {"type": ""},
    {"type": 1},
    {"type": None},
    {"id": "other", "type": "text"},
    {"id": 1, "type": "text"},
    {"id": None, "type": "text"},
    {"id": "", "type": "text"},
]


@pytest.mark.parametrize("part", NO_PART, ids=shown)
def test_what_cannot_be_a_part_is_refused(client: Client, session: str, part: Any) -> None:
    before = client.get(session)
    client.assert_refused("PUT", f"{session}/messages/first/parts/p", part, status=400)
    assert client.get(session) == before


def test_parts_with_odd_content_do_no_harm_to_what_is_derived_from_them(
    client: Client, session: str
) -> None:
    odd: list[dict[str, Any]] = [
        {"id": "p0", "type": "text"},
        {"id": "p1", "type": "text", "text": 1},
        {"id": "p2", "type": "text", "text": ["x"]},
        {"id": "p3", "type": "text", "text": None},
        {"id": "p4", "type": "tool"},
        {"id": "p5", "type": "tool", "tool": {"a": [1]}},
        {"id": "p6", "type": "tool", "tool": None},
        {"id": "p7", "type": "\x00", "": {}},
    ]
    message = {"role": "assistant", "id": "odd", "parts": odd}
    assert client.call("POST", f"{session}/messages", message).status == 201
    for part in odd:
        path = f"{session}/messages/first/parts/{part['id']}"
        assert client.call("PUT", path, part).status == 200
    odd_message = client.get(f"{session}/messages/odd")
    assert odd_message["parts"] == odd
    assert odd_message["content"] == ""
    assert odd_message["tool_calls"] == [{"a": [1]}, None]
    assert client.get(f"{session}/messages/first")["content"] == "hello"
    client.get(session)


NO_EDIT: list[Any] = [
    {"role": None},
    {"role": "robot"},
    {"metadata": []},
    {"metadata": "x"},
    {"tool_calls": {}},
    {"content": {}},
    {"content": 1},
    {"id": "other"},
    {"timestamp": "2026-01-01T00:00:00Z"},
    {"parts": []},
    {"parts": [TEXT]},
    {"unknown": None},
    {"content": "x", "unknown": 1},
]


@pytest.mark.parametrize("patch", NO_EDIT, ids=shown)
def test_an_edit_that_leaves_no_message_is_refused(
    client: Client, session: str, patch: Any
) -> None:
    before = client.get(session)
    client.assert_refused("PATCH", f"{session}/messages/first", patch, status=400)
    assert client.get(session) == before


@pytest.mark.parametrize("parts", [[], [TEXT]], ids=["none", "one"])
def test_the_content_of_a_message_with_parts_never_contradicts_them(
    client: Client, session: str, parts: list[Any]
) -> None:
    message = {"role": "user", "id": "parted", "parts": parts}
    assert client.call("POST", f"{session}/messages", message).status == 201
    client.assert_refused("PATCH", f"{session}/messages/parted", {"content": "y"}, status=400)
    client.assert_refused("PATCH", f"{session}/messages/parted", {"tool_calls": ["y"]}, status=400)
    assert (
        client.call("PUT", f"{session}/messages/parted/parts/q", TEXT | {"id": "q"}).status == 200
    )
    derived = "\n".join("x" for _ in range(len(parts) + 1))
    assert client.get(f"{session}/messages/parted")["content"] == derived

"""What follows from the parts of a message, and which parts are refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, UnsetType

from sessiond.errors import InvalidInput
from sessiond.model import Message, NewMessage, Part
from sessiond.sync.parts import (
    assemble,
    check_part,
    check_parts,
    completed,
    derived_content,
    derived_tool_calls,
    with_parts,
)

NOW = datetime(2026, 1, 13, 10, 30, tzinfo=UTC)
CALL: Part = {"id": "p2", "type": "tool", "tool": "grep", "state": {"input": []}}


def text(part_id: str, words: Any) -> Part:
    return {"id": part_id, "type": "text", "text": words}


def message(parts: list[Part] | UnsetType = UNSET, **more: Any) -> Message:
    plain = Message(id="m1", timestamp=NOW, role="assistant", **more)
    return plain if parts is UNSET else with_parts(plain, parts)


def as_user(before: Message) -> Message:
    return msgspec.structs.replace(before, role="user")


def assembled(before: Message, changed: dict[str, Part | None]) -> Message:
    encoded = {
        name: None if part is None else msgspec.json.encode(part) for name, part in changed.items()
    }
    return msgspec.json.decode(assemble(msgspec.json.encode(before), encoded), type=Message)


def test_content_is_the_text_parts_joined_by_line_breaks() -> None:
    parts = [text("p1", "a"), CALL, text("p3", "b"), text("p4", None), {"id": "p5", "type": "text"}]
    assert derived_content(parts) == "a\nb"


def test_tool_calls_are_the_names_of_the_tools_in_order() -> None:
    again = CALL | {"id": "p9", "tool": "ls"}
    assert derived_tool_calls([again, text("p", "x"), CALL, {"id": "p0", "type": "tool"}]) == [
        "ls",
        "grep",
    ]


def test_a_changed_part_takes_the_place_it_had() -> None:
    after = assembled(message([text("p1", "a"), text("p2", "b")]), {"p1": text("p1", "A")})
    assert after.parts == [text("p1", "A"), text("p2", "b")]
    assert after.content == "A\nb"


def test_a_new_part_joins_behind_the_others() -> None:
    after = assembled(message([text("p1", "a")]), {"p9": CALL, "p0": text("p0", "z")})
    assert after.parts == [text("p1", "a"), CALL, text("p0", "z")]
    assert (after.content, after.tool_calls) == ("a\nz", ["grep"])


def test_a_removed_part_is_gone_and_so_is_what_followed_from_it() -> None:
    after = assembled(message([text("p1", "a"), CALL]), {"p2": None, "p7": None})
    assert after.parts == [text("p1", "a")]
    assert after.tool_calls == []


def test_what_a_message_without_parts_said_itself_stays_in_front() -> None:
    before = message(content="mine", tool_calls=["own"])
    after = assembled(before, {"p1": text("p1", "a"), "p2": CALL})
    assert after.content == "mine\na"
    assert after.tool_calls == ["own", "grep"]


def test_unknown_fields_of_a_part_survive() -> None:
    odd: Part = {"id": "p1", "type": "x-new", "deep": {"list": [], "none": None, "n": 2**70}}
    assert assembled(message(), {"p1": odd}).parts == [odd]


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"id": "p"},
        {"type": "text"},
        {"id": "", "type": "text"},
        {"id": 1, "type": "text"},
        {"id": None, "type": "text"},
        {"id": "p", "type": ""},
        {"id": "p", "type": ["text"]},
    ],
)
def test_a_part_without_text_id_and_type_is_refused(part: Part) -> None:
    with pytest.raises(InvalidInput):
        check_part(part)


def test_two_parts_of_one_id_are_refused() -> None:
    with pytest.raises(InvalidInput, match="same id"):
        check_parts(NewMessage(role="user", parts=[text("p", "a"), text("p", "b")]))


@pytest.mark.parametrize(
    "contradiction", [{"content": "other"}, {"tool_calls": ["ls"]}, {"content": ""}]
)
def test_content_that_contradicts_the_parts_is_refused(contradiction: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="follows from `parts`"):
        check_parts(NewMessage(role="user", parts=[text("p", "a")], **contradiction))


def test_content_that_agrees_with_the_parts_is_accepted() -> None:
    new = NewMessage(role="user", parts=[text("p", "a"), CALL], content="a", tool_calls=["grep"])
    assert completed(new, "m1", NOW) == as_user(message([text("p", "a"), CALL]))


def test_a_message_is_completed_with_what_its_writer_left_out() -> None:
    assert completed(NewMessage(role="user"), "m1", NOW) == as_user(message())
    later = datetime(2027, 1, 1, tzinfo=UTC)
    own = completed(NewMessage(role="user", id="mine", timestamp=later), "m1", NOW)
    assert (own.id, own.timestamp) == ("mine", later)


@pytest.mark.parametrize("name", ["a/b", 'a"b', "a b", "é", "a" * 200])
def test_a_part_whose_id_cannot_be_part_of_a_records_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_part({"id": name, "type": "text"})

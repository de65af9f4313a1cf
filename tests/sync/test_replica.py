"""The fold of a log into a conversation."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond.errors import StoreDamaged
from sessiond.sync.replica import Conversation

AT = "2026-01-13T10:30:00Z"


def body(name: str, words: str = "", **more: Any) -> bytes:
    return msgspec.json.encode(
        {"id": name, "timestamp": AT, "role": "user", "content": words, **more}
    )


def part(name: str, words: str) -> bytes:
    return msgspec.json.encode({"id": name, "type": "text", "text": words})


def of(*operations: tuple[str, str, bytes]) -> Conversation:
    conversation = Conversation()
    for offset, (op, record_id, json) in enumerate(operations, start=1):
        conversation.apply(op, record_id, offset, json)
    return conversation


def test_messages_stand_in_the_order_of_their_appends_whatever_is_edited() -> None:
    conversation = of(
        ("message.append", "b", body("b")),
        ("message.append", "a", body("a")),
        ("message.edit", "b", body("b", "anew")),
    )
    assert conversation.messages() == [body("b", "anew"), body("a")]
    assert len(conversation) == 2


def test_a_message_that_nobody_amended_passes_through_byte_for_byte() -> None:
    odd = b'{ "content" : "x", "unknown":[] }'
    assert of(("message.append", "a", odd)).messages() == [odd]


def test_a_removed_message_leaves_with_its_parts() -> None:
    conversation = of(
        ("message.append", "a", body("a")),
        ("part.put", "a/p", part("p", "x")),
        ("message.remove", "a", b"{}"),
    )
    assert conversation.messages() == []
    with pytest.raises(KeyError):
        conversation.message("a")


def test_parts_outlive_an_edit_of_their_message() -> None:
    conversation = of(
        ("message.append", "a", body("a", "mine")),
        ("part.put", "a/p", part("p", "x")),
        ("message.edit", "a", body("a", "anew")),
    )
    message = msgspec.json.decode(conversation.message("a"))
    assert message["content"] == "anew\nx"


@pytest.mark.parametrize("op", ["message.edit", "message.remove", "part.put", "part.remove"])
@pytest.mark.parametrize(
    "before", [[], [("message.append", "a", body("a")), ("message.remove", "a", b"{}")]]
)
def test_a_change_of_a_message_that_is_not_there_is_damage_that_names_its_place(
    op: str, before: list[tuple[str, str, bytes]]
) -> None:
    record_id = "a/p" if op.startswith("part") else "a"
    conversation = of(*before)
    with pytest.raises(StoreDamaged, match="operation 9 "):
        conversation.apply(op, record_id, 9, part("p", "x"))


@pytest.mark.parametrize("op", ["session.create", "document.change", "session.delete", "x.new"])
def test_operations_that_are_not_about_messages_change_nothing(op: str) -> None:
    conversation = of(("message.append", "a", body("a")), (op, "context", b"{}"))
    assert conversation.messages() == [body("a")]


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 30), st.integers(1, 10))
def test_pages_after_an_offset_are_the_stretches_of_the_conversation(
    draws: list[int], after: int, limit: int
) -> None:
    conversation = Conversation()
    expected: list[tuple[int, bytes]] = []
    for offset, draw in enumerate(draws, start=1):
        if draw == 0 and expected:
            _, gone = expected.pop(len(expected) // 2)
            conversation.apply("message.remove", msgspec.json.decode(gone)["id"], offset, b"{}")
        else:
            name = f"m{offset}"
            conversation.apply("message.append", name, offset, body(name))
            expected.append((offset, body(name)))
    following = [item for item in expected if item[0] > after]
    assert conversation.messages_after(after, limit) == following[:limit]
    assert conversation.messages() == [json for _, json in expected]

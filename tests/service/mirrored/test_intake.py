"""What somebody says a session is becomes the writes that make it so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessiond.errors import InvalidInput
from sessiond.model import Context, Message, Metadata, NewMessage
from sessiond.service.mirrored.intake import UNKNOWN, Base, Given, KnownMessage, changes, creation
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    Create,
    Edit,
    PutPart,
    Remove,
    RemovePart,
    completed,
)
from sessiond.service.writing import Request
from sessiond.sync.documents import merge_patch, patch_between
from tests.service.mirrors import mirrored
from tests.service.support import create, load
from tests.store.support import Services

METADATA = msgspec.convert(
    {
        "session_id": "ses_1",
        "created_at": "2026-01-13T10:30:00Z",
        "last_activity": "2026-01-13T10:30:00Z",
        "title": "old",
    },
    Metadata,
)
AT = METADATA.created_at

names = st.text("abc", min_size=1, max_size=2)
values = st.recursive(
    st.booleans() | st.integers(-5, 5) | st.text("xy", max_size=3) | st.lists(st.integers(0, 2)),
    lambda inner: st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(names, values, max_size=4)


def message(content: str = "", **more: Any) -> Message:
    return Message(id="m1", timestamp=AT, role="user", content=content, **more)


def base(*messages: Message, is_known: bool = True) -> Base:
    known = {each.id: KnownMessage(each, "v:1", {"p1": "v:2"}) for each in messages}
    return Base(metadata=METADATA, messages=known, versions={"context": "v:0"}, is_known=is_known)


def as_given(message: Message, **changed: Any) -> NewMessage:
    fields = msgspec.to_builtins(message) | changed
    return msgspec.convert(fields, NewMessage)


@given(objects, objects)
def test_a_patch_between_two_objects_makes_one_of_the_other(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    kept = copy.deepcopy(before)
    assert merge_patch(before, patch_between(before, after)) == after
    assert before == kept


def test_what_did_not_change_takes_no_write() -> None:
    same = Given(metadata=METADATA, messages=[as_given(message("x"))])
    assert changes("ses_1", same, base(message("x"))) == []


def test_each_write_has_the_version_of_its_record_and_a_key_of_its_own() -> None:
    parts = [{"id": "p1", "type": "text", "text": "a"}, {"id": "p2", "type": "x"}]
    before = message(parts=parts)
    wanted = NewMessage(id="m1", role="user", parts=[{**parts[0], "text": "b"}])
    writes = changes("ses_1", Given(messages=[wanted]), base(before), Request(key="k", client="f"))
    assert [(type(each), each.record_id, each.request.base) for each in writes] == [
        (PutPart, "m1/p1", "v:2"),
        (RemovePart, "m1/p2", "v:1"),
    ]
    assert [each.request.key for each in writes] == ["k-0", "k-1"]
    assert {each.request.client for each in writes} == {"f"}


def test_a_write_keeps_the_time_at_which_somebody_saved_the_file() -> None:
    request = Request(key="k", at_ms=5)
    (write,) = changes("ses_1", Given(context=Context()), base(), request)
    assert completed(write, 9, lambda count: b"x" * count).request.at_ms == 5


def test_without_a_known_base_nothing_is_removed() -> None:
    before = message("x", metadata={"a": 1})
    given = Given(
        metadata=msgspec.structs.replace(METADATA, title=msgspec.UNSET),
        messages=[as_given(before, content="y")],
        context=Context(),
    )
    writes = changes("ses_1", given, base(before, is_known=False))
    assert [type(each) for each in writes] == [ChangeDocument, Edit]
    assert writes[1].request.base == UNKNOWN
    assert not any(isinstance(each, Remove | RemovePart) for each in writes)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Given(metadata=msgspec.structs.replace(METADATA, user_id="x")), "'user_id' cannot"),
        (
            Given(messages=[as_given(message("x"), timestamp="2027-01-01T00:00:00Z")]),
            "timestamp of message 'm1'",
        ),
        (Given(messages=[as_given(message("x"))] * 2), "the same id"),
        (Given(messages=[as_given(message("x"), metadata={"a": None})]), "null"),
    ],
)
def test_what_nobody_can_change_is_refused(given: Given, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        changes("ses_1", given, base(message("x")))


def test_many_messages_are_made_in_groups_in_their_order() -> None:
    messages = [NewMessage(role="user", id=f"m{n}", content="x" * 9_000) for n in range(150)]
    first, *groups = creation("ses_1", Given(metadata=METADATA, messages=messages))
    assert isinstance(first, Create)
    assert first.new.created_at == AT
    appended = [each for group in groups if isinstance(group, Append) for each in group.messages]
    assert appended == messages
    assert all(len(group.messages) <= 64 for group in groups if isinstance(group, Append))
    assert max(len(msgspec.json.encode(group)) for group in groups) < 600 * 1024


def test_a_deleted_session_is_not_made_again() -> None:
    deleted = msgspec.structs.replace(METADATA, status="deleted")
    with pytest.raises(InvalidInput, match="deleted"):
        creation("ses_1", Given(metadata=deleted))


edited = st.lists(
    st.tuples(st.integers(0, 3), st.text("xyz \n", min_size=1, max_size=6), objects),
    max_size=5,
    unique_by=lambda each: each[0],
)


@pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(edited, min_size=1, max_size=3), preferences=objects)
async def test_whatever_a_person_makes_of_a_conversation_is_what_it_becomes(
    core: Services, tmp_path: Path, rounds: list[Any], preferences: dict[str, Any]
) -> None:
    session_id = f"ses_{abs(hash(repr((rounds, preferences))))}"
    await create(core, session_id)
    async with mirrored(core, tmp_path / "sessions") as here:
        made: set[int] = set()
        for asked in rounds:
            conversation = here.read("conversation", session_id)
            there = {each["id"] for each in conversation["messages"]}
            wanted = [each for each in asked if each[0] not in made or f"m{each[0]}" in there]
            made |= {number for number, _, _ in wanted}  # a removed id is never used again
            conversation["messages"] = [
                {"id": f"m{number}", "role": "user", "content": text, "metadata": metadata}
                for number, text, metadata in wanted
            ]
            here.edit("conversation", conversation, session_id)
            here.edit("preferences", preferences, session_id)
            await here.step(3)
            after = await load(core, session_id)
            assert here.mirror.status().rejected == []
            assert {m.id: (m.content, m.metadata) for m in after.conversation.messages} == {
                f"m{number}": (text, metadata) for number, text, metadata in wanted
            }
            assert after.preferences == preferences

"""What watchers are told of a write that waits: as it was asked for, with what stands for it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sessiond.errors import InvalidInput
from sessiond.model import Choice, JournaledOperation, NewSession
from sessiond.service.clock import moment
from sessiond.service.durable.announcing import announcements
from sessiond.service.durable.waiting import Journaled
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    Create,
    Delete,
    Edit,
    PutPart,
    Remove,
    RemovePart,
    Resolve,
    Write,
)
from sessiond.service.writing import Request
from tests.service.support import said, text

AT_MS = 1_768_300_200_000
ABOUT: dict[str, Any] = {"session_id": "s", "request": Request(client="ana", at_ms=AT_MS)}


def told(write: Write) -> list[JournaledOperation]:
    events = announcements(Journaled(write, "ff00:7"), "here.1")
    assert {(event.name, event.id, event.position) for event in events} == {("journaled", "", None)}
    return [msgspec.json.decode(event.data, type=JournaledOperation) for event in events]


@pytest.mark.parametrize(
    ("write", "op", "record_id", "body"),
    [
        (Edit(message_id="m", patch={"content": None}, **ABOUT), "message.edit", "m",
         {"content": None}),
        (Remove(message_id="m", **ABOUT), "message.remove", "m", {}),
        (PutPart(message_id="m", part_id="p", part=text("x"), **ABOUT), "part.put", "m/p",
         {"id": "p", **text("x")}),
        (RemovePart(message_id="m", part_id="p", **ABOUT), "part.remove", "m/p", {}),
        (ChangeDocument(name="context", patch={"state": {}}, **ABOUT), "document.change",
         "context", {"state": {}}),
        (Delete(**ABOUT), "session.delete", "s", {}),
        (Resolve(number="7", choice=Choice(take="ours"), **ABOUT), "conflict.resolve", "7",
         {"take": "ours"}),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)  # fmt: skip
def test_a_write_is_told_as_it_was_asked_for(
    write: Write, op: str, record_id: str, body: Any
) -> None:
    (found,) = told(write)
    assert (found.op, found.session_id, found.id, found.body) == (op, "s", record_id, body)
    assert (found.version, found.origin, found.at) == ("ff00:7", "ana@here.1", moment(AT_MS))
    assert not found.replace


def test_each_message_of_a_group_is_told_whole() -> None:
    first, second = told(Append(messages=[said("one", "m1"), said("two", "m2")], **ABOUT))
    assert (first.id, second.id) == ("m1", "m2")
    assert first.body["content"] == "one"
    assert first.body["timestamp"] == "2026-01-13T10:30:00Z"


def test_a_replaced_document_and_a_new_session_say_so() -> None:
    (replaced,) = told(ChangeDocument(name="preferences", patch={"a": 1}, replace=True, **ABOUT))
    assert replaced.replace
    (created,) = told(Create(new=NewSession(title="new"), session_id="s"))
    assert (created.op, created.id, created.body["title"]) == ("session.create", "s", "new")
    assert created.origin == "here.1"


def test_of_what_will_be_refused_nobody_is_told() -> None:
    without_type = said("", "m1", parts=[{"id": "p"}])
    with pytest.raises(InvalidInput):
        told(Append(messages=[without_type], **ABOUT))

"""What is kept of what comes too late: each record as it was last."""

from __future__ import annotations

from sessiond.opencode.mapping import FIELD, Change, ChangeKind
from sessiond.service.opencode.late import late_records
from sessiond.service.opencode.recorder import SourcedChange
from tests.opencode.simulated import NOW
from tests.service.opencode.support import SESSION


def change(kind: ChangeKind, name: str, text: str, seq: int | None) -> SourcedChange:
    return SourcedChange(Change(kind=kind, id=name, body={"text": text}, at_ms=NOW), seq)


def test_each_record_is_kept_as_it_was_last_in_the_order_of_these_writings() -> None:
    found = late_records(
        SESSION,
        [
            change("message.put", "m1", "one", 3),
            change("part.put", "m1/p1", "two", 4),
            change("part.put", "m1/p2", "three", 5),
            change("part.put", "m1/p1", "four", 7),
            change("message.put", "m1", "five", 9),
        ],
    )
    assert [(each.seq, each.subject.id) for each in found] == [
        (5, "m1/p2"),
        (7, "m1/p1"),
        (9, "m1"),
    ]
    assert found[1].value == {"text": "four"}
    assert found[2].value["metadata"][FIELD] == {"text": "five"}


def test_removals_and_what_is_said_of_the_session_itself_are_not_kept() -> None:
    changes = [
        change("session.put", "", "a title", 1),
        change("message.remove", "m1", "", 2),
        change("part.remove", "m1/p1", "", 3),
        change("session.delete", "", "", 4),
    ]
    assert late_records(SESSION, changes) == []

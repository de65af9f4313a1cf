"""What belongs to a log and is not in it: which of that belongs to a stretch of the log."""

from __future__ import annotations

from sessiond.sync.unlogged import Unlogged, unlogged_lines

APPLIED = {
    "here.1": "7 9",
    "key:a": "digest 3",
    "key:b": " 5",
    "key:foreign": "9" * 5_000,
    "outbox:oc": "70",
}
CONFLICTS = {4: [b"what", b"conflict"], 6: [b"what", b"resolution"], 8: [b"what", b"conflict"]}


def test_writers_are_told_by_the_log_keys_and_marks_are_not() -> None:
    assert unlogged_lines(APPLIED) == {
        name: line for name, line in APPLIED.items() if name != "here.1"
    }


def test_a_stretch_has_what_was_written_with_it_and_marks_if_it_is_the_last() -> None:
    unlogged = Unlogged(8, unlogged_lines(APPLIED), CONFLICTS)
    assert unlogged.between(4, 7) == Unlogged(7, {"key:b": " 5"}, {6: CONFLICTS[6]})
    assert unlogged.between(0, 8).lines.keys() == {"key:a", "key:b", "outbox:oc"}
    assert unlogged.between(4, 8).conflicts.keys() == {6, 8}

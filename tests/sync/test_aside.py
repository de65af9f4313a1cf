"""What belongs to a log and is not in it: what of that goes with a stretch of the log."""

from __future__ import annotations

from sessiond.sync.aside import Aside
from sessiond.sync.position import Position

ASIDE = Aside(
    lines={
        "here.1": "7 9",
        "key:a": "digest 3",
        "key:b": " 5",
        "key:later": "digest 9",
        "outbox:oc": "70",
    },
    conflicts={4: [b"what", b"conflict"], 6: [b"what", b"resolution"]},
)


def test_of_a_log_that_ended_earlier_there_are_no_later_keys_nor_marks() -> None:
    earlier = ASIDE.up_to(Position("e", 5), marks={"outbox:oc": "50", "key:gone": "digest 1"})
    assert earlier.lines == {"key:a": "digest 3", "key:b": " 5", "outbox:oc": "50"}
    assert ASIDE.up_to(Position("e", 9), marks=ASIDE.lines).lines == {
        "key:a": "digest 3",
        "key:b": " 5",
        "key:later": "digest 9",
        "outbox:oc": "70",
    }


def test_a_stretch_has_what_was_written_with_it_and_only_the_last_one_the_marks() -> None:
    whole = ASIDE.up_to(Position("e", 9), marks=ASIDE.lines)
    assert whole.between(0, 4, is_last=False) == Aside(
        {"key:a": "digest 3"}, {4: [b"what", b"conflict"]}
    )
    assert whole.between(4, 9, is_last=True) == Aside(
        {"key:b": " 5", "key:later": "digest 9", "outbox:oc": "70"},
        {6: [b"what", b"resolution"]},
    )

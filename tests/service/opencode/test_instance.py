"""An attached opencode that repeats what it told."""

from __future__ import annotations

from sessiond.opencode.protocol import Attachment, OpencodeEvent
from sessiond.service.opencode.instance import Instance


def attached() -> Instance:
    attachment = Attachment(
        version="1", plugin="0", pid=1, database="/d", project_id="p", directory="/", worktree="/"
    )
    return Instance("oc-1", attachment, 1024)


def event(name: str) -> OpencodeEvent:
    return OpencodeEvent(id=name, type="message.updated", properties={})


def test_a_repeated_push_goes_on_where_it_was_cut_off_after_a_new_attachment() -> None:
    former = attached()
    events = [event(name) for name in "abc"]
    assert former.untaken(events) == former.unshown(events) == events
    former.note_taken(events[:2])

    instance = attached()
    instance.take_over(former)
    assert instance.untaken(events) == events[2:]
    assert instance.unshown(events) == []


def test_events_without_an_id_are_always_new() -> None:
    instance = attached()
    events = [event("")]
    instance.note_taken(events)
    assert instance.unshown(events) == instance.untaken(events) == events

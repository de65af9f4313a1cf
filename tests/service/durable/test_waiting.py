"""Where a log has what a journal's entry wrote: what a repair may offer."""

from __future__ import annotations

import pytest

from sessiond.journal import Entry, Span
from sessiond.model import NewMessage
from sessiond.service import writes
from sessiond.service.durable.waiting import places_of
from sessiond.service.writes import Append, Remove, Write
from sessiond.sync.position import Position


def entry_of(write: Write, offset: int | None) -> Entry:
    position = None if offset is None else Position("00f3a9c1d2e4b7", offset)
    return Entry(Span("w.1", 1, 1), "ses_1", "", 0, [writes.encode(write)], position)


GROUP = Append(
    session_id="ses_1", messages=[NewMessage(role="user", content=text) for text in "abc"]
)
REMOVAL = Remove(session_id="ses_1", message_id="m1")


@pytest.mark.parametrize(
    ("write", "offset", "places"),
    [(GROUP, 7, [5, 6, 7]), (REMOVAL, 7, [7]), (GROUP, None, []), (REMOVAL, None, [])],
)
def test_a_group_has_a_place_for_each_message_and_what_waits_has_none(
    write: Write, offset: int | None, places: list[int]
) -> None:
    assert list(places_of(entry_of(write, offset))) == places

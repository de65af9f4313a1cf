"""Users' preferences come to the same on all machines, whenever and how often a change arrives."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sessiond.sync.documents import merge_patch
from sessiond.sync.position import Position, is_journaled
from sessiond.sync.preferences import (
    MOST_REMOVALS,
    MOST_WRITES,
    PreferenceChanges,
    changes_of,
    mark_of,
    stamp_of,
)

names = st.sampled_from("abc")
scalars = st.one_of(st.none(), st.integers(0, 3), st.lists(st.integers(0, 1), max_size=2))
nested = st.recursive(scalars, lambda inner: st.dictionaries(names, inner, max_size=3))
patches = st.dictionaries(names, nested, max_size=3)


def applied(changes: PreferenceChanges, *patches: tuple[int, Any]) -> PreferenceChanges:
    for at_ms, patch in patches:
        changes = changes.with_patch(patch, stamp_of(at_ms, "k"))
    return changes


@given(st.lists(patches, max_size=6), st.data())
def test_they_are_the_patches_in_order_of_time_in_whatever_order_and_how_often_they_came(
    history: list[Any], data: st.DataObject
) -> None:
    wanted: Any = {}
    for patch in history:
        wanted = merge_patch(wanted, patch)
    timed = list(enumerate(history, 1))
    again = data.draw(st.lists(st.sampled_from(timed), max_size=4)) if timed else []
    came = data.draw(st.permutations([*timed, *again]))
    changes = applied(PreferenceChanges(), *came)
    assert changes.preferences() == wanted
    kept = msgspec.json.decode(msgspec.json.encode(changes), type=PreferenceChanges)
    assert kept == changes


@given(patches, patches)
def test_preferences_without_a_history_are_older_than_every_change(old: Any, patch: Any) -> None:
    before = merge_patch({}, old)
    changes = changes_of(before)
    assert changes.preferences() == before
    assert applied(changes, (1, patch)).preferences() == merge_patch(before, patch)


def test_of_two_at_the_same_time_the_key_decides_everywhere() -> None:
    one, two = ({"a": 1}, stamp_of(5, "k1")), ({"a": 2}, stamp_of(5, "k2"))
    for order in ((one, two), (two, one)):
        changes = PreferenceChanges()
        for patch, stamp in order:
            changes = changes.with_patch(patch, stamp)
        assert changes.preferences() == {"a": 2}


def test_the_newest_removals_are_remembered() -> None:
    changes = applied(
        PreferenceChanges(), *((at, {f"p{at}": None}) for at in range(1, MOST_REMOVALS + 3))
    )
    assert len(changes.settings) == MOST_REMOVALS
    assert "p3" not in applied(changes, (1, {"p3": True})).preferences()


def test_the_newest_writes_are_known_again_and_older_ones_count_as_applied() -> None:
    changes = PreferenceChanges()
    positions = []
    for number in range(MOST_WRITES + 5):
        changes = changes.with_write(mark_of(str(number)), "digest")
        positions.append(changes.position)
    assert len(changes.writes) == MOST_WRITES
    assert all(changes.has(position) for position in positions)
    assert not changes.has(Position(mark_of("other"), MOST_WRITES + 5))
    assert not PreferenceChanges().has(positions[0])
    assert [position.offset for position in positions] == list(range(1, MOST_WRITES + 6))
    assert not any(is_journaled(str(position)) for position in positions)

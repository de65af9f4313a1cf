"""What is remembered of a document is what the log would tell."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from sessiond.sync.rebase import Writing
from sessiond.sync.recent import History, Recent, is_version

names = st.sampled_from("abc")
written = st.lists(
    st.dictionaries(names, st.integers(0, 3) | st.just(UNSET), max_size=2), max_size=8
)


def recent(changes: list[dict[str, Any]]) -> tuple[Recent, list[dict[str, Any]]]:
    """What took these changes, and the document after each of them."""
    found = Recent("e0:1", {"a": 0})
    values = [found.value]
    for offset, fields in enumerate(changes, start=2):
        found.take(f"e{offset}:{offset}", Writing(fields, offset, offset, "x"), 10)
        values.append(found.value)
    return found, values


@given(written, st.data())
def test_every_version_is_known_with_what_was_written_since(
    changes: list[dict[str, Any]], data: st.DataObject
) -> None:
    found, values = recent(changes)
    place = data.draw(st.integers(0, len(changes)))
    epoch = "e0" if place == 0 else f"e{place + 1}"
    for base in (f"{epoch}:{place + 1}", f"{place + 1}"):
        history = found.since(base)
        assert history
        assert history.base == values[place]
        assert [writing.fields for writing in history.since] == changes[place:]


@given(written)
def test_a_version_of_another_history_is_unknown(changes: list[dict[str, Any]]) -> None:
    found, _ = recent(changes)
    assert found.since("e99:1") is None
    assert found.since("99") is None


@given(written, written)
def test_a_copy_goes_its_own_way(changes: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    found, values = recent(changes)
    version = found.version
    ahead = found.copy()
    for fields in more:
        ahead.take("", Writing(fields, 0, 0, "x"), 10)
    assert (found.version, found.value) == (version, values[-1])
    assert found.since(version) == History(values[-1], ())
    history = ahead.since(version)
    assert history
    assert history.base == values[-1]


def test_the_oldest_writings_are_forgotten_by_number_and_by_size() -> None:
    many, _ = recent([{"a": number} for number in range(300)])
    assert many.since("e0:1") is None
    assert many.since("e46:46")
    large = Recent("e0:1", {})
    large.take("e2:2", Writing({"a": 1}, 0, 2, "x"), 2**20)
    assert large.since("e0:1")
    large.take("e3:3", Writing({"a": 2}, 0, 3, "x"), 1)
    assert large.since("e0:1") is None
    assert large.since("e2:2")


def test_a_version_is_named_in_full_or_by_its_offset() -> None:
    assert is_version("e1:2", "e1:2")
    assert is_version("2", "e1:2")
    assert not is_version("e2:2", "e1:2")

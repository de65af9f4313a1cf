"""Ids: they sort by time, fit the model's patterns, and derived ones find themselves again."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sessiond.model import RecordId, SessionId
from sessiond.service.identity import content_digest, derived_id, new_id

times = st.integers(0, 32**9 - 1)
randoms = st.binary(min_size=16, max_size=16)
names = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=10)


@given(times, randoms, times, randoms)
def test_ids_sort_by_their_time(one: int, random: bytes, other: int, other_random: bytes) -> None:
    first = new_id("msg", one, lambda count: random[:count])
    second = new_id("msg", other, lambda count: other_random[:count])
    if one != other:
        assert (first < second) == (one < other)


@given(times, randoms)
def test_new_ids_are_ids_of_sessions_and_records(time: int, random: bytes) -> None:
    made = new_id("ses", time, lambda count: random[:count])
    assert msgspec.convert(made, SessionId) == msgspec.convert(made, RecordId)
    assert len(made) == len("ses_") + 24


@given(times, randoms, randoms)
def test_every_random_bit_tells_ids_of_one_millisecond_apart(
    time: int, one: bytes, other: bytes
) -> None:
    asked = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return (one, other)[len(asked) - 1][:count]

    ids = [new_id("ses", time, entropy) for _ in range(2)]
    assert asked[0] * 8 >= 72
    assert (ids[0] == ids[1]) == (one[: asked[0]] == other[: asked[0]])


@given(st.lists(names, min_size=1, max_size=3), st.lists(names, min_size=1, max_size=3))
def test_a_derived_id_is_the_same_for_the_same_origins_and_for_no_others(
    one: list[str], other: list[str]
) -> None:
    assert (derived_id("msg", *one) == derived_id("msg", *other)) == (one == other)
    msgspec.convert(derived_id("ses", *one), SessionId)


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_a_digest_tells_contents_apart_and_has_no_blank_in_it(one: bytes, other: bytes) -> None:
    assert (content_digest(one) == content_digest(other)) == (one == other)
    assert content_digest(one).isalnum()

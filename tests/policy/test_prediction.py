"""What will be asked for next, from what was asked for together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sessiond.policy.prediction import CoReads

names = st.sampled_from("abcdefgh")


def after(*asked: str, **more: int) -> CoReads:
    reads = CoReads(**more)
    for name in asked:
        reads.note(name)
    return reads


def test_what_followed_before_is_likely_and_the_nearest_the_likeliest() -> None:
    assert after(*"abcxyzuvwa", near=3).likely(2) == ["b", "c"]
    assert after(*"abxaba").likely(1) == ["b"]


def test_what_was_together_often_goes_before_what_was_once() -> None:
    assert after(*"a1b.a1b.a1c.a", near=2).likely(3, known={"a"}) == ["1", "b", "c"]


def test_what_is_there_already_is_not_wanted() -> None:
    assert after(*"abca").likely(5, known={"b"}) == ["c"]


def test_what_begins_again_follows_upon_nothing() -> None:
    reads = after(*"abc")
    reads.begin_again()
    assert reads.likely(5) == []
    reads.note("a")
    assert reads.likely(5) == ["b", "c"]


def test_what_is_worked_on_is_likely_from_the_beginning() -> None:
    assert CoReads().likely(5, active=["x", "y"]) == ["x", "y"]
    assert after(*"abba").likely(5, active=["x"])[0] in {"b", "x"}


def test_nothing_known_predicts_nothing() -> None:
    assert CoReads().likely(5) == []
    assert after("a").likely(5) == []
    assert after(*"ab").likely(0) == []


def test_the_same_again_says_nothing_new() -> None:
    assert after(*"aaab", *"a").likely(3) == after(*"aba").likely(3)


def test_what_is_long_ago_counts_less() -> None:
    """Twice long ago is less than once now."""
    filler = [str(number % 7) for number in range(700)]
    reads = after(*"ab", "-", *"ab", *filler, *"ac", "-", "a", near=1, half_life=100)
    assert reads.likely(2) == ["c", "b"]


@given(st.lists(names, max_size=80), st.integers(1, 4), st.integers(1, 4))
def test_what_is_known_stays_bounded(asked: list[str], followers: int, most: int) -> None:
    reads = CoReads(followers=followers, names=most)
    for name in asked:
        reads.note(name)
        assert len(reads._counts) <= most
        assert all(len(found) <= followers for found in reads._counts.values())


@given(st.lists(names, max_size=80), st.integers(0, 5), st.sets(names))
def test_likely_names_were_asked_for_are_wanted_and_come_once(
    asked: list[str], most: int, known: set[str]
) -> None:
    likely = after(*asked).likely(most, known=known)
    assert len(likely) == len(set(likely)) <= most
    assert set(likely) <= set(asked) - known
    assert likely == after(*asked).likely(most, known=known)

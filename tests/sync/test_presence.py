"""Which files several instances have open."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sessiond.model import Presence
from sessiond.sync.presence import shared_files

FILES = st.lists(st.sampled_from(["a.py", "b.py", "c.py"]), max_size=5)


def at_work(instance: str, files: list[str]) -> Presence:
    return Presence(
        instance=instance,
        machine="m",
        client="",
        active_files=files,
        since_ms=1,
        seen_ms=1,
        until_ms=2,
        has_turn=False,
    )


def test_a_file_that_two_have_open_is_shared_and_names_them_in_their_order() -> None:
    ann, bob = at_work("ann", ["b.py", "a.py"]), at_work("bob", ["a.py", "c.py"])
    assert shared_files([ann, bob]) == {"a.py": ["ann", "bob"]}
    assert shared_files([bob, ann]) == {"a.py": ["bob", "ann"]}


def test_one_who_names_a_file_twice_shares_it_with_nobody() -> None:
    assert shared_files([at_work("ann", ["a.py", "a.py"])]) == {}


@given(st.lists(FILES, max_size=4))
def test_exactly_the_files_of_two_or_more_are_shared(opened: list[list[str]]) -> None:
    present = [at_work(f"i{number}", files) for number, files in enumerate(opened)]
    shared = shared_files(present)
    assert list(shared) == sorted(shared)
    for file in ("a.py", "b.py", "c.py"):
        holders = [who.instance for who in present if file in who.active_files]
        assert shared.get(file, []) == (holders if len(holders) > 1 else [])

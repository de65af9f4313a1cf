"""Keys of calls, and what an edit of a file reaches."""

from __future__ import annotations

import json
import posixpath
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sessiond.errors import InvalidInput
from sessiond.model import CacheCall
from sessiond.policy.caching import (
    checked_key,
    key_of,
    paths_below,
    relative_path,
    subjects_of_change,
)

names = st.sampled_from(["a", "b", "src", "x.py", ".."])
paths = st.lists(names, min_size=1, max_size=5).map("/".join)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


def call(**more: Any) -> CacheCall:
    return CacheCall(**{"tool": "read", "path": "a.py", **more})


def subject(path: str, scope: str) -> str:
    return key_of(call(path=path, scope=scope)).partition(".")[0]


@given(values)
def test_the_order_of_arguments_makes_no_other_key(value: Any) -> None:
    def turned(each: Any) -> Any:
        if isinstance(each, dict):
            return {name: turned(each[name]) for name in reversed(each)}
        return [turned(item) for item in each] if isinstance(each, list) else each

    assert key_of(call(arguments=value)) == key_of(call(arguments=turned(value)))


@given(values, values)
@example([False], [0])  # equal in Python, and not in JSON
def test_other_arguments_make_another_key(one: Any, other: Any) -> None:
    same = key_of(call(arguments=one)) == key_of(call(arguments=other))
    assert same == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


@pytest.mark.parametrize(
    "more",
    [{"tool": "grep"}, {"path": "b.py"}, {"scope": "tree"}, {"arguments": {}}, {"path": "a.py/b"}],
)
def test_whatever_differs_makes_another_key(more: dict[str, Any]) -> None:
    assert key_of(call(**more)) != key_of(call())
    assert checked_key(key_of(call(**more)))


@pytest.mark.parametrize("path", ["./a.py", "b/../a.py", "a.py", ".//a.py"])
def test_a_path_counts_in_its_one_form(path: str) -> None:
    assert key_of(call(path=path)) == key_of(call())


@pytest.mark.parametrize("path", ["/a", "..", "../a", "a/../../b", "/", "a\0b"])
def test_a_path_out_of_the_project_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="no path below"):
        key_of(call(path=path))


@given(paths)
def test_what_is_taken_never_leads_out(path: str) -> None:
    inside = posixpath.normpath(posixpath.join("/project", path))
    try:
        taken = relative_path(path)
    except InvalidInput:
        assert not inside.startswith("/project/") or ".." in path
    else:
        assert posixpath.normpath(posixpath.join("/project", taken)) == inside
        assert inside == "/project" or inside.startswith("/project/")


def test_a_change_reaches_the_file_and_every_folder_above_and_no_other() -> None:
    reached = set(subjects_of_change(["src/deep/a.py"]))
    for path in ("src/deep", "src", "."):
        assert subject(path, "tree") in reached
    assert subject("src/deep/a.py", "file") in reached
    for path, scope in (("src/deep", "file"), ("src/b.py", "file"), ("docs", "tree")):
        assert subject(path, scope) not in reached


def test_of_named_files_those_below_the_project_count() -> None:
    named = ["a.py", "${WORKTREE}/src/../b.py", "/etc/passwd", "../c", "", None, 1, ["d"]]
    assert paths_below(named) == ["a.py", "b.py"]


@pytest.mark.parametrize("key", ["", "a", "0" * 49, "0" * 16 + "." + "g" * 32, "../x"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput, match="no key of the cache"):
        checked_key(key)

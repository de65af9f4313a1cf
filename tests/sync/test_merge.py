"""Whole documents merged: field by field, by id, and nothing lost in silence."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from sessiond.codec import json
from sessiond.sync.defaults import MERGED_DOCUMENTS, MergedDocument
from sessiond.sync.merge import Conflict, Merged, merge
from sessiond.sync.rules import Fields, Rules
from sessiond.sync.sides import Path, Side, canonical, same
from sessiond.sync.strategies import PLAIN, Law
from tests.sync.merging import concurrent, json_values, side

DEFAULTS = Rules()
CONTEXT = DEFAULTS.of("context")
PREFERENCES = DEFAULTS.of("preferences")

patterns = st.sampled_from(
    ["**", "*", "a", "b", "a.*", "**.a", "a.**.b", "*_count", "log", "b.p.a"]
)
any_rules = st.one_of(
    st.sampled_from(MERGED_DOCUMENTS).map(DEFAULTS.of),
    st.dictionaries(patterns, st.sampled_from([*PLAIN, "append(2)"]), max_size=4).map(
        lambda chosen: Rules({"preferences": chosen}).of("preferences")
    ),
)
commutative = st.dictionaries(
    patterns,
    st.sampled_from([name for name, each in PLAIN.items() if Law.COMMUTATIVE in each.laws]),
    max_size=4,
).map(lambda chosen: Rules({"preferences": chosen}).of("preferences"))


def everywhere(strategy: str) -> Fields:
    return Rules({"preferences": {"**": strategy}}).of("preferences")


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    return [reordered(each) for each in value] if isinstance(value, list) else value


def at(path: Path, value: Any) -> Any:
    for name in path:
        if isinstance(value, list):
            known = (each for each in value if isinstance(each, dict) and each.get("id") == name)
            value = next(known, UNSET)
        else:
            value = value.get(name, UNSET) if isinstance(value, dict) else UNSET
    return value


@given(json_values | st.just(UNSET), any_rules)
def test_a_value_merged_with_itself_is_itself(value: Any, rules: Fields) -> None:
    assert merge(value, side(value, 1), side(value, 2), rules) == Merged(value)


@given(concurrent(), any_rules)
def test_a_change_merged_with_itself_is_itself(case: tuple[Any, Side, Side], rules: Fields) -> None:
    base, ours, _ = case
    assert merge(base, ours, ours, rules) == Merged(ours.value)


@given(concurrent(), any_rules)
def test_what_one_side_alone_changed_is_taken_as_it_is(
    case: tuple[Any, Side, Side], rules: Fields
) -> None:
    base, ours, _ = case
    unchanged = side(base, 9, "unchanged")
    for merged in (merge(base, ours, unchanged, rules), merge(base, unchanged, ours, rules)):
        assert same(merged.value, ours.value)
        assert not merged.conflicts


@given(concurrent(), any_rules)
def test_nothing_given_is_changed_and_the_result_is_json(
    case: tuple[Any, Side, Side], rules: Fields
) -> None:
    before = copy.deepcopy(case)
    base, ours, theirs = case
    merged = merge(base, ours, theirs, rules)
    for value, kept in zip((base, ours.value, theirs.value), (
        before[0], before[1].value, before[2].value
    ), strict=True):  # fmt: skip
        assert json.encode(value) == json.encode(kept)
    again = msgspec.json.decode(json.encode_given(merged.value))
    assert same(again, merged.value)
    json.encode_given(merged.conflicts)


@given(concurrent(), any_rules)
def test_the_order_of_fields_says_nothing(case: tuple[Any, Side, Side], rules: Fields) -> None:
    base, ours, theirs = case
    merged = merge(base, ours, theirs, rules)
    one, two = (each.holding(reordered(each.value)) for each in (ours, theirs))
    other = merge(reordered(base), one, two, rules)
    assert canonical(other.value) == canonical(merged.value)
    assert msgspec.json.encode(other.conflicts, order="deterministic") == msgspec.json.encode(
        merged.conflicts, order="deterministic"
    )


@given(concurrent(), commutative)
def test_both_sides_come_to_the_same_value_and_conflicts(
    case: tuple[Any, Side, Side], rules: Fields
) -> None:
    base, ours, theirs = case
    here, there = merge(base, ours, theirs, rules), merge(base, theirs, ours, rules)
    assert canonical(here.value) == canonical(there.value)
    turned = {"ours": "theirs", "theirs": "ours", "merged": "merged"}
    assert [(each.path, turned[each.outcome]) for each in here.conflicts] == [
        (each.path, each.outcome) for each in there.conflicts
    ]


@given(concurrent(), any_rules)
def test_a_conflict_tells_truly_what_each_side_had_and_what_stands(
    case: tuple[Any, Side, Side], rules: Fields
) -> None:
    base, ours, theirs = case
    merged = merge(base, ours, theirs, rules)
    paths = [each.path for each in merged.conflicts]
    assert paths == sorted(set(paths))
    for conflict in merged.conflicts:
        values = {"ours": ours.value, "theirs": theirs.value}
        assert same(conflict.ours, at(conflict.path, ours.value))
        assert same(conflict.theirs, at(conflict.path, theirs.value))
        assert not same(conflict.ours, conflict.theirs)
        assert not same(conflict.base, conflict.ours)
        assert not same(conflict.base, conflict.theirs)
        if conflict.outcome != "merged" and not isinstance(conflict.ours, list):
            stands = at(conflict.path, merged.value)
            assert same(stands, at(conflict.path, values[conflict.outcome]))


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path


@given(concurrent())
def test_where_the_last_writer_wins_the_first_one_is_recorded(
    case: tuple[Any, Side, Side],
) -> None:
    base, ours, theirs = case
    merged = merge(base, ours, theirs, everywhere("last-writer-wins"))
    known = {each.path for each in merged.conflicts}
    for value in (ours.value, theirs.value):
        for path in leaves(value):
            changed, stands = at(path, value), at(path, merged.value)
            if same(changed, at(path, base)) or same(changed, stands):
                continue
            covered = any(path[: len(each)] == each for each in known)
            below = any(each[: len(path)] == path for each in known)
            merged_by_id = isinstance(changed, list) and isinstance(stands, list)
            emptied = isinstance(changed, dict) and isinstance(stands, dict)
            assert covered or below or merged_by_id or emptied, path


@given(concurrent(), st.sampled_from(MERGED_DOCUMENTS))
def test_both_having_made_the_same_is_no_conflict(
    case: tuple[Any, Side, Side], document: MergedDocument
) -> None:
    base, ours, _ = case
    merged = merge(base, ours, side(ours.value, 5, "other"), DEFAULTS.of(document))
    assert not merged.conflicts


def test_the_documents_of_the_specification_merge_as_a_person_would() -> None:
    base = {
        "working_directory": "/home/user/project",
        "active_files": ["src/main.js", "README.md"],
        "recent_commands": ["read", "grep", "bash"],
        "state": {"current_task": "codebase_analysis", "phase": "exploration", "findings": []},
    }
    ours = copy.deepcopy(base) | {"active_files": ["README.md", "a.py"]}
    ours["recent_commands"] = ["read", "grep", "bash", "edit"]
    ours["state"] = {"current_task": "codebase_analysis", "phase": "writing", "findings": ["one"]}
    theirs = copy.deepcopy(base) | {"active_files": ["src/main.js", "README.md", "b.py"]}
    theirs["recent_commands"] = ["read", "grep", "bash", "ls"]
    theirs["state"] = {
        "current_task": "tests",
        "phase": "review",
        "findings": ["two"],
        "n_count": 1,
    }
    merged = merge(base, side(ours, 2), side(theirs, 1), CONTEXT)
    assert merged.value == {
        "working_directory": "/home/user/project",
        "active_files": ["README.md", "b.py", "a.py"],
        "recent_commands": ["read", "grep", "bash", "ls", "edit"],
        "state": {
            "current_task": "tests",
            "phase": "writing",
            "findings": ["two", "one"],
            "n_count": 1,
        },
    }
    assert merged.conflicts == (
        Conflict(
            path=("state", "phase"),
            base="exploration",
            ours="writing",
            theirs="review",
            strategy="last-writer-wins",
            outcome="ours",
        ),
    )


def test_metadata_keep_the_latest_activity_and_the_strongest_status() -> None:
    base = {"status": "active", "last_activity": "2026-01-13T10:30:00Z", "title": "first"}
    ours = base | {"status": "archived", "last_activity": "2026-01-13T11:00:00.5Z", "title": "A"}
    theirs = base | {"status": "deleted", "last_activity": "2026-01-13T11:00:00Z", "title": "B"}
    merged = merge(base, side(ours, 1), side(theirs, 2), DEFAULTS.of("metadata"))
    assert merged.value == {
        "status": "deleted",
        "last_activity": "2026-01-13T11:00:00.5Z",
        "title": "B",
    }
    assert [each.path for each in merged.conflicts] == [("title",)]


def test_messages_merge_part_by_part_and_line_by_line() -> None:
    def message(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"id": "m", "role": "user", "parts": list(parts), **more}

    def part(name: str, text: str) -> dict[str, Any]:
        return {"id": name, "type": "text", "text": text}

    base = message(part("p1", "a\nb\nc"), part("p2", "x"), part("p3", "gone"))
    ours = message(part("p1", "A\nb\nc"), part("p2", "x"), part("new-1", "1"))
    theirs = message(part("p1", "a\nb\nC"), part("p3", "changed"), part("new-2", "2"))
    merged = merge(base, side(ours, 1), side(theirs, 2), DEFAULTS.of("message"))
    assert merged.value == message(
        part("p1", "A\nb\nC"), part("new-1", "1"), part("new-2", "2"), part("p3", "changed")
    )
    (conflict,) = merged.conflicts
    assert (conflict.path, conflict.ours, conflict.outcome) == (("parts", "p3"), UNSET, "theirs")
    assert b'"ours"' not in json.encode(conflict)


def test_absent_null_and_empty_are_three_values() -> None:
    base = {"a": 1, "b": 1, "c": 1}
    merged = merge(base, side({"a": None, "c": ""}), side({"b": 1, "c": None}, 2), PREFERENCES)
    assert merged.value == {"c": None}
    assert [(each.path, each.ours, each.theirs) for each in merged.conflicts] == [
        (("a",), None, UNSET),
        (("c",), "", None),
    ]


@pytest.mark.parametrize("strategy", PLAIN)
def test_a_field_that_changed_its_type_goes_to_the_last_writer_or_where_the_rule_says(
    strategy: str,
) -> None:
    base = {"a": {"deep": 1}}
    ours, theirs = side({"a": {"deep": 2}}, 1), side({"a": "a text"}, 2)
    merged = merge(base, ours, theirs, everywhere(strategy))
    assert merged.value == ({"a": {"deep": 2}} if strategy == "ours" else {"a": "a text"})
    assert [each.path for each in merged.conflicts] == [("a",)]
    assert merged.conflicts[0].strategy == strategy


def test_two_objects_where_there_was_none_merge_field_by_field() -> None:
    merged = merge({"a": "text"}, side({"a": {"x": 1}}), side({"a": {"y": 2}}, 2), PREFERENCES)
    assert merged == Merged({"a": {"x": 1, "y": 2}})


def test_a_removed_document_and_a_changed_one_are_in_conflict() -> None:
    merged = merge({"a": 1}, side(UNSET, 2), side({"a": 2}, 1), PREFERENCES)
    assert merged.value is UNSET
    (conflict,) = merged.conflicts
    assert (conflict.path, conflict.theirs, conflict.outcome) == ((), {"a": 2}, "ours")


def test_manual_conflicts_are_open_and_the_last_writers_value_stands() -> None:
    merged = merge({"a": 1}, side({"a": 2}, 2), side({"a": 3}, 1), everywhere("manual"))
    (conflict,) = merged.conflicts
    assert (merged.value, conflict.is_open) == ({"a": 2}, True)
    assert not merge({}, side({"a": 2}), side({"a": 3}, 2), PREFERENCES).conflicts[0].is_open


def test_entries_are_merged_by_id_only_if_each_has_its_own() -> None:
    entry, other = {"id": "x", "n": 1}, {"id": "x", "n": 2}
    base = {"a": [entry]}
    theirs = side({"a": [other]}, 2)
    for ours in ([entry, entry], [entry, {"id": 1}], [entry, 3], [entry, {"n": 1}]):
        merged = merge(base, side({"a": ours}), theirs, PREFERENCES)
        assert [each.path for each in merged.conflicts] == [("a",)]
    merged = merge(base, side({"a": [entry, {"id": "y"}]}), theirs, PREFERENCES)
    assert merged == Merged({"a": [other, {"id": "y"}]})


def test_an_order_that_both_changed_differently_is_a_conflict_of_the_list() -> None:
    a, b, c = ({"id": name} for name in "abc")
    merged = merge([a, b, c], side([b, a, c]), side([c, b, a | {"n": 1}], 2), PREFERENCES)
    assert merged.value == [c, b, a | {"n": 1}]
    assert [(each.path, each.outcome) for each in merged.conflicts] == [((), "theirs")]
    merged = merge([a, b, c], side([b, a, c]), side([a, b, c | {"n": 1}], 2), PREFERENCES)
    assert merged == Merged([b, a, c | {"n": 1}])


def test_a_cap_holds_for_entries_with_ids_too() -> None:
    entries = [{"id": str(number), "n": 0} for number in range(6)]
    merged = merge([], side(entries[:3]), side(entries[3:], 2), everywhere("append(4)"))
    assert merged.value == entries[2:]


def test_a_custom_strategy_takes_objects_and_lists_as_a_whole() -> None:
    def longest(base: Any, ours: Side, theirs: Side) -> Any:
        return max(ours.value, theirs.value, key=len)

    rules = Rules({"context": {"state": "m:longest"}}, {"m:longest": longest}).of("context")
    base = {"state": {"a": 1}, "active_files": []}
    ours = side({"state": {"a": 2}, "active_files": ["x"]}, 2)
    theirs = side({"state": {"b": 2, "c": 3}, "active_files": ["y"]}, 1)
    merged = merge(base, ours, theirs, rules)
    assert merged == Merged({"state": {"b": 2, "c": 3}, "active_files": ["y", "x"]})


def test_a_custom_strategy_may_remove_what_it_is_asked_about() -> None:
    rules = Rules({"preferences": {"a.*": "m:remove"}}, {"m:remove": lambda *_: UNSET})
    entries = [{"id": "x", "n": 0}, {"id": "y", "n": 0}]
    ours, theirs = side({"a": [{"id": "x", "n": 1}]}), side({"a": [{"id": "x", "n": 2}]}, 2)
    merged = merge({"a": entries}, ours, theirs, rules.of("preferences"))
    assert merged == Merged({"a": []})


def test_fields_keep_the_order_of_the_base_and_new_ones_follow_by_name() -> None:
    base = {"z": 0, "b": 0}
    ours, theirs = side({"y": 1, "b": 1, "z": 0}), side({"b": 0, "z": 2, "a": 1}, 2)
    assert list(merge(base, ours, theirs, PREFERENCES).value) == ["z", "b", "a", "y"]


def test_deeper_than_any_document_may_be_is_decided_as_a_whole() -> None:
    def deep(value: Any) -> Any:
        for _ in range(200):
            value = {"a": value}
        return value

    merged = merge(deep(0), side(deep(1)), side(deep(2), 2), PREFERENCES)
    assert merged.value == deep(2)
    assert [each.path for each in merged.conflicts] == [("a",) * json.MAX_DEPTH]

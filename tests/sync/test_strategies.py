"""What each strategy makes of two changes, and the laws it states."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from sessiond.sync.sides import Side, Verdict, canonical, same
from sessiond.sync.strategies import PLAIN, Law, Strategy, custom, decide, is_custom, named
from tests.sync.merging import fields, lines, lists, moments, numbers, side

BEFORE_NOON, NOON, AFTER_NOON = (
    "2026-01-13T13:30:00+02:00",
    "2026-01-13T12:00:00Z",
    "2026-01-13T12:00:00.5Z",
)
WITH_ARGUMENTS = ("append(3)", "lattice(low, middle, high)")
NAMES = (*PLAIN, *WITH_ARGUMENTS)

KINDS: dict[str, list[st.SearchStrategy[Any]]] = {
    "union": [lists],
    "append": [lists],
    "append(3)": [lists],
    "max": [numbers, moments],
    "min": [numbers, moments],
    "counter": [st.integers(-9, 9)],
    "text": [lines],
    "lattice": [st.sampled_from(["active", "archived", "deleted"])],
    "lattice(low, middle, high)": [st.sampled_from(["low", "middle", "high"])],
}
"""The values that the laws are about; any at all for strategies that are not here."""

COUNTEREXAMPLES: dict[tuple[str, Law], tuple[Any, Side, Side, Side]] = {
    ("ours", Law.COMMUTATIVE): (0, side(1, 1), side(2, 2), side(3, 3)),
    ("theirs", Law.COMMUTATIVE): (0, side(1, 1), side(2, 2), side(3, 3)),
    ("union", Law.ASSOCIATIVE): ([], side(["a"], 1), side(["b"], 3), side(["c"], 2)),
    ("append", Law.ASSOCIATIVE): ([], side(["a"], 1), side(["b"], 3), side(["c"], 2)),
    ("append", Law.IDEMPOTENT): ([], side(["a"], 1), side(["a"], 2), side(["a"], 3)),
    ("append(3)", Law.ASSOCIATIVE): ([], side(["a"], 1), side(["b"], 3), side(["c"], 2)),
    ("append(3)", Law.IDEMPOTENT): ([], side(["a"], 1), side(["a"], 2), side(["a"], 3)),
    ("counter", Law.IDEMPOTENT): (0, side(1, 1), side(1, 2), side(1, 3)),
    ("text", Law.ASSOCIATIVE): ("a", side("", 1), side("", 3), side("a\na", 2)),
}


def strategy(name: str) -> Strategy:
    found = named(name)
    assert found is not None
    return found


def combined(chosen: Strategy, base: Any, one: Side, other: Side) -> Side:
    """Merge two sides to one, which was written when the later change in it was."""
    value = decide(chosen, base, one, other).value
    changed = [each for each in (one, other) if not same(each.value, base)] or [one]
    return max(changed, key=lambda each: each.stamp).holding(value)


def holds(law: Law, chosen: Strategy, base: Any, sides: tuple[Side, Side, Side]) -> bool:
    def merged(one: Side, other: Side) -> Side:
        return combined(chosen, base, one, other)

    a, b, c = sides
    match law:
        case Law.COMMUTATIVE:
            results = merged(a, b), merged(b, a)
        case Law.ASSOCIATIVE:
            results = merged(merged(a, b), c), merged(a, merged(b, c))
        case Law.IDEMPOTENT:
            results = merged(a, b.holding(a.value)), a
    return same(results[0].value, results[1].value)


@st.composite
def concurrent_values(draw: st.DrawFn, name: str) -> tuple[Any, tuple[Side, Side, Side]]:
    kind = draw(st.sampled_from(KINDS.get(name, [fields])))
    base = draw(kind | st.just(UNSET))
    stamps = draw(st.permutations([1, 1, 2]))
    one, two, three = (
        side(draw(kind), at, origin) for at, origin in zip(stamps, "xyz", strict=True)
    )
    return base, (one, two, three)


@pytest.mark.parametrize("name", NAMES)
def test_the_laws_that_a_strategy_states_hold(name: str) -> None:
    chosen = strategy(name)

    @given(concurrent_values(name))
    def check(case: tuple[Any, tuple[Side, Side, Side]]) -> None:
        for law in chosen.laws:
            assert holds(law, chosen, *case), law

    check()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("law", Law)
def test_the_laws_that_a_strategy_does_not_state_do_not_hold(name: str, law: Law) -> None:
    if law in strategy(name).laws:
        assert (name, law) not in COUNTEREXAMPLES
    else:
        base, *sides = COUNTEREXAMPLES[name, law]
        assert not holds(law, strategy(name), base, (sides[0], sides[1], sides[2]))


@given(concurrent_values("union"))
def test_unions_are_associative_but_for_their_order(
    case: tuple[Any, tuple[Side, Side, Side]],
) -> None:
    base, (a, b, c) = case
    union = PLAIN["union"]
    left = combined(union, base, combined(union, base, a, b), c).value
    right = combined(union, base, a, combined(union, base, b, c)).value
    assert set(map(canonical, left)) == set(map(canonical, right))


def is_visible(name: str, base: Any, changed: Any, value: Any) -> bool:
    """Tell whether what one side did can be seen in the value."""
    match name:
        case "union" | "append":
            listed = base if isinstance(base, list) else []
            before, mine, after = (set(map(canonical, each)) for each in (listed, changed, value))
            return mine - before <= after and (name == "append" or not (before - mine) & after)
        case "text":
            text = base if isinstance(base, str) else ""
            new = Counter(changed.split("\n")) - Counter(text.split("\n"))
            return new <= Counter(value.split("\n"))
        case "max" | "min" | "lattice":
            return same(decide(PLAIN[name], UNSET, side(changed), side(value, 2)).value, value)
        case "counter":
            return True  # see test_counters_add_what_both_counted
        case _:
            return same(changed, value)


@pytest.mark.parametrize("name", PLAIN)
def test_a_change_can_be_seen_or_there_is_a_conflict(name: str) -> None:
    @given(concurrent_values(name) | concurrent_values("manual"))
    def check(case: tuple[Any, tuple[Side, Side, Side]]) -> None:
        base, (ours, theirs, _) = case
        verdict = decide(strategy(name), base, ours, theirs)
        canonical(verdict.value)
        if verdict.outcome in ("ours", "theirs"):
            assert same(verdict.value, {"ours": ours, "theirs": theirs}[verdict.outcome].value)
        if verdict.outcome is None:
            for each in (ours, theirs):
                assert (
                    same(each.value, base)
                    or same(each.value, verdict.value)
                    or is_visible(name, base, each.value, verdict.value)
                )

    check()


@given(st.integers(-9, 9) | st.none(), st.integers(-9, 9), st.integers(-9, 9))
def test_counters_add_what_both_counted(base: int | None, one: int, other: int) -> None:
    start = base or 0
    verdict = decide(PLAIN["counter"], base, side(one, 1), side(other, 2))
    expected = one if other == base else other if one == base else one + other - start
    assert verdict == Verdict(expected)


@pytest.mark.parametrize(
    ("name", "base", "ours", "theirs", "expected"),
    [
        ("counter", 0.1, 0.2, 0.3, Verdict(0.4)),
        ("counter", 0.0, 1e308, 1.5e308, Verdict(1.5e308, "theirs")),
        ("counter", 0, 2**70, 1, Verdict(1, "theirs")),
        ("counter", 1, True, 2, Verdict(2, "theirs")),
        ("counter", 1, UNSET, 2, Verdict(2, "theirs")),
        ("counter", 1, UNSET, UNSET, Verdict(UNSET)),
        ("union", ["a", "b"], ["b", "c"], ["a", "b", "d"], Verdict(["b", "c", "d"])),
        ("union", None, ["b"], ["a", "b"], Verdict(["b", "a"])),
        ("union", ["a"], ["a", "a", 1], ["a", True], Verdict(["a", 1, True])),
        ("union", [1, 2, 3], [3, 2, 1], [2, 1, 3], Verdict([2, 1, 3], "theirs")),
        ("union", [1, 2, 3], [3, 2, 1], [1, 2, 4], Verdict([2, 1, 4])),
        ("union", [1, 2, 3], [3, 2, 1], [2, 1, 3, 4], Verdict([2, 1, 3, 4], "theirs")),
        ("union", [1, 2, 3], [3, 2, 1, 5], [2, 1, 3, 4], Verdict([2, 1, 3, 5, 4], "merged")),
        ("union", ["a"], "text", ["a", "b"], Verdict(["a", "b"], "theirs")),
        ("union", [{"x": 1, "y": 2}], [{"y": 2, "x": 1}, 3], [4], Verdict([3, 4])),
        ("append", ["a"], ["a", "b"], ["a", "b"], Verdict(["a", "b", "b"])),
        ("append", ["a", "b"], ["b", "c"], ["a", "b", "d"], Verdict(["b", "c", "d"])),
        ("append", ["a", "b", "c"], ["a", "c", "x"], ["a", "b"], Verdict(["a", "x"])),
        ("append", ["a", "b"], [], ["a", "b", "c"], Verdict(["c"])),
        ("append(3)", list("aab"), list("abx"), list("aaby"), Verdict(list("bxy"))),
        ("append(5)", list("xyxyx"), list("yxyxz"), list("yxyxw"), Verdict(list("xyxzw"))),
        ("append", list("xyxyx"), list("yxyxz"), list("xyxyxw"), Verdict(list("yxyxzw"))),
        ("append(3)", [], list("ab"), list("cd"), Verdict(list("bcd"))),
        ("max", 1, 5, 3, Verdict(5)),
        ("max", 9, 5, 10, Verdict(10, "theirs")),
        ("max", 9, 5, 3, Verdict(5, "ours")),
        ("max", "a", 5, "b", Verdict("b", "theirs")),
        ("max", UNSET, NOON, AFTER_NOON, Verdict(AFTER_NOON)),
        ("max", UNSET, NOON, BEFORE_NOON, Verdict(NOON)),
        ("min", 9, 5, 3, Verdict(3)),
        ("min", 4, 5, 3, Verdict(3, "theirs")),
        ("lattice", "active", "deleted", "archived", Verdict("deleted")),
        ("lattice", "archived", "deleted", "active", Verdict("deleted", "ours")),
        ("lattice", "active", "archived", "gone", Verdict("gone", "theirs")),
        ("lattice(low, high)", "mid", "high", "low", Verdict("high")),
        ("text", "a\nb\nc", "A\nb\nc", "a\nb\nC", Verdict("A\nb\nC")),
        ("text", "a\nb\nc", "A\nb\nx", "a\nb\ny", Verdict("A\nb\ny", "merged")),
        ("text", "", "hello", "hello world", Verdict("hello world", "theirs")),
        ("text", None, "a", ["a"], Verdict(["a"], "theirs")),
        ("manual", 1, 2, 3, Verdict(3, "theirs")),
        ("ours", 1, 2, 3, Verdict(2, "ours")),
        ("theirs", 1, 3, 2, Verdict(2, "theirs")),
        ("last-writer-wins", UNSET, None, UNSET, Verdict(None)),
        ("last-writer-wins", 1, None, UNSET, Verdict(UNSET, "theirs")),
        ("last-writer-wins", 0, 1, 1.0, Verdict(1.0, "theirs")),
    ],
)  # fmt: skip
def test_what_a_strategy_decides(
    name: str, base: Any, ours: Any, theirs: Any, expected: Verdict
) -> None:
    verdict = decide(strategy(name), base, side(ours, 1), side(theirs, 2))
    assert canonical(verdict.value) == canonical(expected.value)
    assert verdict.outcome == expected.outcome


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        (Side("x", 2, 1, "a"), Side("y", 1, 9, "b"), "ours"),
        (Side("x", 1, 2, "a"), Side("y", 1, 1, "b"), "ours"),
        (Side("x", 1, 1, "b"), Side("y", 1, 1, "a"), "ours"),
        (Side("y", 1, 1, "a"), Side("x", 1, 1, "a"), "ours"),
        (Side("x", 1, 1, "a"), Side("y", 1, 1, "a"), "theirs"),
    ],
    ids=["time", "offset", "origin", "value", "value of theirs"],
)
def test_the_last_writer_is_told_by_time_then_offset_then_origin_then_value(
    ours: Side, theirs: Side, outcome: str
) -> None:
    verdict = decide(PLAIN["last-writer-wins"], "", ours, theirs)
    assert verdict.outcome == outcome


def test_one_change_that_comes_twice_is_counted_once() -> None:
    once = side(6, 7, "origin")
    assert decide(PLAIN["counter"], 5, once, once) == Verdict(6)
    assert decide(PLAIN["append"], [], side(["a"]), side(["a"])) == Verdict(["a"])


@pytest.mark.parametrize("name", ["append(1)", "append(1000000)", "lattice(a,b)", *NAMES])
def test_a_strategy_is_known_by_its_name(name: str) -> None:
    assert strategy(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "Union", "union ", "union()", "union(3)", "append()", "append(0)", "append(-1)"),
        *("append(1000001)", "append(9999999999)", "append(x)", "append(\u0661)", "lattice()"),
        *("lattice(a)", "lattice(a,a)", "lattice(a,,b)", "lattice(a,b", "append(1)x", "newest"),
    ],
)
def test_what_names_no_strategy_is_none(name: str) -> None:
    assert named(name) is None
    assert not is_custom(name)


@pytest.mark.parametrize("name", ["package:function", "a.b_c.d:f2", "_a:_b"])
def test_a_custom_strategy_is_a_module_and_a_function(name: str) -> None:
    assert is_custom(name)
    assert named(name) is None


@pytest.mark.parametrize(
    "name", ["a", "a:", ":f", "a.:f", ".a:f", "a:f.g", "a:f()", "a b:f", "a-b:f"]
)
def test_other_paths_name_no_custom_strategy(name: str) -> None:
    assert not is_custom(name)


def test_a_custom_strategy_decides_and_may_report_a_conflict() -> None:
    def add(base: Any, ours: Side, theirs: Side) -> Any:
        return base + ours.value + theirs.value

    def report(base: Any, ours: Side, theirs: Side) -> Any:
        return Verdict(ours.value, "ours")

    assert decide(custom("m:add", add), 1, side(2), side(3, 2)) == Verdict(6)
    assert decide(custom("m:report", report), 1, side(2), side(3, 2)) == Verdict(2, "ours")


@pytest.mark.parametrize("returned", [object(), float, "\ud800", UNSET])
def test_what_a_custom_strategy_returns_is_json_or_the_last_writer_wins(returned: Any) -> None:
    def returning(base: Any, ours: Side, theirs: Side) -> Any:
        return returned

    verdict = decide(custom("m:f", returning), 1, side(2), side(3, 2))
    assert verdict == (Verdict(UNSET) if returned is UNSET else Verdict(3, "theirs"))


def test_a_custom_strategy_that_fails_or_changes_what_it_was_given_does_no_harm() -> None:
    def failing(base: Any, ours: Side, theirs: Side) -> Any:
        base.append(1)
        ours.value.clear()
        raise KeyError

    base, ours, theirs = [0], side([0, 1]), side([2], 2)
    verdict = decide(custom("m:f", failing), base, ours, theirs)
    assert verdict == Verdict([2], "theirs")
    assert (base, ours.value) == ([0], [0, 1])

"""Which sessions go: examples, and what holds whatever the sessions and limits are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from sessiond.policy.retention import (
    DAY_MS,
    HOUR_MS,
    QUIET_MS,
    Limits,
    Plan,
    SessionFacts,
    plan,
    protection,
)

NOW = 1_800_000_000_000
ROOMY = Limits(max_sessions=1000, max_age_days=1000)
USES = ("is_present", "has_turn", "has_waiting_writes", "has_open_conflicts")


def facts(name: str, hours: float, **more: Any) -> SessionFacts:
    """A session that was last used some hours ago."""
    known: dict[str, Any] = {"workspace": "w", "status": "active"} | more
    return SessionFacts(session_id=name, last_activity_ms=NOW - round(hours * HOUR_MS), **known)


def gone(found: Plan) -> list[tuple[str, str]]:
    return [(decision.session_id, decision.action) for decision in found.decisions]


def test_a_session_that_was_not_used_for_the_days_is_archived() -> None:
    found = plan([facts("old", 30 * 24), facts("young", 30 * 24 - 1)], Limits(50, 30), NOW)
    assert gone(found) == [("old", "archive")]
    assert found.decisions[0].reason == "not used for 30 days (retention.max_age_days: 30)"
    assert found.spared == []


def test_beyond_the_number_the_longest_unused_go_and_the_oldest_first() -> None:
    sessions = [facts(f"s{hours}", hours) for hours in (5, 2, 4, 3)]
    found = plan(sessions, Limits(2, 30), NOW)
    assert gone(found) == [("s5", "archive"), ("s4", "archive")]
    assert "(retention.max_sessions: 2)" in found.decisions[0].reason


def test_what_goes_for_its_age_makes_room_for_the_others() -> None:
    sessions = [facts("old", 31 * 24), facts("a", 3), facts("b", 2)]
    assert gone(plan(sessions, Limits(2, 30), NOW)) == [("old", "archive")]


def test_the_number_is_that_of_one_workspace_and_archived_ones_do_not_count() -> None:
    sessions = [
        *(facts(f"a{n}", n + 2, workspace="a") for n in range(2)),
        *(facts(f"b{n}", n + 2, workspace="b") for n in range(2)),
        *(facts(f"c{n}", n + 2, status="archived") for n in range(9)),
    ]
    assert plan(sessions, Limits(2, 30), NOW) == Plan([], [])


@pytest.mark.parametrize("use", USES)
def test_what_is_in_use_stays_and_another_goes_instead(use: str) -> None:
    sessions = [facts("used", 9, **{use: True}), facts("next", 8), facts("last", 7)]
    found = plan(sessions, Limits(2, 30), NOW)
    assert gone(found) == [("next", "archive")]
    (spared,) = found.spared
    assert spared.session_id == "used"
    assert ", but " in spared.reason


def test_what_was_used_within_the_hour_stays_however_many_there_are() -> None:
    sessions = [facts(f"s{n}", 0.99) for n in range(5)]
    found = plan(sessions, Limits(1, 30), NOW)
    assert found.decisions == []
    assert {spared.session_id for spared in found.spared} == {f"s{n}" for n in range(5)}


def test_a_clock_that_was_ahead_makes_a_session_one_of_now() -> None:
    assert plan([facts("future", -100_000)], Limits(1, 1), NOW) == Plan([], [])
    assert protection(facts("future", -100_000), NOW)


def test_archived_sessions_are_kept_for_ever_unless_days_are_set() -> None:
    sessions = [facts("s", 10_000 * 24, status="archived")]
    assert plan(sessions, ROOMY, NOW) == Plan([], [])
    found = plan(sessions, structs.replace(ROOMY, delete_archived_days=90), NOW)
    assert gone(found) == [("s", "delete")]
    assert "(retention.delete_archived_days: 90)" in found.decisions[0].reason


def test_what_an_opencode_has_is_archived_but_never_deleted() -> None:
    sessions = [
        facts("live", 9000, is_opencodes=True),
        facts("archived", 9000, is_opencodes=True, status="archived"),
    ]
    found = plan(sessions, Limits(50, 30, delete_archived_days=1), NOW)
    assert gone(found) == [("live", "archive")]
    assert [spared.session_id for spared in found.spared] == ["archived"]
    assert "opencode" in found.spared[0].reason


LIMITS = st.builds(
    Limits,
    max_sessions=st.integers(1, 6),
    max_age_days=st.integers(1, 60),
    delete_archived_days=st.integers(0, 60),
)
FACTS = st.builds(
    SessionFacts,
    session_id=st.text("abcdefgh", min_size=1, max_size=6),
    workspace=st.sampled_from(["v", "w"]),
    status=st.sampled_from(["active", "archived"]),
    last_activity_ms=st.integers(-2, 100 * 24).map(lambda hours: NOW - hours * HOUR_MS),
    is_opencodes=st.booleans(),
    **dict.fromkeys(USES, st.sampled_from([False] * 5 + [True])),
)
SESSIONS = st.lists(FACTS, max_size=40, unique_by=lambda found: found.session_id)


@given(SESSIONS, LIMITS)
def test_nothing_in_use_is_ever_touched(sessions: list[SessionFacts], limits: Limits) -> None:
    known = {found.session_id: found for found in sessions}
    for decision in plan(sessions, limits, NOW).decisions:
        found = known[decision.session_id]
        assert NOW - found.last_activity_ms >= QUIET_MS
        assert not any(getattr(found, use) for use in USES)
        assert decision.reason


@given(SESSIONS, LIMITS)
def test_only_archived_ones_that_no_opencode_has_are_deleted_and_only_if_that_is_wanted(
    sessions: list[SessionFacts], limits: Limits
) -> None:
    known = {found.session_id: found for found in sessions}
    for decision in plan(sessions, limits, NOW).decisions:
        found = known[decision.session_id]
        if decision.action == "archive":
            assert found.status == "active"
            continue
        assert found.status == "archived"
        assert not found.is_opencodes
        assert limits.delete_archived_days
        assert NOW - found.last_activity_ms >= limits.delete_archived_days * DAY_MS


@given(SESSIONS, LIMITS)
def test_after_it_every_session_over_the_limits_was_spared_for_a_reason(
    sessions: list[SessionFacts], limits: Limits
) -> None:
    found = plan(sessions, limits, NOW)
    gone_ids = {decision.session_id for decision in found.decisions}
    spared_ids = {spared.session_id for spared in found.spared}
    assert not gone_ids & spared_ids
    for workspace in ("v", "w"):
        left = [
            each
            for each in sessions
            if (each.workspace, each.status) == (workspace, "active")
            and each.session_id not in gone_ids
        ]
        assert all(
            each.session_id in spared_ids
            for each in left
            if NOW - each.last_activity_ms >= limits.max_age_days * DAY_MS
        )
        if len(left) > limits.max_sessions:
            assert all(protection(each, NOW) for each in left)


@given(SESSIONS, LIMITS)
def test_nobody_goes_for_the_number_while_a_longer_unused_one_stays_without_reason(
    sessions: list[SessionFacts], limits: Limits
) -> None:
    known = {found.session_id: found for found in sessions}
    decided = plan(sessions, limits, NOW).decisions
    gone_ids = {decision.session_id for decision in decided}
    for decision in decided:
        going = known[decision.session_id]
        for other in sessions:
            is_older = other.last_activity_ms < going.last_activity_ms
            is_alike = (other.workspace, other.status) == (going.workspace, going.status)
            if is_older and is_alike and other.session_id not in gone_ids:
                assert protection(other, NOW) or other.is_opencodes


@given(SESSIONS, LIMITS, st.randoms(use_true_random=False))
def test_the_order_in_which_sessions_are_found_does_not_matter(
    sessions: list[SessionFacts], limits: Limits, random: Any
) -> None:
    shuffled = list(sessions)
    random.shuffle(shuffled)
    assert plan(shuffled, limits, NOW) == plan(sessions, limits, NOW)

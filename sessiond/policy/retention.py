"""Which sessions are archived and which deleted: decided from what is known of them, without I/O.

A session is inactive, then archived, then deleted. What is in use is never touched, whatever the
limits say; a session that an opencode has is archived at most, because a deletion would follow
into that opencode's database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from msgspec import Struct

from sessiond.model import Status

Action = Literal["archive", "delete"]

HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS
QUIET_MS = HOUR_MS
"""What was written or read within this time is in use."""


class SessionFacts(Struct, frozen=True, kw_only=True):
    """What is known of a session.

    Attributes:
        session_id: whose facts these are.
        workspace: where it belongs.
        status: active or archived.
        last_activity_ms: when it was last written or read, in ms since 1970.
        is_present: whether somebody is at it.
        has_turn: whether somebody runs a turn in it.
        has_waiting_writes: whether this machine's journal has writes that it does not have yet.
        has_open_conflicts: whether somebody has yet to decide about one.
        is_opencodes: whether an opencode has it, too.
    """

    session_id: str
    workspace: str
    status: Status
    last_activity_ms: int
    is_present: bool = False
    has_turn: bool = False
    has_waiting_writes: bool = False
    has_open_conflicts: bool = False
    is_opencodes: bool = False


class Limits(Struct, frozen=True):
    """How much is kept.

    Attributes:
        max_sessions: sessions of one workspace that are not archived.
        max_age_days: days since the last activity after which a session is archived.
        delete_archived_days: days since the last activity, the archiving included, after which an
            archived session is deleted; 0 for never.
    """

    max_sessions: int
    max_age_days: int
    delete_archived_days: int = 0


class Decision(Struct, frozen=True):
    """What is to become of a session, and why, in words."""

    session_id: str
    action: Action
    reason: str


class Spared(Struct, frozen=True):
    """A session over the limits that stays, and why, in words."""

    session_id: str
    reason: str


class Plan(Struct, frozen=True):
    """All decisions, the longest inactive session of a workspace first, and what is spared."""

    decisions: list[Decision]
    spared: list[Spared]


def plan(sessions: Iterable[SessionFacts], limits: Limits, now_ms: int) -> Plan:
    """Decide about all sessions.

    Args:
        sessions: what is known of them, in any order.
        limits: how much is kept.
        now_ms: the time, in ms since 1970.
    """
    workspaces: dict[str, list[SessionFacts]] = {}
    for facts in sessions:
        workspaces.setdefault(facts.workspace, []).append(facts)
    verdicts = [
        verdict
        for _, members in sorted(workspaces.items())
        for verdict in _of_workspace(members, limits, now_ms)
    ]
    return Plan(
        [verdict for verdict in verdicts if isinstance(verdict, Decision)],
        [verdict for verdict in verdicts if isinstance(verdict, Spared)],
    )


def protection(facts: SessionFacts, now_ms: int) -> str:
    """Return why a session must not be touched now, in words; empty where it may be."""
    if now_ms - facts.last_activity_ms < QUIET_MS:
        return "it was used within the last hour"
    if facts.is_present:
        return "somebody is at it"
    if facts.has_turn:
        return "somebody runs a turn in it"
    if facts.has_waiting_writes:
        return "writes to it wait on this machine"
    if facts.has_open_conflicts:
        return "it has conflicts that nobody decided yet"
    return ""


def _of_workspace(
    members: list[SessionFacts], limits: Limits, now_ms: int
) -> Iterator[Decision | Spared]:
    members = sorted(members, key=lambda facts: (facts.last_activity_ms, facts.session_id))
    yield from _to_archive([facts for facts in members if facts.status == "active"], limits, now_ms)
    if limits.delete_archived_days:
        archived = [facts for facts in members if facts.status == "archived"]
        yield from _to_delete(archived, limits.delete_archived_days, now_ms)


def _to_archive(
    active: list[SessionFacts], limits: Limits, now_ms: int
) -> Iterator[Decision | Spared]:
    """Decide about the sessions of a workspace that are not archived, the oldest first."""
    left = len(active)
    for facts in active:
        days = (now_ms - facts.last_activity_ms) // DAY_MS
        if days >= limits.max_age_days:
            why = f"not used for {_days(days)} (retention.max_age_days: {limits.max_age_days})"
        elif left > limits.max_sessions:
            why = (
                f"the longest unused of {len(active)} in its workspace "
                f"(retention.max_sessions: {limits.max_sessions})"
            )
        else:
            return
        if obstacle := protection(facts, now_ms):
            yield Spared(facts.session_id, f"{why}, but {obstacle}")
        else:
            left -= 1
            yield Decision(facts.session_id, "archive", why)


def _to_delete(
    archived: list[SessionFacts], most_days: int, now_ms: int
) -> Iterator[Decision | Spared]:
    for facts in archived:
        days = (now_ms - facts.last_activity_ms) // DAY_MS
        if days < most_days:
            return
        limit = f"retention.delete_archived_days: {most_days}"
        why = f"archived, and not used for {_days(days)} ({limit})"
        obstacle = protection(facts, now_ms)
        if facts.is_opencodes:
            obstacle = "an opencode has it, and would lose it too"
        if obstacle:
            yield Spared(facts.session_id, f"{why}, but {obstacle}")
        else:
            yield Decision(facts.session_id, "delete", why)


def _days(days: int) -> str:
    return "1 day" if days == 1 else f"{days} days"

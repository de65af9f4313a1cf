"""Cleaning up: sessions over the limits of retention are archived, and deleted if that is wanted.

What is decided stands in `policy.retention`. Here it is found out what sessions there are and how
they are used, and what was decided is done, one session after the other. A deletion is refused by
its own script when the session was used meanwhile or this process is the janitor no more. It is not
journaled: nobody was promised anything, and what Redis loses of it is decided anew the next time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec
import structlog
from msgspec import Struct

from sessiond.errors import (
    CleanupHeld,
    NotFound,
    SessionDeleted,
    SessiondError,
    StoreDamaged,
    StoreUnavailable,
    VersionMismatch,
)
from sessiond.policy.retention import Decision, Limits, Plan, SessionFacts, Spared, plan
from sessiond.service.clock import milliseconds, timestamp
from sessiond.service.content.conflicts import Conflicts
from sessiond.service.retention.janitor import Term, term_of
from sessiond.service.status import CleanedSession, CleanupCounts, CleanupReport, CleanupStatus
from sessiond.service.writing import Request, Surroundings, commit
from sessiond.store.draft import Draft, FieldChange
from sessiond.store.janitor import JanitorStore
from sessiond.store.outcome import InUse, JanitorLate, OfOpencode
from sessiond.store.use import Use, UseStore

_LOOKED_AT_ONCE = 16
_CLIENT = "janitor"
_NO_FAILURES = (VersionMismatch, InUse, OfOpencode, NotFound, SessionDeleted)
_COUNTS = msgspec.json.Decoder(CleanupCounts)

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Archiver(Protocol):
    """What archives a session: it leaves Redis, and comes back when somebody needs it."""

    async def archive(self, session_id: str, request: Request) -> object:
        """Archive a session that nobody uses.

        Raises:
            SessiondError: it cannot be, or must not be: somebody uses it.
        """


class Stores(Struct, frozen=True):
    """What a clean-up stands on.

    Attributes:
        around: the logs, and the time.
        conflicts: tells what nobody decided yet.
        use: tells how sessions are used.
        janitor: who may clean up.
        has_waiting: whether writes to a session wait on this machine.
        archiver: archives sessions.
    """

    around: Surroundings
    conflicts: Conflicts
    use: UseStore
    janitor: JanitorStore
    has_waiting: Callable[[str], bool]
    archiver: Archiver


class _Survey(Struct, frozen=True):
    """What was found: how each session is used, what is decided, and what cannot be judged.

    `missing` ones are in the index, and nowhere else.
    """

    uses: dict[str, Use]
    plan: Plan
    damaged: list[str]
    missing: list[str]


class Cleanup:
    """Cleans up the sessions of one Redis.

    Args:
        stores: what it stands on.
        limits: how much is kept.
        interval_ms: how often this is to be done.
        instance: the name under which others see who does it.
    """

    def __init__(self, stores: Stores, limits: Limits, *, interval_ms: int, instance: str) -> None:
        self._stores = stores
        self._limits = limits
        self._interval_ms = interval_ms
        self._instance = instance

    async def preview(self) -> CleanupReport:
        """Return what a clean-up would do now; nothing is changed.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        began = time.monotonic()
        survey = await self._survey()
        found = [_cleaned(decision, "planned") for decision in survey.plan.decisions]
        return _report(survey, found, began, dry_run=True)

    async def run(self, *, only_if_due: bool = False) -> CleanupReport:
        """Clean up now, as the janitor.

        Raises:
            CleanupHeld: another daemon does so, or took over; with `only_if_due` also: it is too
                early.
            StoreUnavailable: Redis does not answer; the rest is done the next time.
        """
        began = time.monotonic()
        at_least_ms = self._interval_ms if only_if_due else 0
        try:
            async with term_of(self._stores.janitor, self._instance, at_least_ms) as term:
                survey = await self._survey()
                found = [
                    await self._carry_out(term, decision, survey.uses[decision.session_id])
                    for decision in survey.plan.decisions
                ]
                forgotten = [await self._stores.use.forget_deleted(name) for name in survey.missing]
                report = _report(survey, found, began, dry_run=False)
                counts = _counts(report)
                await term.finish(msgspec.json.encode(counts))
        except JanitorLate as error:
            _log.warning("retention.interrupted", reason=error.detail)
            raise CleanupHeld(
                "another daemon took over, because this one was stopped for a while",
                hint="`sessiond status` shows when it is done",
            ) from error
        _log.info(
            "retention.cleaned_up",
            sessions=report.sessions,
            archived=counts.archived,
            deleted=counts.deleted,
            left=counts.left,
            damaged=len(report.damaged),
            forgotten=sum(forgotten),
            duration_ms=round(report.seconds * 1000),
        )
        return report

    async def status(self) -> CleanupStatus:
        """Return when this was done last, and when it is due again.

        Raises:
            StoreUnavailable, StoreDamaged.
        """
        state = await self._stores.janitor.look()
        if state.finished_ms is None:
            return CleanupStatus(running=state.instance, finished_at=None, next_at=None, last=None)
        try:
            last = _COUNTS.decode(state.report)
        except msgspec.MsgspecError as error:
            raise StoreDamaged("the report of the last clean-up is damaged") from error
        return CleanupStatus(
            running=state.instance,
            finished_at=timestamp(state.finished_ms),
            next_at=timestamp(state.finished_ms + self._interval_ms),
            last=last,
        )

    async def due_in_ms(self) -> int:
        """Return how long it is until this is due; 0 for now.

        Raises:
            StoreUnavailable, StoreDamaged.
        """
        state = await self._stores.janitor.look()
        if state.finished_ms is None or state.finished_ms > state.now_ms:
            return 0
        return max(0, state.finished_ms + self._interval_ms - state.now_ms)

    async def _survey(self) -> _Survey:
        """Look at all sessions, and decide."""
        ids = await self._stores.use.sessions()
        contested = await self._stores.around.conflicts.sessions()
        uses: dict[str, Use] = {}
        known: list[SessionFacts] = []
        damaged: list[str] = []
        missing: list[str] = []
        for first in range(0, len(ids), _LOOKED_AT_ONCE):
            some = ids[first : first + _LOOKED_AT_ONCE]
            looks = (self._look_at(name, is_contested=name in contested) for name in some)
            for session_id, found in zip(some, await asyncio.gather(*looks), strict=True):
                if found is None:
                    missing.append(session_id)
                elif isinstance(found, StoreDamaged):
                    damaged.append(session_id)
                else:
                    uses[session_id], facts = found
                    known.append(facts)
        decided = plan(known, self._limits, self._stores.around.clock())
        return _Survey(uses, decided, damaged, missing)

    async def _look_at(
        self, session_id: str, *, is_contested: bool
    ) -> tuple[Use, SessionFacts] | StoreDamaged | None:
        """Return how a session is used, and what that means; None where there is none."""
        try:
            use = await self._stores.use.of(session_id)
            if use is None:
                return None
            is_open = is_contested and await self._stores.conflicts.is_open(session_id)
            return use, self._facts(session_id, use, has_open_conflicts=is_open)
        except StoreDamaged as error:
            return error

    def _facts(self, session_id: str, use: Use, *, has_open_conflicts: bool) -> SessionFacts:
        try:
            last_activity_ms = _last_used_ms(use)
        except ValueError as error:
            raise StoreDamaged(f"session {session_id!r} does not say when it was used") from error
        if use.status not in ("active", "archived"):
            raise StoreDamaged(f"the status of session {session_id!r} is none")
        return SessionFacts(
            session_id=session_id,
            workspace=use.workspace,
            status="active" if use.status == "active" else "archived",
            last_activity_ms=last_activity_ms,
            is_present=use.is_present,
            has_turn=use.has_turn,
            has_waiting_writes=self._stores.has_waiting(session_id),
            has_open_conflicts=has_open_conflicts,
            is_opencodes=use.is_opencodes,
        )

    async def _carry_out(self, term: Term, decision: Decision, seen: Use) -> CleanedSession:
        """Do what was decided about a session, if nobody used it since it was seen.

        Raises:
            JanitorLate: this process is not the janitor any more.
            StoreUnavailable: Redis does not answer.
        """
        try:
            done = await self._attempt(term, decision, seen)
        except (JanitorLate, StoreUnavailable):
            raise
        except SessiondError as error:
            is_failure = not isinstance(error, _NO_FAILURES) and not error.temporary
            done = _cleaned(decision, "failed" if is_failure else "left", error.detail)
        _log_step(done)
        return done

    async def _attempt(self, term: Term, decision: Decision, seen: Use) -> CleanedSession:
        session_id = decision.session_id
        is_as_seen = await self._stores.use.of(session_id) == seen
        until_ms = term.fence()
        if not is_as_seen or self._stores.has_waiting(session_id):
            return _cleaned(decision, "left", "it was used meanwhile")
        if decision.action == "delete":
            await self._delete(session_id, seen, until_ms)
            return _cleaned(decision, "deleted")
        request = Request(expected=str(seen.position), client=_CLIENT)
        await self._stores.archiver.archive(session_id, request)
        return _cleaned(decision, "archived")

    async def _delete(self, session_id: str, seen: Use, until_ms: int) -> None:
        """Delete a session that is as it was seen; see lua/delete.lua."""
        around = self._stores.around
        idle = FieldChange("idle", str(until_ms), str(_last_used_ms(seen)))
        draft = Draft(
            "session.delete",
            session_id,
            timestamp(around.clock()),
            b"{}",
            expected=str(seen.position),
            client=_CLIENT,
            changes=(idle,),
        )
        await commit(around, session_id, [draft])


def _last_used_ms(use: Use) -> int:
    """Return when a session was last written, read or archived, in ms since 1970.

    Raises:
        ValueError: what it says of that is no time.
    """
    archived_ms = milliseconds(use.archived_at) if use.archived_at else 0
    return max(milliseconds(use.last_activity), archived_ms, use.read_ms or 0)


def _log_step(done: CleanedSession) -> None:
    tell = _log.warning if done.outcome == "failed" else _log.info
    why = {"error": done.detail} if done.detail else {}
    tell(
        f"retention.{done.outcome}",
        session_id=done.session_id,
        op=done.action,
        reason=done.reason,
        **why,
    )


def _cleaned(
    decision: Decision,
    outcome: Literal["planned", "archived", "deleted", "left", "failed"],
    detail: str = "",
) -> CleanedSession:
    return CleanedSession(
        session_id=decision.session_id,
        action=decision.action,
        reason=decision.reason,
        outcome=outcome,
        detail=detail,
    )


def _spared(spared: Spared) -> CleanedSession:
    return CleanedSession(
        session_id=spared.session_id, action="none", reason=spared.reason, outcome="spared"
    )


def _report(
    survey: _Survey, found: list[CleanedSession], began: float, *, dry_run: bool
) -> CleanupReport:
    return CleanupReport(
        dry_run=dry_run,
        sessions=len(survey.uses),
        found=[*found, *map(_spared, survey.plan.spared)],
        damaged=survey.damaged,
        seconds=round(time.monotonic() - began, 3),
    )


def _counts(report: CleanupReport) -> CleanupCounts:
    outcomes = [found.outcome for found in report.found]
    archived, deleted = outcomes.count("archived"), outcomes.count("deleted")
    left = len(outcomes) - archived - deleted
    return CleanupCounts(archived=archived, deleted=deleted, left=left)

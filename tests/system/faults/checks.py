"""What must hold after every run, whatever the faults were: I1 to I9 of the plan. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from tests.system.faults.history import FinalSession, History, Told

LONGEST_RECOVERY_SECONDS = 8.0

Check = Callable[[History], Iterator[str]]


def nothing_acknowledged_is_lost(history: History) -> Iterator[str]:
    """I1, I8: what was acknowledged is in the result, or in a conflict."""
    removed = {(told.session_id, told.name) for told in history.told if told.kind == "remove"}
    latest: dict[tuple[str, str, str], Told] = {}
    for told in history.told:
        latest[told.session_id, told.kind, told.name] = told
    for told in latest.values():
        final = history.final.get(told.session_id)
        if (
            final is None
            or final.missing
            or (told.kind == "delete" and not final.deleted)
            or (not final.deleted and not _is_there(told, final, removed))
        ):
            yield f"lost: {told}"


def nothing_is_applied_twice(history: History) -> Iterator[str]:
    """I2: no message is twice in a conversation, no append twice in a log."""
    for session_id, final in history.final.items():
        for kind, names in (
            ("message", [message["id"] for message in _messages(final)]),
            ("append", [seen.name for seen in final.log if seen.op == "message.append"]),
        ):
            for name in {name for name in names if names.count(name) > 1}:
                yield f"twice: {kind} {name} in {session_id}"


def observers_agree(history: History) -> Iterator[str]:
    """I3: a position never changes its operation, whoever sees it."""
    for session_id, observers in history.observed.items():
        known: dict[tuple[int, str], tuple[str, str]] = {}
        final = history.final.get(session_id, FinalSession())
        for seen in [*(one for observer in observers for one in observer), *final.log]:
            place, operation = (seen.offset, seen.epoch), (seen.op, seen.name)
            if known.setdefault(place, operation) != operation:
                yield f"{session_id} {place}: {known[place]} and {operation}"


def observers_end_with_the_log(history: History) -> Iterator[str]:
    """I3: what an observer holds at the end is what the log has."""
    for session_id, observers in history.observed.items():
        final = history.final.get(session_id)
        if final is None or final.deleted:
            continue
        log = [(seen.offset, seen.name) for seen in final.log]
        for number, observer in enumerate(observers):
            life = max((seen.life for seen in observer), default=0)
            held = [(seen.offset, seen.name) for seen in observer if seen.life == life]
            if held != log:
                yield f"observer {number} of {session_id} holds {len(held)}, the log {len(log)}"


def own_order_is_kept(history: History) -> Iterator[str]:
    """I4: what a client was told of one after the other stands one behind the other."""
    for session_id, final in history.final.items():
        offsets = {seen.name: seen.offset for seen in final.log if seen.op == "message.append"}
        own: dict[str, list[Told]] = defaultdict(list)
        for told in history.told:
            if told.kind == "append" and told.session_id == session_id and told.name in offsets:
                own[told.client].append(told)
        for tolds in own.values():
            for before, after in pairwise(tolds):
                if offsets[before.name] > offsets[after.name]:
                    yield f"order: {before.name} stands behind {after.name} in {session_id}"


def offsets_are_contiguous(history: History) -> Iterator[str]:
    """I5: a log has every offset from 1 on, and so has every view of it."""
    for session_id, final in history.final.items():
        offsets = [seen.offset for seen in final.log]
        if not final.deleted and offsets != list(range(1, len(offsets) + 1)):
            yield f"offsets of {session_id}: {offsets[:5]} … {offsets[-5:]}"
    for session_id, observers in history.observed.items():
        for observer in observers:
            for before, after in pairwise(observer):
                same_life = before.life == after.life
                if same_life and after.offset != before.offset + 1 and after.op != "session.delete":
                    yield f"an observer of {session_id} saw {after.offset} after {before.offset}"


def nothing_appears_that_nobody_wrote(history: History) -> Iterator[str]:
    """I6: every message was written by somebody."""
    for session_id, final in history.final.items():
        for message in _messages(final):
            if (session_id, message["id"]) not in history.attempted:
                yield f"from nowhere: {message['id']} in {session_id}"


def all_daemons_agree(history: History) -> Iterator[str]:
    """I7: every daemon loads the same session."""
    for session_id, final in history.final.items():
        if final.missing != (not final.loads and not final.deleted) or any(
            load != final.loads[0] for load in final.loads
        ):
            yield f"daemons differ about {session_id}"


def all_clients_came_through(history: History) -> Iterator[str]:
    """I9: no client was left without an answer, and all came to rest."""
    yield from history.failures


def recovery_is_bounded(history: History) -> Iterator[str]:
    """I9."""
    if history.recovery_seconds > LONGEST_RECOVERY_SECONDS:
        yield f"recovery took {history.recovery_seconds:.1f} s"


CHECKS: tuple[Check, ...] = (
    nothing_acknowledged_is_lost,
    nothing_is_applied_twice,
    observers_agree,
    observers_end_with_the_log,
    own_order_is_kept,
    offsets_are_contiguous,
    nothing_appears_that_nobody_wrote,
    all_daemons_agree,
    all_clients_came_through,
    recovery_is_bounded,
)


def violations(history: History) -> list[str]:
    """Return everything that does not hold."""
    return [found for check in CHECKS for found in check(history)]


def _messages(final: FinalSession) -> list[Any]:
    return list(final.loads[0]["conversation"]["messages"]) if final.loads else []


def _is_there(told: Told, final: FinalSession, removed: set[tuple[str, str]]) -> bool:
    messages = {message["id"]: message for message in _messages(final)}
    context = final.loads[0]["context"] if final.loads else {}
    is_removed = (told.session_id, told.name) in removed
    match told.kind:
        case "append":
            found = told.name in messages or is_removed
        case "edit":
            found = is_removed or told.value in str(messages.get(told.name))
        case "part":
            found = is_removed or told.value in str(messages.get(told.name))
        case "remove":
            found = told.name not in messages
        case "count":
            found = context["state"].get(told.name, 0) >= told.value
        case "file":
            found = told.name in context["active_files"]
        case _:
            found = True
    return found or f'"{told.value}"' in final.conflicts or f'"{told.name}"' in final.conflicts

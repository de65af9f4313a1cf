"""What must hold after every run, whatever the faults were: I1 to I9 of the plan. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from sessiond.sync.documents import value_at
from tests.system.faults.history import FinalSession, History, Told

LONGEST_RECOVERY_SECONDS = 8.0

Check = Callable[[History], Iterator[str]]


def nothing_acknowledged_is_lost(history: History) -> Iterator[str]:
    """I1, I8: what was acknowledged is in the result, or in a conflict."""
    removed = {(told.session_id, told.name) for told in history.told if told.kind == "remove"}
    removed |= {(place[0], place[2]) for place in history.unanswered if place[1] == "remove"}
    latest: dict[tuple[str, str, str], Told] = {}
    for told in history.told:
        latest[told.session_id, told.kind, told.name] = told
    for told in latest.values():
        final = history.final.get(told.session_id)
        if (
            final is None
            or final.missing
            or (told.kind == "delete" and not final.deleted)
            or not (final.deleted or _is_there(told, history, removed) or _is_kept(told, final))
        ):
            yield f"lost: {told}"


def nothing_is_applied_twice(history: History) -> Iterator[str]:
    """I2: no message is twice in a conversation, no write twice in a log, no file in a list."""
    for session_id, final in history.final.items():
        for kind, names in (
            ("message", [message["id"] for message in _messages(final)]),
            ("append", [seen.name for seen in final.log if seen.op == "message.append"]),
            ("file", _files(final)),
            ("write", [_written(each) for each in final.operations if _is_asked_for(each)]),
        ):
            for name in {name for name in names if names.count(name) > 1}:
                yield f"twice: {kind} {name} in {session_id}"


def conflicts_are_kept(history: History) -> Iterator[str]:
    """I8: both sides of every conflict that a log tells of are there."""
    for session_id, final in history.final.items():
        kept = {conflict["number"] for conflict in final.conflicts}
        for seen in final.log:
            if seen.op == "conflict.record" and str(seen.offset) not in kept:
                yield f"conflict {seen.offset} of {session_id} is not kept"


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
    """I6: every message and every file was written by somebody."""
    for session_id, final in history.final.items():
        for name in [*(message["id"] for message in _messages(final)), *_files(final)]:
            if (session_id, name) not in history.attempted:
                yield f"from nowhere: {name} in {session_id}"


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
    conflicts_are_kept,
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


def _files(final: FinalSession) -> list[str]:
    return list(final.loads[0]["context"]["active_files"]) if final.loads else []


def _is_asked_for(operation: Any) -> bool:
    """Tell whether an operation is what a client asked for, and no trace of how it was merged."""
    return not operation["op"].startswith("conflict.")


def _written(operation: Any) -> str:
    """Return what two operations have in common only if they are one write."""
    client = operation["origin"].partition("@")[0]
    what = [operation[name] for name in ("op", "id", "at", "body")]
    return repr([client, *what])


def _is_there(told: Told, history: History, removed: set[tuple[str, str]]) -> bool:
    """Tell whether what was acknowledged is in the session, or gave way to its own client."""
    final, place = history.final[told.session_id], (told.session_id, told.name)
    message = next((one for one in _messages(final) if one["id"] == told.name), None)
    match told.kind:
        case "append":
            found = message is not None or place in removed
        case "edit":
            later = history.unanswered.get((told.session_id, "edit", told.name), told.value)
            found = place in removed or any(text in str(message) for text in (told.value, later))
        case "part":
            found = place in removed or told.value in str(message)
        case "remove":
            found = message is None
        case "count":
            found = final.loads[0]["context"]["state"].get(told.name, 0) >= told.value
        case "file":
            found = told.name in _files(final)
        case _:
            found = True
    return found


def _is_kept(told: Told, final: FinalSession) -> bool:
    """Tell whether a conflict holds the very thing that was acknowledged."""
    return any(_holds(conflict, told) for conflict in final.conflicts)


def _holds(conflict: Any, told: Told) -> bool:
    values = [conflict[side].get("value") for side in ("ours", "theirs")]
    if told.kind == "remove":
        return (conflict["document"], conflict["id"]) == ("message", told.name)
    if told.kind == "count":
        path, place = conflict["path"], ["state", told.name]
        counts = [value_at(value, place[len(path) :]) for value in values]
        is_there = conflict["document"] == "context" and path == place[: len(path)]
        return is_there and told.value in counts
    wanted = told.name if told.kind in ("append", "file") else told.value
    return repr(wanted) in str(values)  # alone, or as a field of a message or part

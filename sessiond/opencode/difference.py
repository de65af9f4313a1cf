"""What an opencode database lacks of a session's log, and the log of it: by state. Pure.

A late joiner, one that was off for a day, and one whose log was rolled back all need the same: the
current state of each record that differs, not the log of how it came to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct, field

from sessiond.opencode.mapping import (
    Change,
    Machine,
    change_of_operation,
    event_of_change,
    replayed_id,
    shared_part,
    title_given,
)
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.opencode.records import SessionState

_STATES = {"pending": 1, "running": 2, "completed": 3, "error": 3}
_IDS = ("id", "sessionID", "messageID")
ABOUT_MS = 2000
"""Times that differ by less are the same: clocks are measured now and then, and never alike."""


class Written(Struct, frozen=True):
    """A record as the log last had it, and where."""

    change: Change
    epoch: str
    offset: int


class LoggedState(Struct):
    """The records of a session as its log leaves them, each with its last writing.

    `removed` are the messages and parts that once were there.
    """

    session: Written | None = None
    title: str = ""
    records: dict[str, Written] = field(default_factory=dict)
    removed: dict[str, Written] = field(default_factory=dict)
    deleted: bool = False

    def take(self, op: str, record_id: str, body: Any, written: tuple[str, int, int]) -> None:
        """Take one operation of the log; `written` is epoch, offset and time (ms)."""
        epoch, offset, at_ms = written
        if op == "document.change" and record_id == "metadata":
            self.title = title_given(body) or self.title
        change = change_of_operation(op, record_id, body, at_ms)
        if change is None:
            return
        now = Written(change, epoch, offset)
        match change.kind:
            case "session.put":
                self.session = now
                self.title = str((change.body or {}).get("title", self.title))
            case "session.delete":
                self.deleted = True
            case "message.put" | "part.put":
                self.records[change.id] = now
            case "message.remove" | "part.remove":
                self.removed[change.id] = now
                self.records.pop(change.id, None)
                for name in [n for n in self.records if n.startswith(f"{change.id}/")]:
                    del self.records[name]

    def session_change(self) -> Change | None:
        """Return the session's record, with the title that was given last."""
        if self.session is None:
            return None
        change = self.session.change
        titled = (change.body or {}) | ({"title": self.title} if self.title else {})
        return Change(kind=change.kind, id="", body=titled, at_ms=change.at_ms)


class Difference(Struct):
    """What two states lack of each other.

    `missing`: what opencode is to be told. `unknown`: its records that the log never had, or has
    only as they were before they ended.
    """

    missing: list[OpencodeEvent]
    unknown_messages: dict[str, dict[str, Any]]
    unknown_parts: dict[str, dict[str, Any]]


def difference(
    session_id: str,
    logged: LoggedState,
    local: SessionState | None,
    machine: Machine,
    now_ms: int,
) -> Difference:
    """Compare a session's log with what an opencode database has of it.

    Times that are about the same are the same. Parts of messages that no opencode has, because a
    program wrote them, have no place in one.
    """
    events = list(_missing(session_id, logged, local, machine, now_ms))
    if local is None:
        return Difference(events, {}, {})
    return Difference(events, _unknown(logged, local.messages), _unknown(logged, local.parts))


def _unknown(
    logged: LoggedState, records: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the records of a database that the log never had, or only as they were before."""
    return {
        name: record
        for name, record in records.items()
        if (name in logged.records and _is_further(record, logged.records[name].change.body or {}))
        or (
            name not in logged.records
            and name not in logged.removed
            and name.partition("/")[0] not in logged.removed
        )
    }


def _missing(
    session_id: str,
    logged: LoggedState,
    local: SessionState | None,
    machine: Machine,
    now_ms: int,
) -> Iterator[OpencodeEvent]:
    """Yield the session, then what was removed, then messages, then parts that differ.

    Messages from the future, as those of before a clock was set back, would be opencode's last for
    ever, and the prompts before them ignored. A message's place cannot be changed: all whose place
    is wrong are taken out and put in again, in the order of their times.
    """
    here: dict[str, dict[str, Any]] = {} if local is None else {**local.messages, **local.parts}

    def event(change: Change, written: Written, end: str = "") -> OpencodeEvent:
        name = replayed_id(written.epoch, written.offset, salt=now_ms) + end
        return event_of_change(session_id, change, machine, now_ms, name)

    session = logged.session_change()
    if session and logged.session:
        told = event(session, logged.session)
        if local is None or not _alike(
            shared_part(told.properties["info"]), shared_part(local.info)
        ):
            yield told
    for name, written in logged.removed.items():
        if name in here:
            yield event(written.change, written)
    misplaced = _misplaced(logged, local, machine, now_ms)
    for name in misplaced:
        written = logged.records[name]
        change = Change(kind="message.remove", id=name, body=None, at_ms=written.change.at_ms)
        yield event(change, written, "out")
    here = {name: here[name] for name in here if name.partition("/")[0] not in misplaced}
    records = logged.records.items()
    messages = [written for name, written in records if "/" not in name]
    parts = [written for name, written in records if name.rpartition("/")[0] in logged.records]
    for written in (*messages, *parts):
        told = event(written.change, written)
        mine = here.get(written.change.id)
        if not _alike(_kept(told), mine) and not _is_further(mine or {}, written.change.body or {}):
            yield told


def _misplaced(
    logged: LoggedState, local: SessionState | None, machine: Machine, now_ms: int
) -> set[str]:
    """Return the messages that stand elsewhere than their times say, if any is from the future.

    One of which the log does not have everything yet stays where it is.
    """
    if local is None or all(at <= now_ms + ABOUT_MS for at in local.placed.values()):
        return set()
    unknown = {**_unknown(logged, local.messages), **_unknown(logged, local.parts)}
    incomplete = {name.partition("/")[0] for name in unknown}
    found = set()
    for name in local.placed.keys() & logged.records.keys() - incomplete:
        times = (logged.records[name].change.body or {}).get("time")
        created = times.get("created") if isinstance(times, dict) else None
        ought = created + machine.clock_ahead_ms if isinstance(created, int) else now_ms
        if abs(local.placed[name] - ought) > ABOUT_MS:
            found.add(name)
    return found


def _is_further(record: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether a record had ended when another state of it had not: then that one is older.

    So it is when Redis lost the end of a turn which this database still has.
    """
    return _progress(record) > _progress(other)


def _progress(record: dict[str, Any]) -> int:
    times = record.get("time")
    ended = isinstance(times, dict) and ("end" in times or "completed" in times)
    state = record.get("state")
    status = state.get("status") if isinstance(state, dict) else None
    return int(ended) + _STATES.get(str(status), 0)


def _alike(record: dict[str, Any], here: dict[str, Any] | None) -> bool:
    return here is not None and _with_times_of(here, record) == here


def _with_times_of(here: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the times of the one here, where those are about the same."""
    changed = dict(record)
    for name in ("time", "state"):
        mine, given = here.get(name), record.get(name)
        if not (isinstance(mine, dict) and isinstance(given, dict)):
            continue
        if name == "state":
            changed[name] = _with_times_of(mine, given)
        else:
            changed[name] = {key: _about(mine.get(key), value) for key, value in given.items()}
    return changed


def _about(mine: Any, given: Any) -> Any:
    is_about = isinstance(mine, int) and isinstance(given, int) and abs(mine - given) <= ABOUT_MS
    return mine if is_about else given


def _kept(event: OpencodeEvent) -> dict[str, Any]:
    """Return a record as opencode's tables keep it: without the ids of its columns."""
    record = event.properties.get("info") or event.properties["part"]
    return {name: value for name, value in record.items() if name not in _IDS}

"""opencode's events and a session's operations: each means one of the other. Pure.

What differs from machine to machine is neutral in the log: the worktree's path stands as
`${WORKTREE}`, the project's id is left out, and times are those of Redis's clock. Ids are kept.
A record of opencode is held whole: a message's `info` in `metadata.opencode`, a session's in
`context.opencode`, a part as the part it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

from sessiond.opencode.protocol import OpencodeEvent

ChangeKind = Literal[
    "session.put",
    "session.delete",
    "message.put",
    "message.remove",
    "part.put",
    "part.remove",
]

DURABLE = frozenset(
    {
        "session.created",
        "session.updated",
        "session.deleted",
        "message.updated",
        "message.removed",
        "message.part.updated",
        "message.part.removed",
    }
)
"""The events that opencode keeps in its own log, without the version that ends their names."""

FIELD = "opencode"
"""The field of a message's metadata, and of a session's context, that holds opencode's record."""

REPLAYED = "evt_sd"
"""How the ids of events begin that came from sessiond: they are not sent back."""

_TOKEN = "${WORKTREE}"  # noqa: S105 - not a secret
_LITERAL = r"\$\{WORKTREE(\+*)\}"
_NEUTRAL = re.compile(_LITERAL)
_LOCAL_TO_A_MACHINE = ("projectID", "workspaceID", "share", "revert")
_MOMENTS = 4096
_EARLIEST_MS = 100_000_000_000  # 1973: a smaller number is no time in milliseconds


class Change(Struct, frozen=True, kw_only=True):
    """What an event does to a session, the same on every machine.

    `id` is the message's, or `<message>/<part>`, or empty for the session; `body` the record,
    None when it goes; `at_ms` when it happened, by Redis's clock.
    """

    kind: ChangeKind
    id: str
    body: dict[str, Any] | None
    at_ms: int


class Machine:
    """What is peculiar to one machine, for one project.

    Args:
        project_id: opencode's id of the project here.
        worktree: the project's folder here, absolute.
        clock_ahead_ms: how far this machine's clock is ahead of Redis's.
        has_folder: tells whether a folder is there. opencode cannot work in a session whose
            folder is not: such a session gets the worktree here, and keeps its own elsewhere.
    """

    def __init__(
        self,
        project_id: str,
        worktree: str,
        clock_ahead_ms: int = 0,
        has_folder: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.project_id = project_id
        self.worktree = worktree.rstrip("/")
        self.clock_ahead_ms = clock_ahead_ms
        self.has_folder = has_folder
        self.folders_elsewhere: dict[str, dict[str, Any]] = {}
        self._moments: dict[int, int] = {}  # the latest times here → what the log says for them
        self._local = re.compile(f"{_LITERAL}|{_whole_path(self.worktree)}")

    def neutral_ms(self, here_ms: int) -> int:
        """Return a time of this machine as the log holds it: by Redis's clock.

        A time keeps its meaning when the clock is set: opencode writes a message again and again.
        """
        neutral = self._moments.pop(here_ms, here_ms - self.clock_ahead_ms)
        self._remember(here_ms, neutral)
        return neutral

    def local_ms(self, neutral_ms: int, latest_ms: int) -> int:
        """Return a time of the log by this machine's clock, not later than a certain one."""
        here_ms = neutral_ms + self.clock_ahead_ms
        if here_ms > latest_ms:
            return latest_ms
        self._remember(here_ms, neutral_ms)
        return here_ms

    def _remember(self, here_ms: int, neutral_ms: int) -> None:
        self._moments[here_ms] = neutral_ms
        if len(self._moments) > _MOMENTS:
            del self._moments[next(iter(self._moments))]

    def neutral(self, value: Any) -> Any:
        """Return a JSON value with this machine's worktree made neutral, keys included."""
        return _with_texts(value, self._neutral_text)

    def local(self, value: Any) -> Any:
        """Return a neutral JSON value with this machine's worktree."""
        return _with_texts(value, self._local_text)

    def _neutral_text(self, text: str) -> str:
        return self._local.sub(_one_more_plus, text)

    def _local_text(self, text: str) -> str:
        return _NEUTRAL.sub(self._one_plus_less, text) if "${WORKTREE" in text else text

    def _one_plus_less(self, found: re.Match[str]) -> str:
        return f"${{WORKTREE{found[1][1:]}}}" if found[1] else self.worktree


def change_of_event(event: OpencodeEvent, machine: Machine, now_ms: int) -> Change | None:
    """Return what an event of this machine means; None for one that is not kept.

    Args:
        event: its type with or without the version that opencode's log appends (`.1`).
        machine: where it happened.
        now_ms: this machine's time, for events that do not say when they happened.

    Raises:
        KeyError, TypeError, ValueError: it lacks what its type promises.
    """
    given = event.properties
    kind: ChangeKind
    name, body = "", None
    match event.type.removesuffix(".1"):
        case "session.created" | "session.updated":
            kind, body = "session.put", neutral_session(dict(given["info"]), machine)
        case "session.deleted":
            kind = "session.delete"
        case "message.updated":
            info = dict(given["info"])
            kind, name = "message.put", _name(info, "id")
            body = neutral_message(info, machine)
        case "message.removed":
            kind, name = "message.remove", _name(given, "messageID")
        case "message.part.updated":
            part = dict(given["part"])
            kind, name = "part.put", _name(part, "messageID", "id")
            body = neutral_part(part, machine)
        case "message.part.removed":
            kind, name = "part.remove", _name(given, "messageID", "partID")
        case _:
            return None
    at_ms = machine.neutral_ms(int(given.get("time") or now_ms))
    return Change(kind=kind, id=name, body=body, at_ms=at_ms)


def event_of_change(
    session_id: str, change: Change, machine: Machine, now_ms: int, event_id: str = ""
) -> OpencodeEvent:
    """Return the event by which opencode takes a change on this machine.

    A session that is put comes as `session.updated`: whether it is new, the plugin finds out.

    Args:
        session_id: the session that changes.
        change: what changed.
        machine: where it is to be taken.
        now_ms: this machine's time; nothing may be dated later, or opencode would take the next
            prompt for one that was answered.
        event_id: the id of the event.
    """
    body = change.body or {}
    properties: dict[str, Any] = {"sessionID": session_id}
    match change.kind:
        case "session.put":
            kind, properties["info"] = "session.updated", local_session(body, machine, now_ms)
        case "session.delete":
            kind = "session.deleted"
        case "message.put":
            kind = "message.updated"
            properties["info"] = local_message(session_id, change.id, body, machine, now_ms)
        case "message.remove":
            kind, properties["messageID"] = "message.removed", change.id
        case "part.put":
            kind = "message.part.updated"
            properties["part"] = local_part(session_id, change.id, body, machine, now_ms)
            properties["time"] = machine.local_ms(change.at_ms, now_ms)
        case "part.remove":
            kind = "message.part.removed"
            properties["messageID"], _, properties["partID"] = change.id.partition("/")
    return OpencodeEvent(id=event_id, type=kind, properties=properties)


def change_of_operation(op: str, record_id: str, body: Any, at_ms: int) -> Change | None:
    """Return what an operation of the log means to opencode; None when it means nothing.

    Records that did not come from an opencode, and documents it does not have, mean nothing:
    whoever may write the log may write anything there.
    """
    kind: ChangeKind
    name, record = record_id, None
    match op:
        case "session.create":
            kind, name, record = "session.put", "", _field(body, "context")
        case "document.change" if record_id == "context":
            kind, name, record = "session.put", "", _field(body, "set")
        case "message.append" | "message.edit":
            kind, record = "message.put", _field(body, "metadata")
        case "part.put":
            kind, record = "part.put", body
        case "message.remove" | "part.remove":
            kind = "message.remove" if op == "message.remove" else "part.remove"
        case "session.delete":
            kind, name = "session.delete", ""
        case _:
            return None
    if kind.endswith(".put") and not isinstance(record, dict):
        return None
    return Change(kind=kind, id=name, body=record, at_ms=at_ms)


def title_given(body: Any) -> str | None:
    """Return the title that a change of a session's metadata gives it; None when it gives none."""
    changed = body.get("set") if isinstance(body, dict) else None
    title = changed.get("title") if isinstance(changed, dict) else None
    return title if isinstance(title, str) else None


def neutral_session(info: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
    """Return a session's `info` as the log holds it."""
    neutral = _translated(machine.neutral(shared_part(info)), machine.neutral_ms)
    if neutral.get("directory") == _TOKEN:
        neutral |= machine.folders_elsewhere.get(str(info.get("id")), {})
    return neutral


def shared_part(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a session's `info` is not this machine's alone."""
    return {name: value for name, value in info.items() if name not in _LOCAL_TO_A_MACHINE}


def local_session(body: Mapping[str, Any], machine: Machine, now_ms: int) -> dict[str, Any]:
    """Return a session's `info` for this machine."""
    info = _translated(machine.local(dict(body)), lambda ms: machine.local_ms(ms, now_ms))
    info["projectID"] = machine.project_id
    folder = info.get("directory")
    if isinstance(folder, str) and folder != machine.worktree and not machine.has_folder(folder):
        elsewhere = {name: body[name] for name in ("directory", "path") if name in body}
        machine.folders_elsewhere[str(info.get("id"))] = elsewhere
        info |= {"directory": machine.worktree, "path": ""}
    return info


def neutral_message(info: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
    """Return a message's `info` as the log holds it: without the ids that its place says."""
    kept = {name: value for name, value in info.items() if name not in ("id", "sessionID")}
    return _translated(machine.neutral(kept), machine.neutral_ms)


def local_message(
    session_id: str, message_id: str, body: Mapping[str, Any], machine: Machine, now_ms: int
) -> dict[str, Any]:
    """Return a message's `info` for this machine."""
    info = _translated(machine.local(dict(body)), lambda ms: machine.local_ms(ms, now_ms))
    return {"id": message_id, "sessionID": session_id, **info}


def neutral_part(part: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
    """Return a part as the log holds it: without the ids of its session and message."""
    kept = {name: value for name, value in part.items() if name not in ("sessionID", "messageID")}
    return _translated(machine.neutral(kept), machine.neutral_ms)


def local_part(
    session_id: str, name: str, body: Mapping[str, Any], machine: Machine, now_ms: int
) -> dict[str, Any]:
    """Return a part for this machine. `name` is `<message>/<part>`."""
    message_id, _, part_id = name.partition("/")
    part = _translated(machine.local(dict(body)), lambda ms: machine.local_ms(ms, now_ms))
    return part | {"id": part_id, "sessionID": session_id, "messageID": message_id}


def replayed_id(epoch: str, offset: int, salt: int | None = None) -> str:
    """Return the id of the event that brings the operation at a position into an opencode.

    opencode takes an id once. `salt` tells a second bringing apart, of a record found different.
    """
    return f"{REPLAYED}{epoch}x{offset:x}" + ("" if salt is None else f"r{salt:x}")


def replayed_offset(event_id: str) -> int | None:
    """Return the offset of the operation that an event brought; None for opencode's own events."""
    if not event_id.startswith(REPLAYED):
        return None
    return int(event_id.rpartition("x")[2].partition("r")[0], 16)


def _name(record: Mapping[str, Any], *fields: str) -> str:
    """Return the id of a record, `<message>/<part>` of a part, from the fields that hold it."""
    names = [record[field] for field in fields]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{names} is no id")
    return "/".join(names)


def _field(body: Any, place: str) -> Any:
    """Return opencode's record in an operation's body; None where there is no such place."""
    found = body.get(place) if isinstance(body, dict) else None
    return found.get(FIELD) if isinstance(found, dict) else None


def _whole_path(path: str) -> str:
    """Return a pattern for a path that is neither the end of a longer one nor its beginning."""
    return rf"(?<![\w.~-]){re.escape(path)}(?![\w-]|\.\w)" if path else "(?!)"


def _one_more_plus(found: re.Match[str]) -> str:
    """Return the token for a path; a text that says `${WORKTREE}` itself gets a plus more."""
    return _TOKEN if found[1] is None else f"${{WORKTREE{found[1]}+}}"


def _with_texts(value: Any, translate: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return translate(value)
    if isinstance(value, dict):
        return {translate(name): _with_texts(item, translate) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_texts(item, translate) for item in value]
    return value


def _translated(record: dict[str, Any], translate: Callable[[int], int]) -> dict[str, Any]:
    """Return a record with its times (ms) translated."""

    def moved(times: Any) -> Any:
        if not isinstance(times, dict):
            return times
        return {name: moment(value) for name, value in times.items()}

    def moment(value: Any) -> Any:
        if not isinstance(value, int) or value < _EARLIEST_MS:
            return value
        return translate(value)

    changed = dict(record)
    if "time" in record:
        changed["time"] = moved(record["time"])
    state = record.get("state")
    if isinstance(state, dict) and "time" in state:
        changed["state"] = state | {"time": moved(state["time"])}
    return changed

"""opencode's records as its database holds them. Pure."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class StoredEvent(Struct, frozen=True):
    """One row of opencode's log. `type` ends in its version: `message.updated.1`."""

    seq: int
    id: str
    type: str
    data: dict[str, Any]


class Writing(Struct, frozen=True):
    """Where in a session's log a record was written, and by which event."""

    seq: int
    id: str


class SessionRow(Struct, frozen=True):
    """What a listing needs of a session. `seq` is the last of its log, -1 without one."""

    id: str
    project_id: str
    title: str
    updated_ms: int
    seq: int


class SessionState(Struct, frozen=True):
    """A session's records at one moment; `messages` and `parts` by id, in their order.

    `info` is as events carry it; a message lacks `id` and `sessionID`, a part (by
    `<message>/<part>`) its three ids: so opencode keeps them. `placed` is the time (ms) that gives
    a message its place: the one it came with, whatever is written into it later.
    """

    seq: int
    info: dict[str, Any]
    messages: dict[str, dict[str, Any]]
    parts: dict[str, dict[str, Any]]
    placed: dict[str, int] = {}

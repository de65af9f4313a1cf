"""What a daemon tells of the opencodes it serves."""

from __future__ import annotations

from msgspec import Struct


class OpencodeStatus(Struct, kw_only=True):
    """An attached opencode process. `lag`: events that wait to be brought into it."""

    instance: str
    machine: str
    version: str
    pid: int
    mode: str
    live: bool
    workspace: str
    directory: str
    sessions: int
    turns: list[str]
    lag: int
    seen_ms: int


class SharedSession(Struct, kw_only=True):
    """A session of an opencode database on this machine. `state`: shared, private or older."""

    session_id: str
    title: str
    workspace: str
    state: str
    updated_ms: int


class Overview(Struct, kw_only=True):
    """What is shared on this machine, and the processes attached anywhere.

    `clock_ahead_ms`: how far this machine's clock is ahead of Redis's; 0 when about right.
    """

    instances: list[OpencodeStatus]
    sessions: list[SharedSession]
    clock_ahead_ms: int

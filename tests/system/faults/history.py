"""What happened in a run: what clients were told, what observers saw, what is there at the end."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class Told(Struct, frozen=True):
    """An operation that a client was told to be journaled or committed.

    Attributes:
        client: who wrote it; `number`: its own counter.
        kind: append, edit, part, remove, count, file, create, delete.
        session_id: where.
        name: the message or file; the session of a creation or deletion.
        value: the content, or the count.
        durability: `journaled` or `committed`.
    """

    client: str
    number: int
    kind: str
    session_id: str
    name: str
    value: Any
    durability: str


class Seen(Struct, frozen=True):
    """One operation as an observer saw it, within one life of its view (between two resets)."""

    life: int
    offset: int
    epoch: str
    op: str
    name: str


class FinalSession(Struct):
    """A session at the end: as each daemon loads it, its log, and its conflicts.

    `missing`: a daemon does not know it as Redis has it. `operations` is the log once more, with
    all that it says: for people who look into a failure.
    """

    deleted: bool = False
    missing: bool = False
    loads: list[Any] = field(default_factory=list)
    log: list[Seen] = field(default_factory=list)
    operations: list[Any] = field(default_factory=list)
    conflicts: list[Any] = field(default_factory=list)


class History(Struct):
    """One run."""

    told: list[Told] = field(default_factory=list)
    attempted: set[tuple[str, str]] = field(default_factory=set)
    """Session and name of every message and file that anybody tried to write."""
    unanswered: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """Session, kind and name → value of edits and removals whose clients died before the answer:
    they may have come to be, or not."""
    observed: dict[str, list[list[Seen]]] = field(default_factory=dict)
    """Session → what each observer saw."""
    final: dict[str, FinalSession] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """Clients that gave up, and what did not come to rest."""
    recovery_seconds: float = 0.0

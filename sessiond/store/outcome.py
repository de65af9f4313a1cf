"""What became of a group of operations: where it went, or why the script refused it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from sessiond.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    SequenceReused,
    SessionDeleted,
    SessiondError,
    StoreDamaged,
    Superseded,
    VersionMismatch,
)
from sessiond.store.draft import Draft
from sessiond.sync.position import Position


class KeyUsed(SessiondError):
    """The idempotency key was used before: the caller looks up what became of it."""


class MarkMoved(SessiondError):
    """A source is not written as far as its writer believes: it begins again from the mark."""

    temporary = True


class InUse(SessiondError):
    """Somebody uses the session that was to be deleted as idle."""


class OfOpencode(SessiondError):
    """An opencode has the session that was to be deleted as idle."""


class JanitorLate(SessiondError):
    """The time is over in which this process was the janitor."""


class Committed(Struct, frozen=True):
    """Where a group went.

    `duplicate`: it had been applied before. `degraded`: fewer replicas than `redis.replicas`
    confirmed it in time; never so with `redis.durability: local`, where none is asked. `sequence`:
    the writer's own number of the first operation, if it was not applied before.
    """

    positions: list[Position]
    workspace: str
    duplicate: bool = False
    degraded: bool = False
    sequence: int = 0


def outcomes_of(
    reply: list[Any], groups: list[list[Draft]], first_sequence: int
) -> list[Committed | SessiondError]:
    """Return what the script's reply says of each group of a call."""
    workspace, cursor = reply[0].decode(), 1
    sequence = first_sequence
    outcomes: list[Committed | SessiondError] = []
    for group in groups:
        verdict, first = reply[cursor : cursor + 2]
        if verdict == b"error":
            outcomes.append(refusal_of(first.decode(), reply[cursor + 2].decode()))
            cursor += 3
        else:
            end = cursor + 2 + len(group)
            epochs = enumerate(reply[cursor + 2 : end], start=first)
            positions = [Position(epoch.decode(), offset) for offset, epoch in epochs]
            duplicate = verdict == b"duplicate"
            outcomes.append(Committed(positions, workspace, duplicate, sequence=sequence))
            cursor = end
        sequence += len(group)
    return outcomes


_REFUSALS: dict[str, Callable[[str], SessiondError]] = {
    "not-found": lambda detail: NotFound(
        f"{detail!r} is not there", hint="it was never written, or was removed"
    ),
    "session-deleted": lambda detail: SessionDeleted(
        f"session {detail!r} was deleted", hint="create a new one; ids are not used again"
    ),
    "version-mismatch": lambda detail: VersionMismatch(
        f"the current version is {detail}",
        hint="read it again, apply the change to what you find, and send the new version",
    ),
    "in-use": lambda detail: InUse(f"somebody uses session {detail!r}"),
    "of-opencode": lambda detail: OfOpencode(
        f"an opencode has session {detail!r}, and would lose it too"
    ),
    "janitor-late": lambda detail: JanitorLate(f"too late to clean up session {detail!r}"),
    "already-exists": AlreadyExists,
    "key-used": KeyUsed,
    "mark-moved": MarkMoved,
    "foreign-keys": lambda detail: StoreDamaged(
        f"Redis holds keys of a session that does not exist, beside {detail!r}",
        hint="something else wrote them, or damage; choose another session id",
    ),
    "sequence-reused": lambda detail: SequenceReused(f"{detail} was used for another operation"),
    "superseded": lambda detail: Superseded(f"{detail} came after a later operation"),
    "invalid-input": InvalidInput,
}


def refusal_of(code: str, detail: str) -> SessiondError:
    """Return the error for a group that the script refused."""
    if code not in _REFUSALS:
        return StoreDamaged(f"the commit script answered {code}: {detail}")
    return _REFUSALS[code](detail)

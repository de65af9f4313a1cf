"""What comes too late: opencode logged it for a session that somebody deleted meanwhile."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct, to_builtins

from sessiond.opencode.mapping import Change
from sessiond.service.content.merging import Subject
from sessiond.service.opencode.recorder import SourcedChange, message_of

_PUTS = frozenset({"message.put", "part.put"})


class LateRecord(Struct, frozen=True):
    """A message or part as it was last, to be kept as a conflict; `seq` is that writing's place."""

    seq: int
    subject: Subject
    value: Any


def late_records(session_id: str, changes: Iterable[SourcedChange]) -> list[LateRecord]:
    """Return what is to be kept of changes, each record as it was last.

    They come in the order of their last writings: when one is kept, all up to its place is kept,
    or was written again behind it.
    """
    last: dict[str, LateRecord] = {}
    for sourced in changes:
        change, seq = sourced.change, sourced.seq
        if seq is not None and change.kind in _PUTS:
            last.pop(change.id, None)
            last[change.id] = LateRecord(seq, *_to_be_kept(session_id, change))
    return list(last.values())


def _to_be_kept(session_id: str, change: Change) -> tuple[Subject, Any]:
    if change.kind == "part.put":
        return Subject(session_id, "part", change.id), change.body
    return Subject(session_id, "message", change.id), to_builtins(message_of(change))

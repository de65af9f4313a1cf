"""What belongs to a session's log and is not in it. Pure.

A copy of a log that has this, too, can take the place of what Redis lost of the log: whoever wrote
to it before is recognised, and nothing is written twice.
"""

from __future__ import annotations

import re

from msgspec import Struct

KEY, MARK = "key:", "outbox:"
"""How the lines of Idempotency-Keys, and those of opencodes' own logs, begin."""

_OFFSET = re.compile(r".* (\d{1,15})", re.ASCII | re.DOTALL)


class Unlogged(Struct, frozen=True):
    """What a log does not tell of what was written with it.

    Attributes:
        end: the log's last offset when the lines were read.
        lines: of the list of writers and keys: of an Idempotency-Key digest and offset, of an
            opencode how far its own log is written.
        conflicts: offset of what recorded or resolved a conflict → names and values of its entry.
    """

    end: int = 0
    lines: dict[str, str] = {}
    conflicts: dict[int, list[bytes]] = {}

    def between(self, start: int, end: int) -> Unlogged:
        """Return what of this belongs to a stretch of the log: behind an offset, up to another."""
        lines = {
            name: line
            for name, line in self.lines.items()
            if (end == self.end if name.startswith(MARK) else start < _offset_of(line) <= end)
        }
        conflicts = {at: fields for at, fields in self.conflicts.items() if start < at <= end}
        return Unlogged(end, lines, conflicts)


def unlogged_lines(applied: dict[str, str]) -> dict[str, str]:
    """Return the lines of a list of writers and keys that the log does not tell."""
    return {name: line for name, line in applied.items() if name.startswith((KEY, MARK))}


def _offset_of(line: str) -> int:
    """Return the offset that the line of a key names: `<digest> <offset>`."""
    found = _OFFSET.fullmatch(line)
    return int(found[1]) if found else 0

"""What Redis keeps with a session's log and the log does not tell. Pure.

A copy of a log that has this, too, can take the place of a log that Redis lost: whoever wrote to it
before is recognised, and nothing is written twice.
"""

from __future__ import annotations

from msgspec import Struct

from sessiond.sync.position import Position

KEY, MARK = "key:", "outbox:"
"""How the lines of idempotency keys, and those of opencodes' own logs, begin."""


class Aside(Struct, frozen=True):
    """What a log does not tell of what was written with it.

    Attributes:
        lines: of the list of writers and keys: of an Idempotency-Key digest and offset, of an
            opencode how far its own log is written.
        conflicts: offset of what recorded or resolved a conflict → names and values of its entry.
    """

    lines: dict[str, str] = {}
    conflicts: dict[int, list[bytes]] = {}

    def up_to(self, end: Position, marks: dict[str, str]) -> Aside:
        """Return what of this belongs to a log that ends at a position.

        Args:
            end: that position.
            marks: where to take from how far opencodes' own logs are written. No later than the
                end: too little is written once more, and compared.
        """
        lines = {name: line for name, line in marks.items() if name.startswith(MARK)}
        lines |= {
            name: line
            for name, line in self.lines.items()
            if name.startswith(KEY) and offset_of(line) <= end.offset
        }
        return Aside(lines, self.conflicts)

    def between(self, start: int, end: int, *, is_last: bool) -> Aside:
        """Return what of this belongs to a stretch of the log; `is_last`: to its last one."""
        return Aside(
            {
                name: line
                for name, line in self.lines.items()
                if (start < offset_of(line) <= end if name.startswith(KEY) else is_last)
            },
            {at: each for at, each in self.conflicts.items() if start < at <= end},
        )


def offset_of(line: str) -> int:
    """Return the offset that the line of a key names: `<digest> <offset>`."""
    offset = line.rpartition(" ")[2]
    return int(offset) if offset.isdecimal() else 0

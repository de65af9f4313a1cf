"""A journaled write that waits: its place, what it promises, what may go with it. Pure."""

from __future__ import annotations

import asyncio

from msgspec import Struct, structs

from sessiond.journal import Entry, Span
from sessiond.service import writes
from sessiond.service.durable.performing import Performed
from sessiond.service.writes import Append, ChangeDocument, PutPart, Remove, Write
from sessiond.sync.position import Position, journaled_position


class Journaled(Struct, frozen=True):
    """A write that is on the disk, with the names it got, and will be done.

    `version` stands for the version that it will have: a change may be based on it.
    """

    write: Write
    version: str


class Waiting(Struct, eq=False):
    """A journaled write in its lane; `outcome` where somebody still waits for it.

    `was`: where Redis had it, before it went back. `is_owed`: Redis had it, and an earlier try of
    the same write was told so.
    """

    write: Write
    span: Span
    was: Position | None = None
    outcome: asyncio.Future[Performed] | None = None
    is_owed: bool = False

    @property
    def is_promised(self) -> bool:
        """Whether somebody was told that it will be, or is, done."""
        return self.is_owed or self.outcome is None

    @property
    def place(self) -> Position:
        """What stands for its position, or did before Redis went back."""
        return self.was or journaled_position(self.span.incarnation, self.span.first)

    @property
    def journaled(self) -> Journaled:
        """What its writer is told, or was."""
        return Journaled(self.write, str(self.place))

    def settle(self, outcome: Performed | Exception) -> None:
        """Tell whoever still waits for it."""
        if self.outcome is None or self.outcome.done():
            return
        if isinstance(outcome, Exception):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


def write_of(entry: Entry) -> Write:
    """Return the write of a journal's entry."""
    (encoded,) = entry.operations
    return writes.decode(encoded)


def places_of(entry: Entry) -> range:
    """Return where a session's log has what a confirmed entry wrote; nothing of one that waits."""
    if entry.position is None:
        return range(0)
    write, last = write_of(entry), entry.position.offset
    count = len(write.messages) if isinstance(write, Append) else 1
    return range(last - count + 1, last + 1)


def again(write: Write) -> Write:
    """Return a write that was done, as it is to be done again: what it was based on may be gone.

    A change that was to be made of one version only is merged with what is there now.
    """
    request = write.request
    if not request.expected:
        return write
    return structs.replace(
        write, request=structs.replace(request, base=request.expected, expected="")
    )


def kind(write: Write) -> str:
    """Return what writes have in common that may be performed at once; empty for by itself.

    They keep their order on their way to Redis: what need not read first goes there at once, and
    the changes of one document are made one upon the other.
    """
    match write:
        case Append():
            return "unread"
        case PutPart() | Remove() if not write.request.base:
            return "unread"
        case ChangeDocument() if write.name != "metadata" and not write.request.expected:
            return write.name
        case _:
            return ""


def record_of(write: Write) -> str:
    """Return the message or part that stands and is changed; empty for none."""
    match write:
        case PutPart():
            return f"{write.message_id}/{write.part_id}"
        case Remove():
            return write.message_id
        case _:
            return ""

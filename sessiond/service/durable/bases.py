"""What changes are based on that the log does not know: what was only journaled, or got lost."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from sessiond.model import Document
from sessiond.service import writes
from sessiond.service.durable.performing import Performed
from sessiond.service.identity import content_digest
from sessiond.service.writes import Append, Create, PutPart, Write, made_before
from sessiond.sync.position import Position

_REMEMBERED = 10_000

_Place = tuple[str, str]
"""A session, and a position in it or what stands for one."""


class Bases:
    """Remembers what was told of, the newest of it."""

    def __init__(self) -> None:
        self._moved: dict[_Place, str] = {}
        self._told: dict[_Place, Write] = {}
        self._values: dict[_Place, str] = {}

    def based(self, write: Write) -> Write:
        """Return a write with a base that the log knows, where it was made on one that it does not.

        That is one that Redis lost, or one that was only journaled when its writer was told of it:
        who went on from there had not seen what others wrote meanwhile.
        """
        request = write.request
        if not (request.base or request.expected):
            return write
        before = self._told.get((write.session_id, request.base))
        if before and before.request.base and (made := made_before(write, before)):
            request = structs.replace(request, base=before.request.base, made=made)
        base = self._moved.get((write.session_id, request.base), request.base)
        expected = self._moved.get((write.session_id, request.expected), request.expected)
        request = structs.replace(request, base=base, expected=expected)
        return structs.replace(write, request=request)

    def note_told(self, write: Write, place: Position) -> None:
        """Note that a writer was told of a write that waits, and may go on from there."""
        _remember(self._told, (write.session_id, str(place)), write)

    def note_done(self, session_id: str, performed: Performed) -> None:
        """Note what a document was at its place in the log."""
        if isinstance(performed.result, Document):
            place = session_id, str(performed.position)
            _remember(self._values, place, _digest_of(performed.result))

    def note_move(self, write: Write, place: Position, performed: Performed) -> None:
        """Note where a version is now that was told of before, if it is the very same value.

        One that is not, because it met others there, is no base of what was made on the other one:
        what they wrote would look as if it had been removed.
        """
        before, after = (write.session_id, str(place)), str(performed.position)
        is_same = _stands_for_itself(write) or (
            isinstance(performed.result, Document)
            and self._values.get(before) == _digest_of(performed.result)
        )
        if is_same and before[1] != after:
            _remember(self._moved, before, after)


def _stands_for_itself(write: Write) -> bool:
    """Tell whether what is written does not depend on what stood there."""
    match write:
        case Create():
            return True
        case Append():
            return len(write.messages) == 1
        case PutPart():
            return not write.request.base
        case _:
            return False


def _digest_of(document: Document) -> str:
    return content_digest(writes.encode(document.value))


def _remember(known: dict[_Place, Any], place: _Place, what: Any) -> None:
    """Remember one more, if need be at the cost of what was remembered first."""
    if len(known) >= _REMEMBERED:
        del known[next(iter(known))]
    known[place] = what

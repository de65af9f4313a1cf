"""What changes are based on that the log does not know: what was only journaled, or got lost."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec
from msgspec import Struct, structs

from sessiond.model import Document, DocumentName
from sessiond.service import writes
from sessiond.service.durable.performing import Performed
from sessiond.service.identity import content_digest
from sessiond.service.writes import Append, ChangeDocument, Create, PutPart, Write, made_before
from sessiond.service.writing import Made
from sessiond.sync.position import Position

_REMEMBERED = 10_000
_SHOWN_BYTES = 64 * 1024 * 1024

_Place = tuple[str, str]
"""A session, and a position in it or what stands for one."""


class _Shown(Struct, frozen=True):
    """A document as it was shown while changes of it waited, and a version of the log before it."""

    base: str
    value: bytes


class Bases:
    """Remembers what was told of, the newest of it."""

    def __init__(self) -> None:
        self._moved: dict[_Place, str] = {}
        self._told: dict[_Place, Write] = {}
        self._values: dict[_Place, str] = {}
        self._shown: OrderedDict[tuple[str, DocumentName, str], _Shown] = OrderedDict()
        self._shown_bytes = 0

    def based(self, write: Write) -> Write:
        """Return a write with a base that the log knows, where it was made on one that it does not.

        That is one that Redis lost, or one that was only journaled when its writer was told of it:
        who went on from there had not seen what others wrote meanwhile.
        """
        request = write.request
        if not (request.base or request.expected):
            return write
        if isinstance(write, ChangeDocument) and (shown := self._shown_before(write)):
            seen = Made(msgspec.json.decode(shown.value), replace=True)
            request = structs.replace(request, base=shown.base, made=[seen])
        before = self._told.get((write.session_id, request.base))
        if before and before.request.base and (made := made_before(write, before)):
            request = structs.replace(request, base=before.request.base, made=made)
        base = self._moved.get((write.session_id, request.base), request.base)
        expected = self._moved.get((write.session_id, request.expected), request.expected)
        request = structs.replace(request, base=base, expected=expected)
        return structs.replace(write, request=request)

    def shown(
        self, session_id: str, name: DocumentName, version: str, base: str, value: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what a document is shown as while changes of it wait: the same for a version.

        What its readers change then is compared with just this. With what the log has it could not
        be: others' changes may be in it that wait as well, or that they wait for.

        Args:
            session_id: the session.
            name: which of its documents.
            version: what stands for the version that it will have.
            base: its version in the log, before what waits.
            value: what it would be shown as now.
        """
        place = session_id, name, version
        if known := self._shown.get(place):
            self._shown.move_to_end(place)
            return dict(msgspec.json.decode(known.value))
        shown = self._shown[place] = _Shown(base, writes.encode(value))
        self._shown_bytes += len(shown.value)
        while self._shown_bytes > _SHOWN_BYTES and len(self._shown) > 1:
            _, oldest = self._shown.popitem(last=False)
            self._shown_bytes -= len(oldest.value)
        return value

    def _shown_before(self, write: ChangeDocument) -> _Shown | None:
        return self._shown.get((write.session_id, write.name, write.request.base))

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

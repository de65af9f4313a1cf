"""The last revisions of a document, so that what was written moments ago need not be read. Pure.

It says what was known, not what is: a version names its whole history (`sync.position`), so what
is written on a remembered version is refused by the store when that is not the current one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET, Struct

from sessiond.sync.rebase import Writing, document_before

_REVISIONS = 256
_BYTES = 2**20


class History(Struct, frozen=True):
    """A document at its base, and what was written since, oldest first.

    Without a base (None) nobody knows it any more: the log was trimmed, or is another one.
    """

    base: dict[str, Any] | None
    since: Sequence[Writing]


class _Revision(Struct, frozen=True):
    """A writing, the version it was made on, and what stood in its fields then."""

    version_before: str
    writing: Writing
    before: Mapping[str, Any]
    size: int


class Recent:
    """A document at a version, and how it came there: up to 256 writings, of 1 MiB in all.

    Args:
        version: its version, `epoch:offset`.
        value: the document; nothing here changes it, and nobody else may.

    Attributes:
        others_write: whether somebody else wrote it since it was looked at before.
    """

    def __init__(self, version: str, value: dict[str, Any]) -> None:
        self.version = version
        self.value = value
        self.others_write = False
        self._revisions: deque[_Revision] = deque()
        self._size = 0

    def copy(self) -> Recent:
        """Return another one that goes its own way."""
        other = Recent(self.version, self.value)
        other._revisions, other._size = self._revisions.copy(), self._size
        return other

    def take(self, version: str, writing: Writing, size: int) -> None:
        """Take the next writing; `size` is that of its JSON, in bytes."""
        before = {name: self.value.get(name, UNSET) for name in writing.fields}
        self._revisions.append(_Revision(self.version, writing, before, size))
        self._size += size
        while len(self._revisions) > _REVISIONS or self._size > _BYTES:
            self._size -= self._revisions.popleft().size
        after = {**self.value, **writing.fields}
        self.value = {name: value for name, value in after.items() if value is not UNSET}
        self.version = version

    def since(self, base: str) -> History | None:
        """Return the document at an earlier version and what was written since, if that is known.

        Args:
            base: the version, `epoch:offset` or the offset alone.
        """
        if is_version(base, self.version):
            return History(self.value, ())
        since: list[Writing] = []
        earlier: dict[str, Any] = {}
        for revision in reversed(self._revisions):
            since.append(revision.writing)
            earlier |= revision.before
            if is_version(base, revision.version_before):
                return History(document_before(self.value, since, earlier), since[::-1])
        return None


def is_version(named: str, version: str) -> bool:
    """Tell whether a version that somebody named, `epoch:offset` or an offset, is this one."""
    return named in (version, version.partition(":")[2])

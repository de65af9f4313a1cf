"""A note beside the journal of how far it was written: it may show that the journal is older.

Written behind every commit, and never before it; synced now and then. So it never promises more
than the journal holds, unless somebody put an older copy in the journal's place, or part of its
log was lost. That it is missing or torn means nothing.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

FILE = "watermark"
_BYTES = 128


class Mark(Struct, frozen=True):
    """An incarnation and its last durable sequence."""

    incarnation: str
    sequence: int


class Watermark:
    """The note; best effort: a full disk must not keep anybody from writing the journal."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(folder / FILE, flags, 0o600)

    def read(self) -> Mark | None:
        """Return what was noted last; None where that cannot be told."""
        return decode_mark(os.pread(self._descriptor, _BYTES, 0))

    def write(self, mark: Mark) -> None:
        """Note how far the journal is durable."""
        with suppress(OSError):
            os.pwrite(self._descriptor, encode_mark(mark), 0)

    def sync(self) -> None:
        """Make the note durable."""
        with suppress(OSError):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def encode_mark(mark: Mark) -> bytes:
    """Return a mark as one line of fixed length, with a checksum."""
    text = f"{mark.incarnation} {mark.sequence}".encode()
    return b"%s %08x" % (text, zlib.crc32(text)) + b" " * (_BYTES - len(text) - 10) + b"\n"


def decode_mark(line: bytes) -> Mark | None:
    """Read what `encode_mark` wrote; None if it is anything else."""
    try:
        incarnation, sequence, _ = line.decode().split()
        mark = Mark(incarnation, int(sequence))
    except ValueError:
        return None
    return mark if encode_mark(mark) == line else None

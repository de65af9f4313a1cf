"""Rows read from the bytes of a damaged SQLite file and its log, past whatever is broken. Pure.

Each leaf page of a table is read by itself, in every version that the file and the log have of it.
What comes out is anybody's guess until its seal is found right (see `record`): this module only
knows the format. Source: https://www.sqlite.org/fileformat2.html, sections 1.6, 2.1 and 4.1.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from sessiond.journal.record import Row

_LOG_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
_LOG_MAGIC = 0x377F0682  # one more where the checksums are those of a big-endian machine
_WORD = 0xFFFFFFFF
_LEAF = 0x0D
_LEAF_HEADER_BYTES = 8
_FILE_HEADER_BYTES = 100
_INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)
_FIRST_BLOB, _FIRST_TEXT = 12, 13
_VARINT_BYTES = 9
_LAST_VARINT_BYTE = 0x7F  # greater ones go on
_IN_FILE = -1
_BROKEN = (IndexError, ValueError, struct.error)


class Frame(Struct, frozen=True):
    """One page in the log: which, where its bytes begin, and whether it ends a transaction."""

    page: int
    offset: int
    commits: bool


def frames_of(log: bytes, page_bytes: int) -> list[Frame]:
    """Return the frames of the log's present round, whether or not their checksums are right."""
    if len(log) < _LOG_HEADER.size:
        return []
    salts = _LOG_HEADER.unpack_from(log)[4:6]
    found = []
    stride = _FRAME_HEADER.size + page_bytes
    for start in range(_LOG_HEADER.size, len(log) - stride + 1, stride):
        page, size, *frame_salts = _FRAME_HEADER.unpack_from(log, start)[:4]
        if tuple(frame_salts) == salts and page:
            found.append(Frame(page, start + _FRAME_HEADER.size, commits=size > 0))
        else:
            found.append(Frame(0, 0, commits=False))
    while found and not found[-1].page:
        found.pop()
    return found


def cuts_a_commit(frames: list[Frame], valid: int) -> bool:
    """Tell whether the log goes on behind its valid frames with more than a torn transaction.

    A transaction begins to be written when the one before it is synced. So where the valid frames
    end before a commit and another transaction follows, what ends there was once whole.
    """
    behind = frames[valid:]
    commit = next((place for place, frame in enumerate(behind) if frame.commits), None)
    return commit is not None and commit + 1 < len(behind)


def lost_its_header(log: bytes) -> bool:
    """Tell whether SQLite would throw a log away because its header is broken.

    The header is synced before anything follows it, so a loss of power cannot do that.
    """
    if len(log) < _LOG_HEADER.size:
        return any(log)
    magic, *_, first, second = _LOG_HEADER.unpack_from(log)
    order = ">" if magic & 1 else "<"
    words = struct.unpack_from(f"{order}6I", log)
    sums = (0, 0)
    for place in (0, 2, 4):
        lower = (sums[0] + words[place] + sums[1]) & _WORD
        sums = (lower, (sums[1] + words[place + 1] + lower) & _WORD)
    return (magic & ~1 != _LOG_MAGIC or sums != (first, second)) and any(log)


def rows(file: bytes, log: bytes, page_bytes: int) -> Iterator[Row]:
    """Return whatever looks like a row of a table: the oldest first, often more than once.

    Args:
        file: the database.
        log: its write-ahead log, as it was found.
        page_bytes: the size of a page; the file's own word for it is not relied on.
    """
    frames = frames_of(log, page_bytes)
    versions = _Versions(file, log, page_bytes, frames)
    for number in range(1, len(file) // page_bytes + 1):
        yield from _rows_of(versions, number, _IN_FILE, _IN_FILE)
    commits = [place for place, frame in enumerate(frames) if frame.commits]
    for place, frame in enumerate(frames):
        if frame.page:
            following = bisect_left(commits, place)
            end = commits[following] if following < len(commits) else len(frames)
            yield from _rows_of(versions, frame.page, place, end)


class _Versions:
    """The pages as they were at any time: in the file, or behind a frame of the log."""

    def __init__(self, file: bytes, log: bytes, page_bytes: int, frames: list[Frame]) -> None:
        self.page_bytes = page_bytes
        self.bytes = len(file) + len(log)
        self._file = file
        self._log = log
        self._frames = frames
        self._places: dict[int, list[int]] = {}
        for place, frame in enumerate(frames):
            self._places.setdefault(frame.page, []).append(place)

    def page(self, number: int, up_to: int) -> bytes:
        """Return a page as it was after that frame, or in the file."""
        places = self._places.get(number, [])
        found = bisect_right(places, up_to)
        if found:
            offset = self._frames[places[found - 1]].offset
            return self._log[offset : offset + self.page_bytes]
        return self._file[(number - 1) * self.page_bytes : number * self.page_bytes]


def _rows_of(versions: _Versions, number: int, place: int, end: int) -> Iterator[Row]:
    """Return the rows of a page as it was after frame `place`, of the transaction up to `end`."""
    page = versions.page(number, place)
    header = _FILE_HEADER_BYTES if number == 1 else 0
    if len(page) < versions.page_bytes or page[header] != _LEAF:
        return
    cells = int.from_bytes(page[header + 3 : header + 5], "big")
    pointers = header + _LEAF_HEADER_BYTES
    for cell in range(min(cells, (len(page) - pointers) // 2)):
        pointer = pointers + 2 * cell
        offset = int.from_bytes(page[pointer : pointer + 2], "big")
        try:
            yield _row(versions, page, offset, end)
        except _BROKEN:
            continue


def _row(versions: _Versions, page: bytes, offset: int, up_to: int) -> Row:
    length, offset = _varint(page, offset)
    rowid, offset = _varint(page, offset)
    return _columns(_payload(versions, page, offset, length, up_to), rowid)


def _payload(versions: _Versions, page: bytes, offset: int, length: int, up_to: int) -> bytes:
    """Return a row's bytes: those on its page, and the chain of pages that goes on with them."""
    if length > versions.bytes:
        raise ValueError("a row cannot be larger than all there is")
    usable = len(page)
    local = length
    if length > usable - 35:
        least = (usable - 12) * 32 // 255 - 23
        local = least + (length - least) % (usable - 4)
        local = local if local <= usable - 35 else least
    pieces = [page[offset : offset + local]]
    missing = length - local
    following = page[offset + local : offset + local + 4]
    while missing > 0:
        number = int.from_bytes(following, "big")
        overflow = versions.page(number, up_to) if number else b""
        if len(overflow) < usable:
            raise ValueError("the chain of pages ends early")
        pieces.append(overflow[4 : 4 + missing])
        missing -= usable - 4
        following = overflow[:4]
    return b"".join(pieces)


def _columns(payload: bytes, rowid: int) -> Row:
    """Return a record's values. The first column stands for the row's number, and is empty."""
    header_bytes, place = _varint(payload, 0)
    offset = header_bytes
    columns: list[Any] = []
    while place < header_bytes:
        kind, place = _varint(payload, place)
        value, offset = _value(payload, offset, kind)
        columns.append(value)
    return (rowid, *columns[1:])


def _value(payload: bytes, offset: int, kind: int) -> tuple[Any, int]:
    if kind == 0:
        return None, offset
    if kind in (8, 9):  # the numbers 0 and 1 take no bytes
        return kind - 8, offset
    if kind < _FIRST_BLOB:
        size = _INTEGER_BYTES[kind]  # a float is an error: we write none
        return int.from_bytes(payload[offset : offset + size], "big", signed=True), offset + size
    size = (kind - _FIRST_BLOB) // 2
    content = payload[offset : offset + size]
    is_text = (kind - _FIRST_TEXT) % 2 == 0
    return (content.decode() if is_text else content), offset + size


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Return a number of variable length, and where it ends."""
    value = 0
    for place in range(_VARINT_BYTES - 1):
        byte = data[offset + place]
        value = value << 7 | byte & _LAST_VARINT_BYTE
        if byte <= _LAST_VARINT_BYTE:
            return value, offset + place + 1
    return value << 8 | data[offset + _VARINT_BYTES - 1], offset + _VARINT_BYTES

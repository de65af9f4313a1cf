"""What lies in the journal: entries, who wrote them, and the seal on every row. Pure.

A row's first column is its number. That of an entry holds the number of its incarnation above
the first sequence of its group, so that the order of the numbers is the order of the writes, and
an entry is found by its identity.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct

from sessiond.sync.position import Position, parse_position

OVERHEAD_BYTES = 256
"""What an entry costs beside its operations, on disk and in memory: about, and rather more."""

_SEQUENCE_BITS = 40
_FIRST_SEQUENCE_MASK = (1 << _SEQUENCE_BITS) - 1
_SEAL_BYTES = 8
_OPERATIONS = msgspec.msgpack.Decoder(list[bytes])
_encode = msgspec.msgpack.Encoder().encode

Row = tuple[Any, ...]
"""A row's columns as SQLite takes and gives them."""


class Span(Struct, frozen=True):
    """Consecutive sequences of one incarnation of this writer: those of one group."""

    incarnation: str
    first: int
    count: int

    @property
    def last(self) -> int:
        """The sequence of the group's last operation."""
        return self.first + self.count - 1


class Entry(Struct, frozen=True):
    """One group as the journal holds it.

    `position` is that of its last operation in the session's log, None until Redis confirmed it;
    `key` is empty where there is none.
    """

    span: Span
    session_id: str
    key: str
    at_ms: int
    operations: list[bytes]
    position: Position | None = None


class Identity(Struct, frozen=True):
    """One incarnation of the writer: since when, and why there had to be a new one."""

    number: int
    incarnation: str
    at_ms: int
    reason: str


def entry_number(identity: int, sequence: int) -> int:
    """Return the number of the entry whose first operation has this sequence."""
    return identity << _SEQUENCE_BITS | sequence


def identity_and_sequence(number: int) -> tuple[int, int]:
    """Return the number of an entry's incarnation, and its first sequence."""
    return number >> _SEQUENCE_BITS, number & _FIRST_SEQUENCE_MASK


def encode_operations(group: list[bytes]) -> bytes:
    """Return a group's operations in one piece."""
    return _encode(group)


def decode_operations(body: bytes) -> list[bytes]:
    """Return a group's operations."""
    return _OPERATIONS.decode(body)


def size_of(body_bytes: int) -> int:
    """Return what an entry counts for in the journal's bounds."""
    return body_bytes + OVERHEAD_BYTES


def key_digest(session_id: str, key: str) -> int:
    """Return a short stand-in for an idempotency key: what it finds is compared in full."""
    digest = blake2b(_encode((session_id, key)), digest_size=_SEAL_BYTES).digest()
    return int.from_bytes(digest, "big")


def sealed(table: str, *columns: Any) -> Row:
    """Return the columns of a row, with the seal over its table and all of them at their end."""
    return (*columns, _seal(table, columns))


def unsealed(table: str, row: Row) -> Row | None:
    """Return a row's columns without the seal; None where the seal is broken."""
    columns = row[:-1]
    try:
        return columns if row[-1] == _seal(table, columns) else None
    except (TypeError, ValueError, OverflowError):  # a value that no row of ours has
        return None


def entry_of(columns: Row, position: str | None = None) -> Entry:
    """Return the entry that the columns of an unsealed row say."""
    number, incarnation, session_id, key, at_ms, body = columns
    operations = decode_operations(body)
    span = Span(incarnation, identity_and_sequence(number)[1], len(operations))
    place = parse_position(position) if position is not None else None
    return Entry(span, session_id, key, at_ms, operations, place)


def _seal(table: str, columns: Row) -> bytes:
    return blake2b(_encode((table, columns)), digest_size=_SEAL_BYTES).digest()

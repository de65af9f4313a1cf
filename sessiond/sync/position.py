"""Positions in a session's log, and the running fingerprint that makes them trustworthy.

Every log entry carries an *epoch*: a fingerprint folded over all entries up to and including it.
A position is `epoch:offset` and is valid exactly when the entry at that offset carries that
epoch. So a Redis that lost its newest writes, was flushed, or was replaced by an older copy
cannot pass a changed history off as the old one, while a plain restart costs readers nothing.
The same fold runs in `store/lua/log.lua`; a store test holds the two together.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from msgspec import Struct

from sessiond.errors import InvalidInput

LANES = (67_108_859, 67_108_837)
"""The two largest primes below 2**26: products stay exact in Lua's doubles (below 2**53)."""
MULTIPLIERS = (45_678_917, 52_345_711)
_LANE_DIGITS = 7
_POSITION = re.compile(r"(?:([0-9a-f]{14}|0):)?(\d{1,15})", re.ASCII)

NO_EPOCH = "0" * (2 * _LANE_DIGITS)
"""The fingerprint of an empty log."""


class Position(Struct, frozen=True):
    """A place in a session's log: after the operation at `offset`.

    `epoch` may be empty when a person named an offset alone; it is then not checked.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}" if self.epoch else str(self.offset)


START = Position(NO_EPOCH, 0)

_JOURNALED = "ff"


def journaled_position(incarnation: str, sequence: int) -> Position:
    """Return what stands for the position of a write that is only in a journal yet.

    No epoch begins like it: its lanes are smaller.

    Args:
        incarnation: of the journal: 12 hexadecimal digits.
        sequence: of the write.
    """
    return Position(_JOURNALED + incarnation, sequence)


def is_journaled(position: str) -> bool:
    """Tell whether a position stands for a write that was only in a journal."""
    return position.startswith(_JOURNALED)


def parse_position(text: str) -> Position:
    """Read `epoch:offset`, or an offset alone.

    Raises:
        InvalidInput: the text is neither.
    """
    match = _POSITION.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"{text[:80]!r} is not a position",
            hint="use epoch:offset as received, for example 00f3a9c1d2e4b7:12, or 0 for the start",
        )
    offset = int(match[2])
    if offset == 0:
        return START
    if match[1] == "0":
        raise InvalidInput(f"epoch 0 belongs to offset 0 only, not to {offset}")
    return Position(match[1] or "", offset)


def entry_hash(op: str, at: str, origin: str, record_id: str, json: bytes) -> bytes:
    """Return the content hash of one log entry: seven bytes of BLAKE2b."""
    head = f"{op}\n{at}\n{origin}\n{record_id}\n".encode()
    return blake2b(head + json, digest_size=7).digest()


def fold(epoch: str, content_hash: bytes) -> str:
    """Return the epoch after an entry with this hash was added to a log at this epoch."""
    halves = (content_hash[:3], content_hash[3:])
    lanes = []
    for lane, half in enumerate(halves):
        before = int(epoch[lane * _LANE_DIGITS : (lane + 1) * _LANE_DIGITS], 16)
        folded = before * MULTIPLIERS[lane] + int.from_bytes(half, "big") + 1
        lanes.append(f"{folded % LANES[lane]:07x}")
    return "".join(lanes)

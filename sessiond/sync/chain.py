"""The chain of a log: each entry's epoch is folded from the one before and its content. Pure.

What a byte of an entry does not say any more what was written, its epoch or the next one's does not
follow. Entries are as Redis sends them, `[id, [name, value, …]]`, so that checking costs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from sessiond.sync.position import LANES, MULTIPLIERS, NO_EPOCH

FIELDS = [b"op", b"at", b"origin", b"id", b"epoch", b"json"]
"""The fields of a log entry, in their order."""

_EPOCH = 9
_ONE, _TWO = LANES
_TIMES_ONE, _TIMES_TWO = MULTIPLIERS
_LOW = 0xFFFFFFFF
_join, _number = b"\n".join, int.from_bytes


def has_shape(raw: Any) -> bool:
    """Tell whether a stream entry has the id and the fields of a log entry."""
    stream_id, fields = raw
    return (
        fields is not None
        and fields[::2] == FIELDS
        and stream_id.endswith(b"-0")
        and stream_id[:-2].isdigit()
    )


def broken_link(raw: Sequence[Any], before: str | None = None) -> bytes | None:
    """Return the id of the first entry whose epoch does not follow; None where all do.

    Args:
        raw: neighbouring entries of a log, each with the shape of one.
        before: the epoch before the first; None if unknown, which proves nothing of the first but
            that of a log's beginning.
    """
    if not raw:
        return None
    start = 0
    if before is None and raw[0][0] == b"1-0":
        before = NO_EPOCH
    if before is None:
        start = 1
        before = raw[0][1][_EPOCH].decode("ascii", "replace")
    try:
        one, two = int(before[:7], 16), int(before[7:], 16)
    except ValueError:
        return bytes(raw[0][0])
    for stream_id, (_, op, _, at, _, origin, _, record_id, _, epoch, _, json) in raw[start:]:
        head = _join((op, at, origin, record_id, json))
        number = _number(blake2b(head, digest_size=7).digest(), "big")
        one = (one * _TIMES_ONE + (number >> 32) + 1) % _ONE
        two = (two * _TIMES_TWO + (number & _LOW) + 1) % _TWO
        if b"%014x" % (one << 28 | two) != epoch:
            return bytes(stream_id)
    return None

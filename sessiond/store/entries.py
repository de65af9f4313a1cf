"""Entries of a log's stream as Redis sends them: `[id, [name, value, …]]`, checked and read."""

from __future__ import annotations

from typing import Any

from sessiond.errors import StoreDamaged
from sessiond.sync.chain import broken_link, has_shape
from sessiond.sync.entry import Entry


def parse_entry(raw: Any) -> Entry:
    """Read one stream entry that was checked.

    Raises:
        StoreDamaged: it holds bytes that are no text.
    """
    stream_id, fields = raw
    _, op, _, at, _, origin, _, record_id, _, epoch, _, json = fields
    try:
        return Entry(
            int(stream_id[:-2]),
            op.decode(),
            at.decode(),
            origin.decode(),
            record_id.decode(),
            epoch.decode(),
            json,
        )
    except UnicodeDecodeError as error:
        raise _foreign(stream_id) from error


def checked(raw: list[Any]) -> list[Any]:
    """Return stream entries as Redis sent them, each `[id, [name, value, …]]`.

    Raises:
        StoreDamaged: an entry is not one that the commit script writes, entries are missing, or
            one does not follow from those before it.
    """
    for item in raw:
        if not has_shape(item):
            raise _foreign(item[0])
    if raw and int(raw[-1][0][:-2]) - int(raw[0][0][:-2]) != len(raw) - 1:
        raise StoreDamaged(
            f"entries are missing from the log between {raw[0][0]!r} and {raw[-1][0]!r}"
        )
    broken = broken_link(raw)
    if broken:
        raise StoreDamaged(
            f"log entry {broken!r}, or the one before it, is not what was written there"
        )
    return raw


def checked_behind(before: list[Any], raw: list[Any]) -> list[Any]:
    """Return stream entries as `checked` does, once they also follow the last of those `before`.

    Raises:
        StoreDamaged: see `checked`.
    """
    proof = before[-1:]
    return checked([*proof, *raw])[len(proof) :]


def _foreign(stream_id: bytes) -> StoreDamaged:
    return StoreDamaged(f"log entry {stream_id!r} is not one of sessiond's")


def offset_of(raw: Any) -> int:
    """Return the offset of a stream entry as Redis sends it; 0 of one that is not ours."""
    number = raw[0].removesuffix(b"-0")
    return int(number) if number.isdigit() else 0

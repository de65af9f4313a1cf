"""Entries of a log's stream as Redis sends them: `[id, [name, value, …]]`, checked and read."""

from __future__ import annotations

from typing import Any

from sessiond.errors import StoreDamaged
from sessiond.sync.entry import Entry

_FIELDS = [b"op", b"at", b"origin", b"id", b"epoch", b"json"]


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
        StoreDamaged: an entry is not one that the commit script writes, or entries are missing.
    """
    for stream_id, fields in raw:
        if fields is None or fields[::2] != _FIELDS or not stream_id.endswith(b"-0"):
            raise _foreign(stream_id)
    if raw and int(raw[-1][0][:-2]) - int(raw[0][0][:-2]) != len(raw) - 1:
        raise StoreDamaged(
            f"entries are missing from the log between {raw[0][0]!r} and {raw[-1][0]!r}",
            hint="something other than sessiond removed entries, or added some",
        )
    return raw


def _foreign(stream_id: bytes) -> StoreDamaged:
    return StoreDamaged(
        f"log entry {stream_id!r} is not one of sessiond's",
        hint="something other than sessiond wrote into this stream",
    )


def offset_of(raw: Any) -> int:
    """Return the offset of a stream entry as Redis sends it; 0 of one that is not ours."""
    number = raw[0].removesuffix(b"-0")
    return int(number) if number.isdigit() else 0

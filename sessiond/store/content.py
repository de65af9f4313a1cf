"""What keys hold, as `lua/content.lua` takes it: hashes and streams, and a log as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sessiond.sync.entry import Entry

Hash = dict[bytes, bytes]

Stream = Sequence[tuple[str, Sequence[bytes | str]]]
"""Ids and flat fields of a stream's entries."""

NOTHING: list[Any] = ["none", 0]


def hash_arguments(flat: Sequence[Any]) -> list[Any]:
    """Return field, value, … of a hash as arguments; none of an empty one."""
    return ["hash", len(flat), *flat] if flat else NOTHING


def stream_arguments(entries: Iterable[tuple[Any, Sequence[Any]]]) -> list[Any]:
    """Return the entries of a stream as arguments."""
    arguments: list[Any] = ["stream", 0]
    for stream_id, flat in entries:
        arguments += (stream_id, len(flat), *flat)
        arguments[1] += 1
    return arguments


def flat(content: Hash) -> list[bytes]:
    """Return a hash as its fields and values, in turn."""
    return [word for pair in content.items() for word in pair]


def stream_of(entries: Sequence[Entry]) -> Stream:
    """Return a log as its stream holds it."""
    return [
        (
            f"{entry.offset}-0",
            (
                *("op", entry.op, "at", entry.at, "origin", entry.origin),
                *("id", entry.id, "epoch", entry.epoch, "json", entry.json),
            ),
        )
        for entry in entries
    ]

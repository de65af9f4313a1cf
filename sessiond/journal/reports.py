"""What a journal tells of itself."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Status(Struct, frozen=True):
    """Where the journal stands. Bytes are those that count towards its bounds.

    `pending` entries are journaled and not yet confirmed by Redis; `kept` ones are confirmed.
    `oldest_pending_ms` is when the oldest was written, None where none is pending.
    """

    incarnation: str
    last_sequence: int
    pending: int
    pending_bytes: int
    kept: int
    kept_bytes: int
    oldest_pending_ms: int | None


class Verdict(Struct, frozen=True):
    """What reading all of the journal found. `faults` is empty when everything is as written."""

    entries: int
    faults: list[str]


class ExportedEntry(Struct, frozen=True):
    """A group of operations as it lies in the journal, for people to read.

    `position` is where Redis has its last one; None until Redis is known to have it.
    """

    incarnation: str
    first: int
    session_id: str
    key: str
    at_ms: int
    position: str | None
    operations: list[Any]


class EntryPage(Struct, frozen=True):
    """Some entries, oldest first; `next` continues after them."""

    entries: list[ExportedEntry]
    next: int


class Recovery(Struct, frozen=True):
    """What was wrong with a journal's files, and what became of them.

    Args:
        findings: what was wrong, in sentences.
        quarantined: the folder in which the damaged files lie now, as they were found.
        saved: entries that are in the new journal, under the identity that they had.
        saved_pending: those of them that Redis had not confirmed, as far as is known: what is
            not known to be confirmed is sent again, which is safe.
        unreadable: records that were found with a broken seal, and are not in it.
        missing: `incarnation first-last`: sequences up to the last known one that were not found;
            those that were dropped because Redis had them are among them.
        incarnation: the new identity.
    """

    findings: list[str]
    quarantined: str
    saved: int
    saved_pending: int
    unreadable: int
    missing: list[str]
    incarnation: str

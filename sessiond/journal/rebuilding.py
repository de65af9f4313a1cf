"""A new journal of what can be read of a damaged one; or of nothing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from msgspec import Struct

from sessiond.journal import carving
from sessiond.journal.connection import (
    PAGE_BYTES,
    WIDTHS,
    Connection,
    create_tables,
    in_one_transaction,
    insert,
    open_file,
)
from sessiond.journal.identity import DAMAGED, add_identity
from sessiond.journal.options import JournalOptions
from sessiond.journal.reading import read_contents
from sessiond.journal.record import (
    Row,
    Span,
    decode_operations,
    identity_and_sequence,
    sealed,
    unsealed,
)
from sessiond.journal.watermark import Mark

_TABLES = {width: table for table, width in WIDTHS.items()}


class Saved(Struct, frozen=True):
    """What went into a new journal."""

    entries: int
    pending: int
    unreadable: int
    missing: list[str]
    incarnation: str


def rebuild(
    path: Path,
    options: JournalOptions,
    *,
    file: bytes,
    log: bytes,
    reason: str,
    mark: Mark | None,
) -> Saved:
    """Build a journal at a path, durably, with a new identity.

    Every row goes in whose seal is right, under the identity that it has. An entry that is not
    known to be confirmed counts as pending: Redis recognises what it has.

    Raises:
        sqlite3.Error, OSError: the disk is full, or fails.
    """
    connection = open_file(path, options.connect)
    salvage = _Salvage(connection)
    try:
        in_one_transaction(connection, lambda: salvage.fill(file, log))
        add_identity(connection, options, reason)
        contents = read_contents(connection)
    finally:
        connection.close()  # which moves all of it from the log into the file, synced
    return Saved(
        entries=contents.entries,
        pending=contents.index.pending,
        unreadable=len(salvage.broken - salvage.found),
        missing=_missing(salvage.spans, mark),
        incarnation=contents.index.identity.incarnation,
    )


class _Salvage:
    """Puts into a new journal what is carved out of an old one."""

    def __init__(self, connection: Connection) -> None:
        self.found: set[tuple[str, int]] = set()
        self.broken: set[tuple[str, int]] = set()
        self.spans: list[Span] = []
        self._connection = connection
        self._writers: dict[int, str] = {}

    def fill(self, file: bytes, log: bytes) -> None:
        create_tables(self._connection)
        for row in carving.rows(file, log, PAGE_BYTES):
            table = _TABLES.get(len(row))
            if table and (table, row[0]) not in self.found:
                self._take(table, row)
        self._name_writers()
        self._connection.execute(
            "DELETE FROM confirmed WHERE number NOT IN (SELECT number FROM entries)"
        )

    def _take(self, table: str, row: Row) -> None:
        columns = unsealed(table, row)
        if columns is None:
            self.broken.add((table, row[0]))
        elif table != "entries" or self._fits(columns):
            self.found.add((table, row[0]))
            insert(self._connection, table, [row])

    def _fits(self, columns: Row) -> bool:
        """Tell whether nothing that was found before has one of the entry's sequences.

        What a failed write left in the log may have: its sequences were given to others.
        """
        number, incarnation = columns[:2]
        identity, first = identity_and_sequence(number)
        span = Span(incarnation, first, len(decode_operations(columns[-1])))
        query = (
            "SELECT max(number), operations FROM entries WHERE number < ? "
            "UNION ALL SELECT min(number), NULL FROM entries WHERE number > ?"
        )
        (before, operations), (behind, _) = self._connection.execute(query, (number, number))
        if before is not None and before + len(decode_operations(operations)) > number:
            return False
        if behind is not None and number + span.count > behind:
            return False
        self._writers[identity] = incarnation
        self.spans.append(span)
        return True

    def _name_writers(self) -> None:
        """Write down the identities that only their entries tell of."""
        for number, incarnation in self._writers.items():
            if ("identities", number) not in self.found:
                row = sealed("identities", number, incarnation, 0, DAMAGED)
                insert(self._connection, "identities", [row])


def _missing(spans: list[Span], mark: Mark | None) -> list[str]:
    """Return which sequences are not there between those that are, and up to the watermark."""
    by_writer: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.first):
        start = Span(span.incarnation, 1, 0)
        by_writer.setdefault(span.incarnation, [start]).append(span)
    if mark and mark.sequence:
        end = Span(mark.incarnation, mark.sequence + 1, 0)
        by_writer.setdefault(mark.incarnation, [Span(mark.incarnation, 1, 0)]).append(end)
    return [
        f"{writer} {before.last + 1}-{span.first - 1}"
        for writer, found in by_writer.items()
        for before, span in pairwise(found)
        if before.last + 1 < span.first
    ]

"""The open journal, for the one thread that works on it: its writes, and its pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from sessiond.errors import JournalUnavailable
from sessiond.journal.connection import (
    Connection,
    in_one_transaction,
    insert,
    is_damage,
    unavailable,
)
from sessiond.journal.index import Index
from sessiond.journal.options import MIB, JournalOptions
from sessiond.journal.reading import read_contents
from sessiond.journal.rebuilding import OLDER, add_identity
from sessiond.journal.record import Entry, Row, entry_number, entry_of, sealed, unsealed
from sessiond.journal.reports import Status, Verdict
from sessiond.journal.transaction import Confirmation, Draft, Outcome, Transaction
from sessiond.journal.watermark import Mark, Watermark

_PAGE_ENTRIES = 256
_PAGE_BYTES = 4 * MIB
_LOG_BYTES = 16 * MIB
_COMMIT_BYTES = 32 * 1024  # pages that are written beside the entries
_LOOK_FOR_OLD_MS = 1000
_JOINED = (
    "SELECT e.number, incarnation, session_id, key, e.at_ms, operations, e.seal, "
    "c.number, position, c.at_ms, c.seal FROM entries e LEFT JOIN confirmed c "
    "ON c.number = e.number WHERE "
)
_ENTRY_COLUMNS = 7
_PENDING = "c.number IS NULL AND e.number > ? ORDER BY e.number LIMIT ?"
_THESE = "e.number IN (SELECT value FROM json_each(?)) ORDER BY e.number"
_ALL = "e.number > ? ORDER BY e.number LIMIT ?"

Page = tuple[list[Entry], int]
"""Entries in order, and the number behind which the next page begins."""


class Damaged(Exception):
    """The file is not what was written: the journal is to be opened anew, which saves it."""


class Ledger:
    """One connection and what is known of its content. For one thread.

    Raises:
        JournalUnavailable: by every method: the disk is full, or fails. Nothing has changed then.
        Damaged: by every method.
    """

    def __init__(
        self, connection: Connection, index: Index, options: JournalOptions, watermark: Watermark
    ) -> None:
        self.index = index
        self.connection = connection
        self._options = options
        self._watermark = watermark
        self._unwritten: list[Confirmation] = []
        self._sequence_at_opening: int | None = index.last_sequence
        self._pending_from = 0
        self._log_bytes = 0
        self._looked_for_old_ms = 0
        self._note()

    def confirm(self, confirmations: list[Confirmation]) -> None:
        """Remember what Redis has; it is written with the next transaction."""
        self._unwritten += confirmations

    def write(self, drafts: list[Draft]) -> list[Outcome]:
        """Write groups in one transaction, with what was confirmed before.

        Returns:
            For each its sequences, which are durable; or why it was refused.
        """
        outcomes: list[Outcome] = []
        transaction = Transaction(self.connection, self.index, self._options)
        looks_for_old = self._options.clock() - self._looked_for_old_ms >= _LOOK_FOR_OLD_MS

        def work() -> None:
            transaction.confirm(self._unwritten)
            if looks_for_old or self.index.kept_bytes > self._options.kept_bytes:
                transaction.drop()
            outcomes.extend(transaction.place(drafts))

        with _translated():
            in_one_transaction(self.connection, work)
        if looks_for_old:
            self._looked_for_old_ms = self._options.clock()
        self._unwritten = []
        self._log_bytes += transaction.follow() + _COMMIT_BYTES
        self._note()
        return outcomes

    def tidy(self) -> None:
        """Move the log into the file when it is long; a full disk may keep us from it."""
        if self._log_bytes >= _LOG_BYTES:
            self._checkpoint("PASSIVE")

    def renew_if_older(self, sequence: int) -> bool:
        """Become somebody new if this journal cannot have written a sequence that Redis knows."""
        last = self.index.last_sequence
        if self._sequence_at_opening is not None:
            last = self._sequence_at_opening
        if sequence > last:
            self._settle_confirmed()
            with _translated():
                in_one_transaction(self.connection, lambda: self._renew(last))
            self._checkpoint("TRUNCATE")  # so that no log tells of entries by their former numbers
            self._reread()
        self._sequence_at_opening = None
        return sequence > last

    def pending_after(self, number: int) -> Page:
        """Return a page of entries that Redis is not known to have."""
        self._settle_confirmed()
        return self._page(_PENDING, (max(number, self._pending_from), _PAGE_ENTRIES), number)

    def entries_after(self, session_id: str, number: int) -> Page:
        """Return a page of a session's entries."""
        self._settle_confirmed()
        numbers = self.index.after(session_id, number, _PAGE_ENTRIES)
        return self._page(_THESE, (msgspec.json.encode(numbers).decode(),), number)

    def all_after(self, number: int) -> Page:
        """Return a page of all entries."""
        self._settle_confirmed()
        return self._page(_ALL, (number, _PAGE_ENTRIES), number)

    def status(self) -> Status:
        """Return the counts."""
        self._settle_confirmed()
        index = self.index
        return Status(
            incarnation=index.identity.incarnation,
            last_sequence=index.last_sequence,
            pending=index.pending,
            pending_bytes=index.pending_bytes,
            kept=index.kept,
            kept_bytes=index.kept_bytes,
            oldest_pending_ms=self._oldest_pending_ms() if index.pending else None,
        )

    def verify(self) -> Verdict:
        """Read everything; writers wait meanwhile."""
        self._settle_confirmed()
        try:
            contents = read_contents(self.connection)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise unavailable(error) from error
            return Verdict(0, [f"SQLite cannot read it: {error}"])
        return Verdict(contents.entries, contents.faults)

    def close(self) -> None:
        """Write what was confirmed, and let go of the file."""
        with suppress(JournalUnavailable, Damaged):  # the next opening sees to it
            self._settle_confirmed()
        self._watermark.sync()
        with suppress(sqlite3.Error):
            self.connection.close()

    def _settle_confirmed(self) -> None:
        if self._unwritten:
            self.write([])

    def _renew(self, last: int) -> None:
        """Add an identity, and give it the entries since the opening: none of them was sent."""
        former = self.index.identity.number
        number, incarnation, *_ = add_identity(self.connection, self._options, OLDER)
        begin, end = entry_number(former, last + 1), entry_number(former + 1, 0)
        moved = "FROM entries WHERE number >= ? AND number < ?"
        place = begin
        while rows := self.connection.execute(
            f"SELECT * {moved} ORDER BY number LIMIT ?",
            (place, end, _PAGE_ENTRIES),
        ).fetchall():
            place = rows[-1][0] + 1
            offset = entry_number(number, 1) - begin
            again = [sealed("entries", row[0] + offset, incarnation, *row[2:-1]) for row in rows]
            insert(self.connection, "entries", again)
        self.connection.execute(f"DELETE {moved}", (begin, end))

    def _reread(self) -> None:
        with _translated():
            contents = read_contents(self.connection)
        if contents.faults:
            raise Damaged(contents.faults[0])
        self.index = contents.index
        self._pending_from = 0
        self._note()

    def _page(self, where: str, parameters: Row, number: int) -> Page:
        """Return the entries of a query, as many as a page may have; `number` where none is."""
        entries: list[Entry] = []
        size = 0
        with _translated():
            cursor = self.connection.execute(_JOINED + where, parameters)
            for row in cursor:
                entries.append(_entry(row))
                number, size = row[0], size + len(row[5])
                if size >= _PAGE_BYTES:
                    break
            cursor.close()
        return entries, number

    def _oldest_pending_ms(self) -> int | None:
        entries, number = self._page(_PENDING, (self._pending_from, 1), 0)
        self._pending_from = max(number - 1, 0)
        return entries[0].at_ms if entries else None

    def _checkpoint(self, mode: str) -> None:
        try:
            self.connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.Error as error:
            if is_damage(error):
                raise Damaged(str(error)) from error
            return  # the disk is full: what is in the log is as durable there
        self._log_bytes = 0
        self._watermark.sync()

    def _note(self) -> None:
        self._watermark.write(Mark(self.index.identity.incarnation, self.index.last_sequence))


def _entry(row: Row) -> Entry:
    columns = unsealed("entries", row[:_ENTRY_COLUMNS])
    confirmed = row[_ENTRY_COLUMNS:]
    if columns is None or (confirmed[0] is not None and not unsealed("confirmed", confirmed)):
        raise Damaged(f"the seal of entry {row[0]} is broken")
    return entry_of(columns, confirmed[1])


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            raise Damaged(str(error)) from error
        raise unavailable(error) from error

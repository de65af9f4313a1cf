"""The open journal, for the one thread that works on it: its writes, and its pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import msgspec
from msgspec import structs

from sessiond.errors import JournalUnavailable
from sessiond.journal.connection import (
    ROWS_AT_ONCE,
    in_one_transaction,
    is_damage,
    unavailable,
)
from sessiond.journal.identity import OLDER
from sessiond.journal.opening import Opened
from sessiond.journal.options import MIB, JournalOptions
from sessiond.journal.reading import read_contents
from sessiond.journal.record import Entry, Row, Span, entry_of, unsealed
from sessiond.journal.reports import Status, Verdict
from sessiond.journal.transaction import Confirmation, Draft, Outcome, Transaction
from sessiond.journal.watermark import Mark, Watermark
from sessiond.sync.position import Position, parse_position

_PAGE_ENTRIES = 256
_PAGE_BYTES = 4 * MIB
_LOG_BYTES = 4 * MIB  # a checkpoint holds up writers, the longer the more there is to move
_COMMIT_BYTES = 8 * 1024  # pages that are written beside the entries
_LOOK_FOR_OLD_MS = 1000
_CONFIRMED_AT_ONCE = 64
_JOINED = (
    "SELECT e.number, incarnation, session_id, key, e.at_ms, operations, e.seal, "
    "c.number, position, c.at_ms, c.seal FROM entries e LEFT JOIN confirmed c "
    "ON c.number = e.number WHERE "
)
_ENTRY_COLUMNS = 7
_PENDING = "c.number IS NULL AND e.number > ? ORDER BY e.number LIMIT ?"
_THESE = "e.number IN (SELECT value FROM json_each(?)) ORDER BY e.number"
_NEWEST = (  # SQLite takes the other columns from the row that has the maximum
    "SELECT session_id, position, max(CAST(substr(position, instr(position, ':') + 1) AS INTEGER)) "
    "FROM confirmed JOIN entries USING (number) GROUP BY session_id"
)
_ALL = "e.number > ? ORDER BY e.number LIMIT ?"

Answer = TypeVar("Answer")

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

    def __init__(self, opened: Opened, options: JournalOptions, watermark: Watermark) -> None:
        self.index = opened.index
        self.connection = opened.connection
        self._may_extend = opened.is_new
        self._options = options
        self._watermark = watermark
        self._unwritten: list[Confirmation] = []
        self._pending_from = 0
        self._log_bytes = 0
        self._looked_for_old_ms = 0
        self._note()

    def confirm(self, confirmations: list[Confirmation]) -> None:
        """Remember what Redis has; it is written with the next transaction."""
        self._unwritten += confirmations

    def write(self, drafts: list[Draft]) -> list[Outcome]:
        """Write groups in one transaction; now and then with what was confirmed before.

        Returns:
            For each its sequences, which are durable; or why it was refused.
        """
        looks_for_old = self._options.clock() - self._looked_for_old_ms >= _LOOK_FOR_OLD_MS
        is_one_statement = self._may_extend and 0 < len(drafts) <= ROWS_AT_ONCE
        if is_one_statement and not looks_for_old and not self._must_settle:
            return self._run(lambda transaction: transaction.place(drafts), itself=True)

        def work(transaction: Transaction) -> list[Outcome]:
            transaction.confirm(self._unwritten)
            if looks_for_old or self.index.kept_bytes > self._options.kept_bytes:
                transaction.drop()
            return transaction.place(drafts)

        outcomes = self._run(work)
        self._unwritten = []
        if looks_for_old:
            self._looked_for_old_ms = self._options.clock()
        return outcomes

    @property
    def _must_settle(self) -> bool:
        """Whether what was confirmed is to be written: there is much of it, or it takes room."""
        is_half_full = 2 * self.index.pending_bytes > self._options.limit_bytes
        return len(self._unwritten) >= (1 if is_half_full else _CONFIRMED_AT_ONCE)

    def tidy(self) -> None:
        """Move the log into the file when it is long; a full disk may keep us from it."""
        if self._log_bytes >= _LOG_BYTES:
            self.checkpoint()

    def take_back(self, spans: list[Span]) -> None:
        """Forget what Redis confirmed of groups: it has lost them."""
        self.write([])  # what was confirmed before
        self._run(lambda transaction: transaction.take_back(spans))
        self._pending_from = 0

    def compare(self, incarnation: str, sequence: int) -> bool:
        """Begin a new incarnation if Redis knows a sequence that this journal does not.

        Returns:
            Whether it did.
        """
        if incarnation != self.index.identity.incarnation:
            return False
        is_older = sequence > self.index.last_sequence
        if is_older:
            self._run(lambda transaction: transaction.renew(OLDER))
        self._may_extend = True
        return is_older

    def pending_after(self, number: int) -> Page:
        """Return a page of entries that Redis is not known to have."""
        self._settle_confirmed()
        return self._page(_PENDING, (max(number, self._pending_from), _PAGE_ENTRIES), number)

    def entries_after(self, session_id: str, number: int) -> Page:
        """Return a page of a session's entries."""
        self._settle_confirmed()
        numbers = self.index.after(session_id, number, _PAGE_ENTRIES)
        entries, number = self._page(_THESE, (msgspec.json.encode(numbers).decode(),), number)
        return self._with_unwritten(entries), number

    def newest_confirmed(self) -> dict[str, Position]:
        """Return the highest position of each session."""
        self._settle_confirmed()
        with _translated():
            rows = self.connection.execute(_NEWEST).fetchall()
        return {session_id: parse_position(position) for session_id, position, _ in rows}

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
        with suppress(Damaged):  # the next opening sees to it
            self._settle_confirmed()
        self._watermark.sync()
        with suppress(sqlite3.Error):
            self.connection.close()

    def _settle_confirmed(self) -> None:
        """Write what was confirmed; where the disk is full, it is still pending for a reader."""
        if self._unwritten:
            with suppress(JournalUnavailable):
                self.write([])

    def _run(self, work: Callable[[Transaction], Answer], *, itself: bool = False) -> Answer:
        """Do something in one transaction, which is durable when this returns.

        `itself`: it is a single statement, and so a transaction by itself.
        """
        transaction = Transaction(
            self.connection, self.index, self._options, may_extend=self._may_extend
        )
        with _translated():
            if itself:
                answer = work(transaction)
            else:
                answer = in_one_transaction(self.connection, lambda: work(transaction))
        identity = self.index.identity
        self._log_bytes += transaction.follow() + _COMMIT_BYTES
        self._may_extend = self._may_extend or self.index.identity is not identity
        self._note()
        return answer

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

    def _with_unwritten(self, entries: list[Entry]) -> list[Entry]:
        """Return entries with what Redis confirmed of them that a full disk did not take yet."""
        said = {done.span: done.position for done in self._unwritten if done.position}
        if not said:
            return entries
        return [
            structs.replace(entry, position=said.get(entry.span) or entry.position)
            for entry in entries
        ]

    def _oldest_pending_ms(self) -> int | None:
        entries, number = self._page(_PENDING, (self._pending_from, 1), 0)
        self._pending_from = max(number - 1, 0)
        return entries[0].at_ms if entries else None

    def checkpoint(self) -> None:
        """Move the log into the file."""
        try:
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
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

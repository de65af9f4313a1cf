"""One SQLite file: its tables, how it is opened, and what its errors mean."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sessiond.errors import JournalUnavailable
from sessiond.journal.record import Row

PAGE_BYTES = 4096
FILE = "journal.db"
LOG = f"{FILE}-wal"

COLUMNS = {
    "identities": "number INTEGER PRIMARY KEY, incarnation TEXT, at_ms INTEGER, reason TEXT",
    "entries": (
        "number INTEGER PRIMARY KEY, incarnation TEXT, session_id TEXT, key TEXT, at_ms INTEGER, "
        "operations BLOB"
    ),
    "confirmed": "number INTEGER PRIMARY KEY, position TEXT, at_ms INTEGER",
}
"""Table → its columns; each has a seal over all of them as one more (see `record`).

`entries` never change; that Redis has one is a row of the same number in `confirmed`.
"""
WIDTHS = {table: columns.count(",") + 2 for table, columns in COLUMNS.items()}
"""Table → number of its columns, seal included: no two have the same."""

_PRAGMAS = (
    f"page_size={PAGE_BYTES}",
    "locking_mode=EXCLUSIVE",  # one process, one connection: no shared memory, fewer calls
    "journal_mode=WAL",
    "synchronous=FULL",  # the log is synced with every commit
    "wal_autocheckpoint=0",  # the ledger checkpoints between commits, not within one
    "journal_size_limit=67108864",  # a log that one large write made longer is cut again
    "secure_delete=ON",  # what was dropped cannot be carved out of a damaged file again
    "cache_size=-8192",
)
ROWS_AT_ONCE = 128
"""So many rows are inserted by one statement."""
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_SHORT_READ = 522  # SQLITE_IOERR_SHORT_READ: the file ends within a page


Answer = TypeVar("Answer")


class Cursor(Protocol):
    """What a statement gives."""

    def __iter__(self) -> Iterator[Any]: ...

    def fetchone(self) -> Any:
        """Return the next row, or None."""

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""

    def close(self) -> None:
        """End the statement, read or not."""


class Connection(Protocol):
    """What the journal needs of a connection; its errors are those of sqlite3."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction was begun and not ended."""

    def execute(self, sql: str, parameters: Row = ..., /) -> Cursor:
        """Begin a statement."""

    def close(self) -> None:
        """Let go of the file."""


Connect = Callable[[Path], Connection]
"""Opens the file of a path that exists."""


def connect(path: Path) -> Connection:
    """Open a file with the standard library's SQLite."""
    return sqlite3.connect(
        path, isolation_level=None, timeout=0, cached_statements=2 * ROWS_AT_ONCE
    )


def open_file(path: Path, connect: Connect) -> Connection:
    """Open the journal's file at a path, created readable for its owner alone where missing."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    connection = connect(path)
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def create_tables(connection: Connection) -> None:
    """Make a new file a journal."""
    for table, columns in COLUMNS.items():
        connection.execute(f"CREATE TABLE {table} ({columns}, seal BLOB)")


def insert(connection: Connection, table: str, rows: list[Row]) -> None:
    """Insert rows, many with one statement.

    SQLite's module gives up the interpreter's lock for every statement, and waits for it
    afterwards: with an event loop that is busy, one statement a row would cost milliseconds each.
    """
    for place in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[place : place + ROWS_AT_ONCE]
        values = [value for row in some for value in row]
        connection.execute(_insertion(table, len(some)), tuple(values))


@cache
def _insertion(table: str, count: int) -> str:
    row = f"({', '.join('?' * WIDTHS[table])})"
    return f"INSERT INTO {table} VALUES {', '.join([row] * count)}"  # noqa: S608 - constants


def in_one_transaction(connection: Connection, work: Callable[[], Answer]) -> Answer:
    """Do work that is durable, all of it, when this returns; or has no effect, and raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        answer = work()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return answer


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether an error says that the file is not what was written; else it may pass."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # raised by the module itself: a text that is none
        return isinstance(error, sqlite3.OperationalError)
    return code == _SHORT_READ or code & 0xFF in _DAMAGE


def unavailable(error: Exception) -> JournalUnavailable:
    """Return what a caller is told of an error that may pass."""
    return JournalUnavailable(
        f"the journal cannot be written or read now: {error}",
        hint="make room on its disk, or see what the disk reports; then try again, with the same "
        "Idempotency-Key where the request had one",
    )

"""The replica's SQLite file. Used from one thread.

It need not be durable, only whole: WAL with synchronous=NORMAL loses the last transactions when
the power fails, and they come again from Redis.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from sessiond.folders import PRIVATE_FILE
from sessiond.sync.entry import Entry
from sessiond.sync.outline import Outline
from sessiond.sync.position import Position
from sessiond.sync.preferences import PreferenceChanges
from sessiond.sync.unlogged import Unlogged

FILE = "replica.db"
VERSION = 2
"""Of the tables, and of what lies in them encoded."""

_PRAGMAS = (
    "locking_mode=EXCLUSIVE",  # one process, one connection: no shared memory
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "journal_size_limit=16777216",
    "cache_size=-4096",
)
_TABLES = (
    """
    CREATE TABLE sessions (session_id TEXT PRIMARY KEY, workspace TEXT, epoch TEXT, offset INTEGER,
                           bytes INTEGER, used_ms INTEGER, current_ms INTEGER,
                           line_bytes INTEGER, line_offset INTEGER, birth TEXT, deleted INTEGER,
                           outline BLOB)
    """,
    "CREATE TABLE entries (number INTEGER PRIMARY KEY, session_id TEXT, entries BLOB)",
    "CREATE INDEX entries_of_session ON entries (session_id, number)",
    "CREATE TABLE lines (session_id TEXT PRIMARY KEY, offset INTEGER, lines BLOB)",
    """
    CREATE TABLE conflicts (session_id TEXT, offset INTEGER, fields BLOB,
                            PRIMARY KEY (session_id, offset))
    """,
    "CREATE TABLE users (user_id TEXT PRIMARY KEY, changes BLOB, read_ms INTEGER)",
    "CREATE TABLE seen (current_ms INTEGER)",
    "INSERT INTO seen VALUES (0)",
)
_DROPS = (
    "DELETE FROM entries WHERE session_id = ?",
    "DELETE FROM lines WHERE session_id = ?",
    "DELETE FROM conflicts WHERE session_id = ?",
)
_MOST_USERS = 100
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})

_ENTRIES = msgspec.msgpack.Decoder(list[Entry])
_LINES = msgspec.msgpack.Decoder(dict[str, str])
_FIELDS = msgspec.msgpack.Decoder(list[bytes])
_OUTLINE = msgspec.json.Decoder(Outline)
_CHANGES = msgspec.json.Decoder(PreferenceChanges)


class Copy(Struct):
    """What this machine has of a session, but for its content.

    Attributes:
        workspace: where its publications are heard.
        position: how far its log was copied.
        size: bytes of what is kept of it.
        used_ms: when somebody here last had to do with it, in ms since 1970.
        current_ms: when it was last known to be all that Redis had; 0 for never.
        line_bytes: of the size, what the lines take: see `Unlogged`.
        line_offset: the log's last offset when the lines were read.
        birth: epoch of the first operation: what tells a session from another one of its id.
        deleted: whether only its deletion is left of it.
    """

    session_id: str
    workspace: str
    position: Position
    size: int
    used_ms: int
    current_ms: int
    line_bytes: int = 0
    line_offset: int = 0
    birth: str = ""
    deleted: bool = False


class More(Struct, frozen=True):
    """What comes to a session's content, encoded. `lines`: all of them; None for no others."""

    entries: bytes = b""
    conflicts: dict[int, bytes] = {}
    lines: bytes | None = None


class ReplicaFile:
    """The tables in one file, made anew where it is damaged or of another version.

    Raises:
        sqlite3.Error: by every method: the disk fails or is full, or another process uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.lost = ""
        """Why what lay here before was thrown away; empty when it was not."""
        try:
            self._connection = _opened(self._path)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self.make_anew(str(error))

    def make_anew(self, why: str) -> None:
        """Throw everything away, and begin with an empty file."""
        self.lost = why
        if hasattr(self, "_connection"):
            self._connection.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(FILE + suffix).unlink(missing_ok=True)
        self._connection = _opened(self._path)

    def copies(self) -> list[Copy]:
        """Return what is known of all sessions."""
        rows = self._connection.execute(
            "SELECT session_id, workspace, epoch, offset, bytes, used_ms, current_ms, line_bytes, "
            "line_offset, birth, deleted FROM sessions"
        )
        return [Copy(row[0], row[1], Position(row[2], row[3]), *row[4:]) for row in rows]

    def outlines(self) -> list[Outline]:
        """Return what all sessions are beside their messages."""
        rows = self._connection.execute("SELECT outline FROM sessions")
        return [_OUTLINE.decode(outline) for (outline,) in rows]

    def current_ms(self) -> int:
        """Return when all sessions were last known to be what Redis had."""
        (found,) = self._connection.execute("SELECT current_ms FROM seen").fetchone()
        return int(found)

    def outline(self, session_id: str) -> Outline | None:
        """Return what a session is beside its messages; None where it is not here."""
        row = self._connection.execute(
            "SELECT outline FROM sessions WHERE session_id = ?", (session_id,)
        ).fetchone()
        return None if row is None else _OUTLINE.decode(row[0])

    def entries(self, session_id: str) -> list[Entry]:
        """Return a session's log."""
        rows = self._connection.execute(
            "SELECT entries FROM entries WHERE session_id = ? ORDER BY number", (session_id,)
        )
        return [entry for (encoded,) in rows for entry in _ENTRIES.decode(encoded)]

    def unlogged(self, session_id: str) -> Unlogged:
        """Return what a session's log does not tell, as far as the lines go."""
        row = self._connection.execute(
            "SELECT offset, lines FROM lines WHERE session_id = ?", (session_id,)
        ).fetchone()
        conflicts = self._connection.execute(
            "SELECT offset, fields FROM conflicts WHERE session_id = ?", (session_id,)
        )
        if row is None:
            return Unlogged()
        return Unlogged(
            row[0],
            _LINES.decode(row[1]),
            {offset: _FIELDS.decode(fields) for offset, fields in conflicts},
        )

    def put(self, copy: Copy, outline: Outline, more: More, *, anew: bool) -> None:
        """Keep what a session is now, and add to its content, or begin that anew."""
        session_id, position = copy.session_id, copy.position
        row = (
            *(session_id, copy.workspace, position.epoch, position.offset, copy.size),
            *(copy.used_ms, copy.current_ms, copy.line_bytes, copy.line_offset),
            *(copy.birth, copy.deleted),
        )
        with self._transaction():
            if anew:
                self._drop_content(session_id)
            if more.entries:
                self._connection.execute(
                    "INSERT INTO entries (session_id, entries) VALUES (?, ?)",
                    (session_id, more.entries),
                )
            self._connection.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, msgspec.json.encode(outline)),
            )
            self._connection.executemany(
                "INSERT OR REPLACE INTO conflicts VALUES (?, ?, ?)",
                [(session_id, offset, fields) for offset, fields in more.conflicts.items()],
            )
            if more.lines is not None:
                self._connection.execute(
                    "INSERT OR REPLACE INTO lines VALUES (?, ?, ?)",
                    (session_id, position.offset, more.lines),
                )

    def drop(self, session_ids: list[str]) -> None:
        """Forget sessions."""
        with self._transaction():
            for session_id in session_ids:
                self._drop_content(session_id)
                self._connection.execute("DELETE FROM sessions WHERE session_id = ?", (session_id,))

    def note(self, times: dict[str, tuple[int, int]], current_ms: int) -> None:
        """Note when sessions were used and were current, and when all of them were current."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE sessions SET used_ms = ?, current_ms = ? WHERE session_id = ?",
                [(*both, session_id) for session_id, both in times.items()],
            )
            self._connection.execute("UPDATE seen SET current_ms = ?", (current_ms,))

    def user(self, user_id: str) -> tuple[PreferenceChanges, int] | None:
        """Return what a user's preferences are made of, and when Redis had that (ms)."""
        row = self._connection.execute(
            "SELECT changes, read_ms FROM users WHERE user_id = ?", (user_id,)
        ).fetchone()
        return None if row is None else (_CHANGES.decode(row[0]), int(row[1]))

    def keep_user(self, user_id: str, changes: PreferenceChanges, read_ms: int) -> None:
        """Keep what a user's preferences are made of; of users those that were read last."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO users VALUES (?, ?, ?)",
                (user_id, msgspec.json.encode(changes), read_ms),
            )
            self._connection.execute(
                "DELETE FROM users WHERE user_id NOT IN "
                "(SELECT user_id FROM users ORDER BY read_ms DESC LIMIT ?)",
                (_MOST_USERS,),
            )

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _drop_content(self, session_id: str) -> None:
        for statement in _DROPS:
            self._connection.execute(statement, (session_id,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def encoded(
    entries: list[Entry], conflicts: dict[int, list[bytes]], lines: dict[str, str] | None
) -> More:
    """Return what comes to a session as the file keeps it."""
    encode = msgspec.msgpack.encode
    return More(
        encode(entries) if entries else b"",
        {offset: encode(fields) for offset, fields in conflicts.items()},
        None if lines is None else encode(lines),
    )


def is_damage(error: Exception) -> bool:
    """Tell whether an error says that the file is not what was written."""
    if isinstance(error, msgspec.MsgspecError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGE


def _opened(path: Path) -> sqlite3.Connection:
    """Open the file, created readable for its owner alone where it is missing."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(path, flags, PRIVATE_FILE))
    connection = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").fetchall()
        _create_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _create_tables(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
        raise _OtherVersion(f"it is of version {version}, this is version {VERSION}")
    connection.execute("BEGIN IMMEDIATE")
    for table in _TABLES:
        connection.execute(table)
    connection.execute(f"PRAGMA user_version={VERSION}")
    connection.execute("COMMIT")


class _OtherVersion(sqlite3.DatabaseError):
    """What lies in the file was written by another release."""

    sqlite_errorcode = sqlite3.SQLITE_FORMAT

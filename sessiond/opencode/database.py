"""opencode's own database, read only: its durable log of events, and the records as they stand.

Reads are short and never write: opencode waits at most five seconds for a lock. Source of the
tables: opencode 1.18.33 (`event`, `event_sequence`, `session`, `message`, `part`, `project`).
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from sessiond.errors import DatabaseUnreadable
from sessiond.opencode.mapping import REPLAYED
from sessiond.opencode.records import SessionRow, SessionState, StoredEvent, Writing

STRETCH = 200
"""Events that one read returns at most."""

_BUSY_SECONDS = 1.0
_UNREADABLE = (
    *(sqlite3.Error, msgspec.DecodeError),
    *(LookupError, TypeError, ValueError, RecursionError),  # a record that is none, a column less
)
_SESSION_EVENTS = "('session.created.1', 'session.updated.1')"
_WRITERS = (
    (_SESSION_EVENTS, "$.sessionID"),
    ("('message.updated.1')", "$.info.id"),
    ("('message.part.updated.1')", "$.part.id"),
)
_HALF_CHARACTER = re.compile(
    r"(\\\\|\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w)|\\u[dD][89a-fA-F]\w\w", re.ASCII
)
_JSON_COLUMNS = ("model", "permission", "revert", "metadata")
_PLAIN_COLUMNS = {
    "id": "id",
    "slug": "slug",
    "projectID": "project_id",
    "directory": "directory",
    "path": "path",
    "parentID": "parent_id",
    "title": "title",
    "agent": "agent",
    "version": "version",
    "cost": "cost",
}


class Database:
    """One `opencode.db`. Not for several threads at once.

    Raises:
        DatabaseUnreadable: by every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._opened = ""
        self._openings = 0

    def close(self) -> None:
        """Close the connection; the next read opens another."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def identity(self) -> str:
        """Return what tells this file from one that replaced it."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise DatabaseUnreadable(f"{self.path} cannot be read: {error}") from error
        return f"{found.st_dev}:{found.st_ino}"

    def notes(self) -> dict[str, set[str]]:
        """Return what the plugin noted beside the database: sessions by `private`, `deleted`."""
        path = self._notes_path
        notes: dict[str, set[str]] = {"private": set(), "deleted": set()}
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return notes
        except OSError as error:
            raise DatabaseUnreadable(f"{path} cannot be read: {error}") from error
        for line in lines:
            what, _, session_id = line.partition(" ")
            notes.setdefault(what, set()).add(session_id)
        return notes

    @property
    def _notes_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.sessiond")

    def version(self) -> tuple[int, ...]:
        """Return numbers that change with every commit of somebody else, and with every note.

        SQLite counts anew for each connection, so another one always has another number.
        """
        with self._reading() as connection:
            commits = int(connection.execute("PRAGMA data_version").fetchone()[0])
        try:
            noted = self._notes_path.stat().st_size
        except OSError:
            noted = 0
        return self._openings, commits, noted

    def sessions(self, project_id: str) -> dict[str, SessionRow]:
        """Return the sessions of a project."""
        query = (
            "SELECT s.id, s.project_id, s.title, s.time_updated, coalesce(e.seq, -1) "
            "FROM session s LEFT JOIN event_sequence e ON e.aggregate_id = s.id "
            "WHERE s.project_id = ?"
        )
        with self._reading() as connection:
            return {row[0]: SessionRow(*row) for row in connection.execute(query, (project_id,))}

    def events(self, session_id: str, after: int, up_to: int) -> list[StoredEvent]:
        """Return events of a session's log, without what sessiond itself replayed into it.

        Args:
            session_id: whose log.
            after: the sequence after which to begin.
            up_to: the last sequence wanted; large logs are returned in stretches.
        """
        query = (
            "SELECT seq, id, type, data FROM event WHERE aggregate_id = ? AND seq > ? AND seq <= ? "
            "AND id NOT LIKE ? ORDER BY seq LIMIT ?"
        )
        values = (session_id, after, up_to, f"{REPLAYED}%", STRETCH)
        with self._reading() as connection:
            rows = connection.execute(query, values).fetchall()
            return [StoredEvent(seq, id_, kind, _object(data)) for seq, id_, kind, data in rows]

    def seq(self, session_id: str) -> int:
        """Return the last sequence of a session's log, -1 when it has none."""
        query = "SELECT seq FROM event_sequence WHERE aggregate_id = ?"
        with self._reading() as connection:
            row = connection.execute(query, (session_id,)).fetchone()
            return row[0] if row else -1

    def sequence_of(self, event_id: str) -> int | None:
        """Return the place of an event in its session's log; None when it is not there."""
        query = "SELECT seq FROM event WHERE id = ?"
        with self._reading() as connection:
            row = connection.execute(query, (event_id,)).fetchone()
            return row[0] if row else None

    def state(self, session_id: str) -> SessionState | None:
        """Return a session's records, all of one moment; None when there is no such session."""
        with self._reading() as connection:
            connection.execute("BEGIN")
            try:
                return _state(connection, session_id)
            finally:
                connection.execute("ROLLBACK")

    def info(self, session_id: str) -> dict[str, Any] | None:
        """Return a session's record as events carry it; None when there is no such session."""
        with self._reading() as connection:
            return _info(connection, session_id)

    def is_complete(self, session_id: str) -> bool:
        """Tell whether a session's log tells all of it: not so when the session is older."""
        query = (
            "SELECT 1 FROM event WHERE aggregate_id = ? AND seq = 0 AND type = 'session.created.1'"
        )
        with self._reading() as connection:
            return connection.execute(query, (session_id,)).fetchone() is not None

    def is_brought(self, session_id: str) -> bool:
        """Tell whether a session's log begins with what sessiond brought: it came from others."""
        query = "SELECT 1 FROM event WHERE aggregate_id = ? AND seq = 0 AND id LIKE ?"
        with self._reading() as connection:
            found = connection.execute(query, (session_id, f"{REPLAYED}%"))
            return found.fetchone() is not None

    def last_event(self, session_id: str, record_id: str) -> str | None:
        """Return the id of the event that last wrote a record: "", a message or a part."""
        found = self._writing(session_id, record_id, "DESC")
        return found.id if found else None

    def first_writing(self, session_id: str, record_id: str) -> Writing | None:
        """Return where a record, even one that is gone, was written first; None if no log says."""
        return self._writing(session_id, record_id, "ASC")

    def newest_message_at(self, session_id: str) -> int:
        """Return the time (ms) of the message that opencode takes for the last; 0 without one."""
        query = "SELECT coalesce(max(time_created), 0) FROM message WHERE session_id = ?"
        with self._reading() as connection:
            return int(connection.execute(query, (session_id,)).fetchone()[0])

    def title_before(self, session_id: str, before: int) -> str | None:
        """Return the title that a session had at a place of its log; None if no event says."""
        query = (
            "SELECT json_extract(data, '$.info.title') FROM event "  # noqa: S608 - a constant
            f"WHERE aggregate_id = ? AND type IN {_SESSION_EVENTS} AND seq < ? "
            "ORDER BY seq DESC LIMIT 1"
        )
        with self._reading() as connection:
            row = connection.execute(query, (session_id, before)).fetchone()
            return row[0] if row and isinstance(row[0], str) else None

    def part_before(self, session_id: str, name: str, before: int) -> tuple[str, Any] | None:
        """Return the event that last wrote a part before a place, and the part; None for none.

        `name` is `<message>/<part>`, the place a sequence.
        """
        query = (
            "SELECT id, json_extract(data, '$.part') FROM event WHERE aggregate_id = ? AND seq < ? "
            "AND type = 'message.part.updated.1' AND json_extract(data, '$.part.id') = ? "
            "ORDER BY seq DESC LIMIT 1"
        )
        with self._reading() as connection:
            values = (session_id, before, name.rpartition("/")[2])
            row = connection.execute(query, values).fetchone()
            return (row[0], _object(row[1])) if row else None

    def reverted_since(self, session_id: str, before: int) -> int | None:
        """Return since when the revert was in force that was so at a place of a session's log.

        opencode writes a revert into the session's record, and again whenever it writes that. The
        first of the unbroken run with the same one is when it was made.

        Args:
            session_id: whose log.
            before: the place, a sequence.

        Returns:
            The sequence of the event that made it; None when no revert was in force.
        """
        query = (
            "SELECT seq, json_extract(data, '$.info.revert.messageID'), "  # noqa: S608 - a constant
            "json_extract(data, '$.info.revert.partID') FROM event "
            f"WHERE aggregate_id = ? AND type IN {_SESSION_EVENTS} AND seq < ? ORDER BY seq DESC"
        )
        with self._reading() as connection:
            since, in_force = None, None
            for seq, *place in connection.execute(query, (session_id, before)):
                in_force = in_force or place
                if place[0] is None or place != in_force:
                    break
                since = seq
            return since

    def _writing(
        self, session_id: str, record_id: str, order: Literal["ASC", "DESC"]
    ) -> Writing | None:
        kinds, place = _WRITERS[record_id.count("/") + 1 if record_id else 0]
        query = (
            f"SELECT seq, id FROM event WHERE aggregate_id = ? AND type IN {kinds} "  # noqa: S608 - constants
            f"AND json_extract(data, ?) = ? ORDER BY seq {order} LIMIT 1"
        )
        wanted = record_id.rpartition("/")[2] or session_id
        with self._reading() as connection:
            row = connection.execute(query, (session_id, place, wanted)).fetchone()
            return Writing(*row) if row else None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._current()
        except _UNREADABLE as error:
            self.close()
            raise DatabaseUnreadable(
                f"{self.path} cannot be read: {error!r}",
                hint="is it the database of a supported opencode?",
            ) from error

    def _current(self) -> sqlite3.Connection:
        """Return a connection to the files that stand at the path now.

        Whoever puts a backup in the place of a database also takes its log of writes away.
        """
        identity = self.identity() + self._log_identity()
        if self._connection is None or identity != self._opened:
            self.close()
            self._connection = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode=ro",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            self._opened = identity
            self._openings += 1
        return self._connection

    def _log_identity(self) -> str:
        try:
            return f" {self.path.with_name(f'{self.path.name}-wal').stat().st_ino}"
        except OSError:
            return ""


def _info(connection: sqlite3.Connection, session_id: str) -> dict[str, Any] | None:
    found = connection.execute("SELECT * FROM session WHERE id = ?", (session_id,))
    row = found.fetchone()
    if row is None:
        return None
    told = connection.execute(
        f"SELECT data FROM event WHERE aggregate_id = ? AND type IN {_SESSION_EVENTS} "  # noqa: S608 - a constant
        "ORDER BY seq DESC LIMIT 1",
        (session_id,),
    ).fetchone()
    if told:
        return dict(_object(told[0])["info"])
    return session_info(
        {column[0]: value for column, value in zip(found.description, row, strict=True)}
    )


def _state(connection: sqlite3.Connection, session_id: str) -> SessionState | None:
    info = _info(connection, session_id)
    if info is None:
        return None
    sequence = connection.execute(
        "SELECT seq FROM event_sequence WHERE aggregate_id = ?", (session_id,)
    ).fetchone()
    messages = connection.execute(
        "SELECT id, data, time_created FROM message WHERE session_id = ? ORDER BY time_created, id",
        (session_id,),
    ).fetchall()
    parts = connection.execute(
        "SELECT message_id, id, data FROM part WHERE session_id = ? ORDER BY id", (session_id,)
    ).fetchall()
    return SessionState(
        seq=sequence[0] if sequence else -1,
        info=info,
        messages={message_id: _object(data) for message_id, data, _ in messages},
        placed={message_id: at for message_id, _, at in messages},
        parts={f"{message_id}/{part_id}": _object(data) for message_id, part_id, data in parts},
    )


def session_info(row: dict[str, Any]) -> dict[str, Any]:
    """Return a session's `info` as events carry it, from its row.

    For sessions whose events opencode did not keep: those from before it had a log.
    """
    info = {name: row[column] for name, column in _PLAIN_COLUMNS.items() if row[column] is not None}
    info |= {name: _object(row[name]) for name in _JSON_COLUMNS if row[name] is not None}
    if row["summary_files"] is not None:
        names = ("additions", "deletions", "files")
        info["summary"] = {name: row[f"summary_{name}"] for name in names}
        if row["summary_diffs"] is not None:
            info["summary"]["diffs"] = _object(row["summary_diffs"])
    info["tokens"] = {
        "input": row["tokens_input"],
        "output": row["tokens_output"],
        "reasoning": row["tokens_reasoning"],
        "cache": {"read": row["tokens_cache_read"], "write": row["tokens_cache_write"]},
    }
    times = {name: row[f"time_{name}"] for name in ("created", "updated", "compacting", "archived")}
    info["time"] = {name: value for name, value in times.items() if value is not None}
    return info


def _object(data: str) -> Any:
    """Return what a column holds as JSON.

    JavaScript also writes halves of characters, where a text was cut within one; nobody else can
    take them, so a replacement character stands for each.
    """
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return msgspec.json.decode(_HALF_CHARACTER.sub(_replaced, data))


def _replaced(found: re.Match[str]) -> str:
    return found[1] or r"\ufffd"

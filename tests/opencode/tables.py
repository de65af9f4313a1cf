"""A database as opencode makes it, without opencode: for tests that only need what stands in it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE event_sequence (aggregate_id text PRIMARY KEY, seq integer NOT NULL, owner_id text);
CREATE TABLE event (id text PRIMARY KEY, aggregate_id text NOT NULL, seq integer NOT NULL,
  type text NOT NULL, data text NOT NULL);
CREATE UNIQUE INDEX event_aggregate_seq_idx ON event (aggregate_id, seq);
CREATE TABLE session (id text PRIMARY KEY, project_id text NOT NULL, workspace_id text,
  parent_id text, slug text NOT NULL, directory text NOT NULL, path text, title text NOT NULL,
  version text NOT NULL, share_url text, summary_additions integer, summary_deletions integer,
  summary_files integer, summary_diffs text, metadata text, cost real DEFAULT 0 NOT NULL,
  tokens_input integer DEFAULT 0 NOT NULL, tokens_output integer DEFAULT 0 NOT NULL,
  tokens_reasoning integer DEFAULT 0 NOT NULL, tokens_cache_read integer DEFAULT 0 NOT NULL,
  tokens_cache_write integer DEFAULT 0 NOT NULL, revert text, permission text, agent text,
  model text, time_created integer NOT NULL, time_updated integer NOT NULL,
  time_compacting integer, time_archived integer);
CREATE TABLE message (id text PRIMARY KEY, session_id text NOT NULL, time_created integer NOT NULL,
  time_updated integer NOT NULL, data text NOT NULL);
CREATE TABLE part (id text PRIMARY KEY, message_id text NOT NULL, session_id text NOT NULL,
  time_created integer NOT NULL, time_updated integer NOT NULL, data text NOT NULL);
"""


def make_database(path: Path) -> Path:
    """Create the tables of an empty opencode database."""
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA)
    connection.close()
    return path


def add_session(path: Path, session_id: str, project_id: str, now_ms: int, **info: Any) -> None:
    """Enter a session as opencode does: its row, and the event that created it."""
    times = {"created": now_ms, "updated": now_ms}
    whole = {
        "id": session_id,
        "slug": "a-slug",
        "projectID": project_id,
        "directory": "/home/dev/proj",
        "path": "",
        "title": "A title",
        "version": "1.18.33",
        "time": times,
    } | info
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO session (id, project_id, slug, directory, path, title, version, "
            "time_created, time_updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(session_id, project_id, whole["slug"], whole["directory"], whole["path"]),
                *(whole["title"], whole["version"], now_ms, now_ms),
            ),
        )
    connection.close()
    add_event(path, session_id, "session.created.1", {"sessionID": session_id, "info": whole})


def add_event(path: Path, session_id: str, kind: str, data: dict[str, Any]) -> int:
    """Enter an event into a session's log, and return its sequence."""
    with sqlite3.connect(path) as connection:
        (last,) = connection.execute(
            "SELECT coalesce(max(seq), -1) FROM event WHERE aggregate_id = ?", (session_id,)
        ).fetchone()
        seq = int(last) + 1
        connection.execute(
            "INSERT INTO event VALUES (?, ?, ?, ?, ?)",
            (f"evt_{session_id}{seq}", session_id, seq, kind, json.dumps(data)),
        )
        connection.execute(
            "INSERT OR REPLACE INTO event_sequence (aggregate_id, seq) VALUES (?, ?)",
            (session_id, seq),
        )
    connection.close()
    return seq

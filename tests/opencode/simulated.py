"""opencode without opencode: its tables, what it writes into them, and how it takes replays.

The schema is that of opencode 1.18.33, and so is what a replay does: it appends to the session's
log, takes an event's id once, and refuses what has no place.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sessiond.opencode.database import Database
from sessiond.opencode.protocol import OpencodeEvent

SCHEMA = """
CREATE TABLE `event_sequence` (`aggregate_id` text PRIMARY KEY, `seq` integer NOT NULL,
  `owner_id` text);
CREATE TABLE `event` (`id` text PRIMARY KEY, `aggregate_id` text NOT NULL, `seq` integer NOT NULL,
  `type` text NOT NULL, `data` text NOT NULL,
  CONSTRAINT `fk_event_aggregate_id_event_sequence_aggregate_id_fk` FOREIGN KEY (`aggregate_id`)
  REFERENCES `event_sequence`(`aggregate_id`) ON DELETE CASCADE);
CREATE UNIQUE INDEX `event_aggregate_seq_idx` ON `event` (`aggregate_id`,`seq`);
CREATE INDEX `event_aggregate_type_seq_idx` ON `event` (`aggregate_id`,`type`,`seq`);
CREATE TABLE `project` (`id` text PRIMARY KEY, `worktree` text NOT NULL, `vcs` text, `name` text,
  `icon_url` text, `icon_url_override` text, `icon_color` text, `time_created` integer,
  `time_updated` integer NOT NULL, `time_initialized` integer, `sandboxes` text NOT NULL,
  `commands` text);
CREATE TABLE `session` (`id` text PRIMARY KEY, `project_id` text NOT NULL, `workspace_id` text,
  `parent_id` text, `slug` text NOT NULL, `directory` text NOT NULL, `path` text,
  `title` text NOT NULL, `version` text NOT NULL, `share_url` text, `summary_additions` integer,
  `summary_deletions` integer, `summary_files` integer, `summary_diffs` text, `metadata` text,
  `cost` real DEFAULT 0 NOT NULL, `tokens_input` integer DEFAULT 0 NOT NULL,
  `tokens_output` integer DEFAULT 0 NOT NULL, `tokens_reasoning` integer DEFAULT 0 NOT NULL,
  `tokens_cache_read` integer DEFAULT 0 NOT NULL, `tokens_cache_write` integer DEFAULT 0 NOT NULL,
  `revert` text, `permission` text, `agent` text, `model` text, `time_created` integer NOT NULL,
  `time_updated` integer NOT NULL, `time_compacting` integer, `time_archived` integer,
  FOREIGN KEY (`project_id`) REFERENCES `project`(`id`) ON DELETE CASCADE);
CREATE INDEX `session_project_idx` ON `session` (`project_id`);
CREATE TABLE `message` (`id` text PRIMARY KEY, `session_id` text NOT NULL,
  `time_created` integer NOT NULL, `time_updated` integer NOT NULL, `data` text NOT NULL,
  FOREIGN KEY (`session_id`) REFERENCES `session`(`id`) ON DELETE CASCADE);
CREATE INDEX `message_session_time_created_id_idx` ON `message`
  (`session_id`,`time_created`,`id`);
CREATE TABLE `part` (`id` text PRIMARY KEY, `message_id` text NOT NULL, `session_id` text NOT NULL,
  `time_created` integer NOT NULL, `time_updated` integer NOT NULL, `data` text NOT NULL,
  FOREIGN KEY (`message_id`) REFERENCES `message`(`id`) ON DELETE CASCADE);
CREATE INDEX `part_message_id_id_idx` ON `part` (`message_id`,`id`);
CREATE INDEX `part_session_idx` ON `part` (`session_id`);
"""

PROJECT = "project"
NOW = 1_768_300_200_000

_ids = itertools.count(1)


class SimulatedOpencode:
    """One opencode and its database.

    Args:
        place: the database's file; in memory without one.
        worktree: the project's folder on this machine.
    """

    def __init__(self, place: Path | None = None, worktree: str = "/home/dev/proj") -> None:
        self.connection = sqlite3.connect(
            place or ":memory:", isolation_level=None, check_same_thread=False
        )
        self.worktree = worktree
        self.connection.execute("PRAGMA foreign_keys = ON")
        if place:
            self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.executescript(SCHEMA)
        self._run(
            "INSERT INTO project (id, worktree, time_updated, sandboxes) VALUES (?, ?, 0, '[]')",
            *(PROJECT, worktree),
        )
        self.database = Database(place) if place else _InMemory(self.connection)

    def close(self) -> None:
        self.database.close()
        self.connection.close()

    # What a person does here

    def info(self, session_id: str, **more: Any) -> dict[str, Any]:
        """A session's record as its first event has it."""
        return {
            "id": session_id,
            "slug": "clever-cactus",
            "projectID": PROJECT,
            "directory": self.worktree,
            "path": "",
            "title": "A title",
            "version": "1.18.33",
            "cost": 0,
            "tokens": {"input": 0, "output": 0, "reasoning": 0, "cache": {"read": 0, "write": 0}},
            "time": {"created": NOW, "updated": NOW},
        } | more

    def create(self, session_id: str, **more: Any) -> str:
        info = self.info(session_id, **more)
        return self.happen(session_id, "session.created", {"info": info})

    def update(self, session_id: str, **more: Any) -> str:
        info = self.database.info(session_id) or {}
        return self.happen(session_id, "session.updated", {"info": info | more})

    def message(self, session_id: str, message_id: str, **more: Any) -> str:
        info = {"id": message_id, "sessionID": session_id, "role": "user"}
        info |= {"time": {"created": NOW}} | more
        return self.happen(session_id, "message.updated", {"info": info})

    def part(self, session_id: str, message_id: str, part_id: str, text: str, **more: Any) -> str:
        part = {"id": part_id, "sessionID": session_id, "messageID": message_id}
        part |= {"type": "text", "text": text} | more
        return self.happen(session_id, "message.part.updated", {"part": part, "time": NOW})

    def remove_message(self, session_id: str, message_id: str) -> str:
        return self.happen(session_id, "message.removed", {"messageID": message_id})

    def remove_part(self, session_id: str, message_id: str, part_id: str) -> str:
        given = {"messageID": message_id, "partID": part_id}
        return self.happen(session_id, "message.part.removed", given)

    def revert(self, session_id: str, message_id: str, part_id: str = "") -> str:
        """Go back to before a message, or a part of it."""
        place = {"messageID": message_id} | ({"partID": part_id} if part_id else {})
        return self.update(session_id, revert=place)

    def clean_up(self, session_id: str) -> None:
        """Remove what a revert took out, as opencode does before the next prompt."""
        revert = (self.database.info(session_id) or {}).get("revert")
        if not revert:
            return
        whole, part_id = revert["messageID"], revert.get("partID", "")
        for name in [name for name in self.records(session_id) if "/" not in name]:
            if name > whole or (name == whole and not part_id):
                self.remove_message(session_id, name)
        for name in list(self.records(session_id)) if part_id else []:
            message_id, _, part = name.partition("/")
            if message_id == whole and part >= part_id:
                self.remove_part(session_id, message_id, part)
        self.update(session_id, revert=None)

    def delete(self, session_id: str) -> None:
        """Delete a session as a person does: its log goes with it."""
        self._run("DELETE FROM session WHERE id = ?", session_id)
        self._run("DELETE FROM event_sequence WHERE aggregate_id = ?", session_id)

    def happen(self, session_id: str, kind: str, data: dict[str, Any]) -> str:
        """Log an event of its own, and return its id."""
        event_id = f"evt_{next(_ids):012x}AbCdEfGhIjKlMn"
        self._append(session_id, event_id, f"{kind}.1", {"sessionID": session_id} | data)
        return event_id

    def forget_events(self, session_id: str) -> None:
        """Make a session one from before opencode had a log."""
        self._run("DELETE FROM event_sequence WHERE aggregate_id = ?", session_id)

    # What others have it take

    def replay(self, session_id: str, events: Iterable[OpencodeEvent]) -> list[str]:
        """Take events as the plugin brings them; return the ids of those that were refused."""
        refused = []
        for event in events:
            if self._one("SELECT 1 FROM event WHERE id = ?", event.id):
                continue
            exists = self._one("SELECT 1 FROM session WHERE id = ?", session_id)
            is_put = event.type in ("session.created", "session.updated")
            if not exists and event.type == "session.deleted":
                continue
            kind = "session.updated" if exists else "session.created"
            kind = kind if is_put else event.type
            data: dict[str, Any] = {"time": NOW} if kind == "message.part.updated" else {}
            data |= event.properties | {"sessionID": session_id}
            if exists and is_put:  # a revert is this machine's own
                kept = (self.database.info(session_id) or {}).get("revert")
                given = {name: v for name, v in data["info"].items() if name != "revert"}
                data["info"] = given | ({"revert": kept} if kept else {})
            if not exists and not is_put:
                refused.append(event.id)
                continue
            try:
                self._append(session_id, event.id, f"{kind}.1", data)
            except sqlite3.IntegrityError:
                refused.append(event.id)
        return refused

    # What there is

    def events(self, session_id: str) -> list[tuple[str, str]]:
        """The ids and types of a session's log."""
        query = "SELECT id, type FROM event WHERE aggregate_id = ? ORDER BY seq"
        return self.connection.execute(query, (session_id,)).fetchall()

    def records(self, session_id: str) -> dict[str, dict[str, Any]]:
        """All messages and parts, by message or `<message>/<part>`."""
        state = self.database.state(session_id)
        return {**state.messages, **state.parts} if state else {}

    # How it is done

    def _append(self, session_id: str, event_id: str, kind: str, data: dict[str, Any]) -> None:
        self._run("BEGIN IMMEDIATE")
        try:
            last = self._one("SELECT seq FROM event_sequence WHERE aggregate_id = ?", session_id)
            seq = last[0] + 1 if last else 0
            self._run(
                "INSERT INTO event_sequence (aggregate_id, seq) VALUES (?, ?) "
                "ON CONFLICT (aggregate_id) DO UPDATE SET seq = excluded.seq",
                *(session_id, seq),
            )
            text = json.dumps(data)
            self._run(
                "INSERT INTO event VALUES (?, ?, ?, ?, ?)", event_id, session_id, seq, kind, text
            )
            self._project(session_id, kind.removesuffix(".1"), data)
        except sqlite3.Error:
            self._run("ROLLBACK")
            raise
        self._run("COMMIT")

    def _project(self, session_id: str, kind: str, data: dict[str, Any]) -> None:
        match kind:
            case "session.created":
                columns = _columns(data["info"])
                marks = ", ".join("?" * len(columns))
                self._run(
                    f"INSERT INTO session ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
                    *columns.values(),
                )
            case "session.updated":
                columns = _columns(data["info"]) | {"revert": _json(data["info"].get("revert"))}
                sets = ", ".join(f"{name} = ?" for name in columns)
                self._run(
                    f"UPDATE session SET {sets} WHERE id = ?",  # noqa: S608
                    *(*columns.values(), session_id),
                )
            case "session.deleted":
                self._run("DELETE FROM session WHERE id = ?", session_id)
            case "message.updated":
                info = data["info"]
                self._run(
                    "INSERT INTO message VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                    "time_updated = excluded.time_updated, data = excluded.data",
                    *(info["id"], session_id, info["time"]["created"], NOW),
                    _without(info, "id", "sessionID"),
                )
            case "message.part.updated":
                part = data["part"]
                self._run(
                    "INSERT INTO part VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                    "time_updated = excluded.time_updated, data = excluded.data",
                    *(part["id"], part["messageID"], session_id, data["time"], NOW),
                    _without(part, "id", "sessionID", "messageID"),
                )
            case "message.removed":
                self._run("DELETE FROM message WHERE id = ?", data["messageID"])
            case "message.part.removed":
                self._run("DELETE FROM part WHERE id = ?", data["partID"])

    def _run(self, query: str, *values: Any) -> None:
        self.connection.execute(query, values)

    def _one(self, query: str, *values: Any) -> Any:
        return self.connection.execute(query, values).fetchone()


class _InMemory(Database):
    """Reads by the connection that writes, as nothing else can."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(Path("memory"))
        self._only = connection

    def identity(self) -> str:
        return "memory"

    def _current(self) -> sqlite3.Connection:
        return self._only


def _columns(info: dict[str, Any]) -> dict[str, Any]:
    """What a session's row holds of a record."""
    plain = ("id", "slug", "directory", "path", "title", "version", "agent", "cost")
    columns = {name: info[name] for name in plain if name in info}
    columns["project_id"] = info["projectID"]
    if "parentID" in info:
        columns["parent_id"] = info["parentID"]
    for name in ("metadata", "permission", "model"):
        if name in info:
            columns[name] = _json(info[name])
    for name, value in info.get("summary", {}).items():
        columns[f"summary_{name}"] = _json(value) if name == "diffs" else value
    tokens = info.get("tokens", {})
    for name in ("input", "output", "reasoning"):
        columns[f"tokens_{name}"] = tokens.get(name, 0)
    for name in ("read", "write"):
        columns[f"tokens_cache_{name}"] = tokens.get("cache", {}).get(name, 0)
    for name, value in info["time"].items():
        columns[f"time_{name}"] = value
    if "revert" in info:
        columns["revert"] = _json(info["revert"])
    return columns


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _without(record: dict[str, Any], *names: str) -> str:
    return json.dumps({name: value for name, value in record.items() if name not in names})

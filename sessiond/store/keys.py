"""Every key and channel of sessiond in Redis: the one place where their names are built.

All keys of a session carry the hash tag `{<session id>}`, so that one script can touch them
all, in a Redis Cluster too. `TABLE` is what `sessiond redis keys` prints and the README shows.
"""

from __future__ import annotations

import re

from msgspec import Struct


class KeyKind(Struct, frozen=True):
    """One family of keys. `pattern` holds `<id>`, `<workspace>` or `<user>` where the name goes."""

    pattern: str
    type: str
    lifetime: str
    meaning: str


def _session(suffix: str) -> str:
    return "sessiond:{<id>}:" + suffix


TABLE: dict[str, KeyKind] = {
    "metadata": KeyKind(
        _session("metadata"),
        "hash",
        "kept as a tombstone after delete",
        "plain fields; epoch and version are the position of the last operation",
    ),
    "context": KeyKind(
        _session("context"), "hash", "the session's", "field → JSON; _version of the last change"
    ),
    "preferences": KeyKind(
        _session("preferences"),
        "hash",
        "the session's",
        "field → JSON; _version of the last change",
    ),
    "messages": KeyKind(
        _session("messages"),
        "hash",
        "the session's",
        "message id → offset of its append, then of its last change, if any",
    ),
    "parts": KeyKind(
        _session("parts"),
        "hash",
        "the session's",
        "message id/part id → offset of its first put, then of its last change, if any",
    ),
    "conversation": KeyKind(
        _session("conversation"),
        "stream",
        "the session's",
        "the log: <offset>-0 → op, at, origin, id, epoch, json",
    ),
    "blocks": KeyKind(
        _session("blocks"),
        "stream",
        "the session's",
        "the log's beginning, compressed: <offset of the last entry>-0 → epochs (7 bytes for each "
        "entry), codec (zstd-1), data, checksum; `sessiond redis cat` shows the entries",
    ),
    "applied": KeyKind(
        _session("applied"),
        "hash",
        "the session's, the 1,024 newest at least",
        "writer → its last sequence and offset; key:<Idempotency-Key> → digest and offset; "
        "outbox:<replica> → how far an opencode's own log is written (kept)",
    ),
    "conflicts": KeyKind(
        _session("conflicts"),
        "stream",
        "sync.conflict_days, open ones until resolved",
        "what merges left out, and what was decided: <number>-0 → what (conflict, resolution), "
        "document, id, path, strategy, outcome, at, json",
    ),
    "lease": KeyKind(
        _session("lease"),
        "hash",
        "7 days after its last use",
        "who runs the session's turn: instance, machine, since_ms, until_ms; token grows",
    ),
    "presence": KeyKind(
        _session("presence"),
        "hash",
        "1 day after the last announcement",
        "who is there: instance → since_ms, seen_ms, until_ms, JSON (machine, client, "
        "active_files); counts until until_ms",
    ),
    "trace": KeyKind(
        _session("trace"),
        "stream",
        "1 day, the 10,000 newest about",
        "while debug.sessions is on: which stage each operation reached where and when, as JSON",
    ),
    "quarantine": KeyKind(
        _session("quarantine:<time>:<kind>"),
        "any",
        "kept until somebody removes it",
        "what `sessiond repair` replaced: the key as it was",
    ),
    "repair": KeyKind(
        _session("repair:<kind>"),
        "any",
        "10 minutes",
        "scratch: what a repair is about to put in place",
    ),
    "archive": KeyKind(
        _session("archive"),
        "hash",
        "until the session is loaded",
        "packed → an archived session, all of it, compressed: where no folder has it",
    ),
    "reads": KeyKind(
        _session("reads"),
        "hash",
        "400 days after the last reading",
        "read_ms: when somebody read the session last, to five minutes",
    ),
    "cache": KeyKind(
        _session("cache"),
        "hash",
        "performance.cache_ttl_seconds after the last answer was cached",
        "key of a call → expires_ms, stored_ms, digest, json or zstd, and what the tool answered; "
        "_counts → bytes, uses, hits, misses, stale, evicted",
    ),
    "cache_uses": KeyKind(
        _session("cache_uses"),
        "zset",
        "the cache's",
        "key of a call → number of its last use: what was not used the longest is evicted first",
    ),
    "events": KeyKind(
        _session("events"),
        "channel",
        "",
        "wake-ups: which operations were added, up to which position; and live deltas",
    ),
    "workspace_events": KeyKind(
        "sessiond:workspace:<workspace>:events", "channel", "", "the same, of all its sessions"
    ),
    "workspace": KeyKind(
        "sessiond:workspace:<workspace>",
        "zset",
        "rebuildable",
        "session id → last activity (ms): the sessions of one workspace",
    ),
    "sessions": KeyKind(
        "sessiond:sessions",
        "zset",
        "rebuildable",
        "session id → last activity (ms): all sessions",
    ),
    "contested": KeyKind(
        "sessiond:contested",
        "zset",
        "rebuildable",
        "session id → newest conflict (ms): the sessions with conflicts",
    ),
    "present": KeyKind(
        "sessiond:present",
        "zset",
        "rebuildable",
        "session id → until when somebody is there, unless it is said again (ms)",
    ),
    "instances": KeyKind(
        "sessiond:instances",
        "zset",
        "rebuildable",
        "daemon → its last heartbeat (ms)",
    ),
    "writers": KeyKind(
        "sessiond:writers",
        "hash",
        "kept",
        "journal of a daemon → incarnation and sequence of its last write: where this went back, "
        "Redis did",
    ),
    "opencodes": KeyKind(
        "sessiond:opencodes",
        "hash",
        "rebuildable",
        "attached opencode → JSON: machine, version, project, sessions, lag, seen_ms",
    ),
    "janitor": KeyKind(
        "sessiond:janitor",
        "hash",
        "kept",
        "who cleans up: instance, until_ms, token grows; finished_ms and report of the last time",
    ),
    "user_preferences": KeyKind(
        "sessiond:user:<user>:preferences",
        "hash",
        "kept",
        "field → JSON: what new sessions of a user begin with",
    ),
    "user_changes": KeyKind(
        "sessiond:user:<user>:changes",
        "hash",
        "kept",
        "position of the last change; changes → JSON: what the preferences are made of",
    ),
    "probe": KeyKind(
        "sessiond:probe",
        "stream",
        "removed after a few seconds",
        "scratch: one entry, to see when WAITAOF answers",
    ),
    "replication": KeyKind(
        "sessiond:replication",
        "channel",
        "",
        "empty messages, so that replicas have something to confirm; nobody listens",
    ),
}

SESSION_KINDS = tuple(
    kind
    for kind, row in TABLE.items()
    if "{<id>}" in row.pattern and row.type not in ("channel", "any")
)
"""The kinds of keys that a session has at most one of each."""

_LOG_KINDS = (
    "metadata",
    "conversation",
    "messages",
    "parts",
    "applied",
    "context",
    "preferences",
    "conflicts",
    "blocks",
)

PASSING_KINDS = ("lease", "presence", "trace", "reads", "cache", "cache_uses")
"""Keys of a session that Redis drops by itself: an archive does not hold them."""

ARCHIVED_KINDS = tuple(kind for kind in SESSION_KINDS if kind not in (*PASSING_KINDS, "archive"))
"""What an archive holds: all keys of a session, also those that are yet to come."""

_REMEMBERED = 4096

_PLACE = re.compile("<(id|workspace|user)>")


class Keys:
    """Names of keys and channels below one namespace (`redis.namespace`, "sessiond" by default)."""

    def __init__(self, namespace: str = "sessiond") -> None:
        self.namespace = namespace
        self.sessions = self._name("sessions")
        self.contested = self._name("contested")
        self.present = self._name("present")
        self.instances = self._name("instances")
        self.opencodes = self._name("opencodes")
        self.writers = self._name("writers")
        self.janitor = self._name("janitor")
        self.probe = self._name("probe")
        self.replication = self._name("replication")
        self._logs: dict[str, tuple[str, ...]] = {}
        self.workspace_events_pattern = self._name("workspace_events", "%s")

    def _name(self, kind: str, value: str = "") -> str:
        rest = TABLE[kind].pattern.removeprefix("sessiond")
        return self.namespace + _PLACE.sub(lambda _: value, rest)

    def of_session(self, kind: str, session_id: str) -> str:
        """Key of a kind in SESSION_KINDS."""
        return self._name(kind, session_id)

    def quarantine(self, session_id: str, time: str, kind: str) -> str:
        """Where a repair moves what it replaces; `time`: when it began."""
        return self._moved("quarantine", session_id, kind).replace("<time>", time)

    def repair(self, session_id: str, kind: str) -> str:
        """Where a repair prepares what it puts in place."""
        return self._moved("repair", session_id, kind)

    def _moved(self, place: str, session_id: str, kind: str) -> str:
        return self._name(place, session_id).replace("<kind>", kind)

    def all_of_sessions(self) -> str:
        """Glob of all keys of sessions."""
        return self._name("metadata", "*").removesuffix("metadata") + "*"

    def all_of_session(self, session_id: str) -> str:
        """Glob of all keys of one session."""
        return self.all_of_sessions().replace("*", session_id, 1)

    def parsed(self, key: bytes) -> tuple[str, str] | None:
        """Return session id and kind of a session's key; None where it is none of ours."""
        before, after = self._name("metadata", "\n").removesuffix("metadata").split("\n")
        name = key.decode("utf-8", "replace")
        if not name.startswith(before):
            return None
        session_id, found, kind = name.removeprefix(before).partition(after)
        first = kind.partition(":")[0]
        known = kind in SESSION_KINDS or (first in ("quarantine", "repair") and first != kind)
        return (session_id, first) if found and known else None

    def metadata(self, session_id: str) -> str:
        """Hash of the session's plain fields."""
        return self._name("metadata", session_id)

    def conversation(self, session_id: str) -> str:
        """Stream: the session's log."""
        return self._name("conversation", session_id)

    def blocks(self, session_id: str) -> str:
        """Stream: the log's beginning, compressed."""
        return self._name("blocks", session_id)

    def messages(self, session_id: str) -> str:
        """Hash: index of the message records."""
        return self._name("messages", session_id)

    def parts(self, session_id: str) -> str:
        """Hash: index of the part records."""
        return self._name("parts", session_id)

    def applied(self, session_id: str) -> str:
        """Hash: what each writer last wrote."""
        return self._name("applied", session_id)

    def document(self, session_id: str, name: str) -> str:
        """Hash of one document: `metadata`, `context` or `preferences`."""
        return self._name(name, session_id)

    def log(self, session_id: str) -> tuple[str, ...]:
        """Return the keys that the commit script declares, in its order."""
        names = self._logs.get(session_id)
        if names is None:
            if len(self._logs) >= _REMEMBERED:
                self._logs.clear()
            names = tuple(self._name(kind, session_id) for kind in _LOG_KINDS)
            self._logs[session_id] = names
        return names

    def conflicts(self, session_id: str) -> str:
        """Stream: what merges left out, and what was decided."""
        return self._name("conflicts", session_id)

    def lease(self, session_id: str) -> str:
        """Hash: who runs the session's turn."""
        return self._name("lease", session_id)

    def presence(self, session_id: str) -> str:
        """Hash: who is at the session."""
        return self._name("presence", session_id)

    def trace(self, session_id: str) -> str:
        """Stream: what became of the session's operations."""
        return self._name("trace", session_id)

    def archiving(self, session_id: str) -> list[str]:
        """Return the keys that the scripts of archiving declare, in their order."""
        kinds = ("metadata", "lease", "presence", "archive", *ARCHIVED_KINDS)
        return [self._name(kind, session_id) for kind in kinds]

    def archive(self, session_id: str) -> str:
        """Hash: the archive of the session, where no folder has it."""
        return self._name("archive", session_id)

    def reads(self, session_id: str) -> str:
        """Hash: when the session was read last."""
        return self._name("reads", session_id)

    def use(self, session_id: str) -> tuple[str, str, str]:
        """Return the keys that tell who uses a session: lease, presence, reads."""
        return self.lease(session_id), self.presence(session_id), self.reads(session_id)

    def cache(self, session_id: str) -> tuple[str, str]:
        """Hash and sorted set: what tools answered, and when that was last used."""
        return self._name("cache", session_id), self._name("cache_uses", session_id)

    def events(self, session_id: str) -> str:
        """Channel of one session."""
        return self._name("events", session_id)

    def workspace(self, workspace: str) -> str:
        """Sorted set: the sessions of one workspace."""
        return self._name("workspace", workspace)

    def user_preferences(self, user_id: str) -> str:
        """Hash: the preferences of a user."""
        return self._name("user_preferences", user_id)

    def user_changes(self, user_id: str) -> str:
        """Hash: the changes that these are made of."""
        return self._name("user_changes", user_id)

    def workspace_events(self, workspace: str) -> str:
        """Channel of all sessions of one workspace."""
        return self._name("workspace_events", workspace)

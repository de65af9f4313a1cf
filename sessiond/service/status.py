"""What a daemon tells of itself."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from sessiond.journal.reports import Status as JournalStatus
from sessiond.service.finding import Finding


class Health(Struct, kw_only=True):
    """A daemon that answers; `ready` when its Redis does too."""

    status: str
    version: str
    ready: bool


class ServerStatus(Struct, kw_only=True):
    """The Redis behind a daemon. `owned`: the daemon started it.

    `ping_ms`: one round trip; `away_seconds`: for how long it has not answered. One of both is
    None. `version`: empty where it never answered.
    """

    url: str
    owned: bool
    version: str
    ping_ms: float | None
    away_seconds: float | None
    redis_cli: str


class InstanceStatus(Struct, kw_only=True):
    """A daemon that shares this Redis, and how long ago it was last heard of."""

    name: str
    seen_seconds_ago: float


class OutboxStatus(Struct, kw_only=True):
    """What waits to be written to Redis, and the journal behind it.

    `waiting` writes, in `sessions`; `held`: session → why its writes cannot go on now; `in_doubt`:
    Redis may lack something that it confirmed, and is being looked at.
    """

    waiting: int
    sessions: int
    held: dict[str, str]
    in_doubt: bool
    journal: JournalStatus


class DurabilityStatus(Struct, kw_only=True):
    """What an acknowledgement waits for (`redis.durability`), and whether it gets it.

    `degraded_since`: since when replicas do not confirm in time; null while they do.
    `degraded_writes`: acknowledged without them, since the daemon started.
    """

    mode: Literal["local", "replica"]
    replicas: int
    degraded_since: str | None
    degraded_writes: int


class ReplicaStatus(Struct, kw_only=True):
    """The copies of sessions for when Redis is away.

    `behind`: how many of the `sessions` are not known to be copied wholly.
    """

    sessions: int
    bytes: int
    behind: int


class CleanupCounts(Struct, kw_only=True):
    """What a clean-up did: how many sessions were archived, deleted, and left over the limits."""

    archived: int = 0
    deleted: int = 0
    left: int = 0


class CleanupStatus(Struct, kw_only=True):
    """When sessions were cleaned up last, and when that is due again; by whichever daemon.

    `running`: the daemon that does it now; `finished_at` and `last`: None before the first time;
    `next_at`: None for soon. Times are those of Redis.
    """

    running: str
    finished_at: str | None
    next_at: str | None
    last: CleanupCounts | None


class CleanedSession(Struct, kw_only=True):
    """What is to become, or became, of a session over the limits, and why.

    `outcome`: planned (a dry run), archived, deleted, spared (by a rule), left (somebody was
    faster) or failed; `detail` says more of the last two.
    """

    session_id: str
    action: Literal["archive", "delete", "none"]
    reason: str
    outcome: Literal["planned", "archived", "deleted", "spared", "left", "failed"]
    detail: str = ""


class CleanupReport(Struct, kw_only=True):
    """A clean-up, or what one would do: of all `sessions` in Redis, those over the limits.

    `damaged`: sessions that cannot be judged, and stay.
    """

    dry_run: bool
    sessions: int
    found: list[CleanedSession]
    damaged: list[str]
    seconds: float


class CacheUse(Struct, kw_only=True):
    """What became of lookups in the caches of sessions at this daemon, since it started.

    `near`: hits that were in the daemon's memory; `unknown`: nothing could be told of the files.
    """

    hits: int
    near: int
    misses: int
    stale: int
    unknown: int


class FileProblem(Struct, kw_only=True):
    """What is wrong, or was, with a file of a session.

    Attributes:
        session_id: whose.
        file: its name; empty for the whole folder.
        what: `rejected` (an edit that cannot be taken; the file stays as it is), `quarantined`
            (damaged; moved away and written again), `damaged` (some are, and cannot be moved away:
            `file` is empty), `set_aside` (a rejected one, kept under another name because the
            session went on), `restored` (Redis had lost the session), `unknown` (Redis does not
            have the session, and it is not ours to make it again).
        reason: why.
        kept: where the file is now; empty where none was moved.
        at: when; empty for what is so now.
    """

    session_id: str
    file: str
    what: str
    reason: str
    kept: str = ""
    at: str = ""


class FilesStatus(Struct, kw_only=True):
    """The folder of JSON files (`persistence.directory`).

    `behind`: how many of the `sessions` are to be written; `rejected`: edits that were not taken;
    `recent`: what happened beside, since the daemon started, the newest 100.
    """

    directory: str
    sessions: int
    behind: int
    rejected: list[FileProblem]
    recent: list[FileProblem]


class Status(Struct, kw_only=True):
    """A daemon, its server, and what passes through it.

    `lag`: announcements heard but not yet handed on to subscribers; `replica`: None where no copies
    are kept; `files`: None where no JSON files are; `in_memory`: nothing is kept
    (`persistence.enabled`); `sessions`: how many Redis has, None while it is away;
    `cleanup` too.
    """

    version: str
    instance: str
    pid: int
    uptime_seconds: float
    socket: str
    address: str | None
    token_file: str | None
    server: ServerStatus
    durability: DurabilityStatus
    sessions: int | None
    subscribers: int
    lag: int
    bus_connected: bool
    outbox: OutboxStatus
    replica: ReplicaStatus | None
    cleanup: CleanupStatus | None
    cache: CacheUse
    files: FilesStatus | None
    in_memory: bool
    instances: list[InstanceStatus]


class Promise(Struct, kw_only=True):
    """What may be relied on here. `of`: journaled, committed, failover, delivery, or here: why."""

    of: str
    promise: str


class Diagnosis(Struct, kw_only=True):
    """What a daemon finds about itself and its Redis, and what it can promise on them."""

    findings: list[Finding]
    promises: list[Promise]


class KeyContent(Struct, kw_only=True):
    """What a key in Redis holds: JSON inside it decoded, at most `limit` of its items."""

    key: str
    type: str
    items: int
    content: Any

"""What is wrong with an installation, and what to do about it: facts in, findings out.

A daemon does not start on a server that `check_server` refuses; what else is found is told.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from sessiond.errors import ConfigurationError
from sessiond.service.finding import Finding, failed, ok, skipped, warning
from sessiond.service.health.promise import Installation
from sessiond.store.probe import ServerFacts

_OLDEST_SERVER = 7
_FULL = 0.9
_MANY_BYTES_BEHIND = 16 * 1024 * 1024
_SECONDS_BEHIND = 10
_LITTLE_SPACE = 1024 * 1024 * 1024
_HARDLY_ANY_SPACE = 64 * 1024 * 1024

_ADMINISTRATOR = "look as an administrator: redis-cli config get "


class FolderFacts(Struct, frozen=True):
    """A folder of a daemon. `fault`: what keeps it from being private, if anything."""

    name: str
    path: Path
    fault: str
    free_bytes: int


def check_server(facts: ServerFacts) -> None:
    """Refuse a server that could not keep what it is given.

    Raises:
        ConfigurationError: it is too old, drops keys when its memory is full, or is a replica, a
            Sentinel or a node of a Cluster.
    """
    if facts.sentinel:
        raise ConfigurationError(
            "the server is a Sentinel: it watches others, and keeps no data",
            hint="point redis.url at the primary, or at a proxy or DNS name that follows it: "
            "redis-cli -p 26379 sentinel get-master-addr-by-name NAME",
        )
    if facts.cluster:
        raise ConfigurationError(
            "the server is a node of a Redis Cluster, which has only a part of the keys",
            hint="point redis.url at a single server (cluster-enabled no), which may have replicas",
        )
    major = facts.version.split()[-1].partition(".")[0]
    if not major.isdigit() or int(major) < _OLDEST_SERVER:
        raise ConfigurationError(
            f"the server is {facts.version}", hint=f"sessiond needs Redis {_OLDEST_SERVER} or later"
        )
    if facts.memory_limit and facts.policy.startswith("allkeys-"):
        raise ConfigurationError(
            f"the server drops keys when its memory is full (maxmemory-policy {facts.policy})",
            hint="set maxmemory-policy noeviction; see config/redis.conf",
        )
    if facts.role == "slave":
        raise ConfigurationError(
            f"the server is a replica of {facts.primary}: it takes no writes, or forgets them",
            hint=f"point redis.url at its primary, {facts.primary}, or promote it: "
            "redis-cli replicaof no one",
        )


def findings(here: Installation, folders: list[FolderFacts]) -> list[Finding]:
    """Return what each check finds, in the order in which a person would look."""
    checks: tuple[Callable[[Installation], Finding], ...] = (
        _server,
        _persistence,
        _waitaof,
        _memory,
        _replication,
        _clock,
    )
    return [
        *(check(here) for check in checks),
        journal_finding(here.waiting),
        *(folder_finding(folder) for folder in folders),
    ]


def _server(here: Installation) -> Finding:
    check, facts = "redis", here.server
    try:
        check_server(facts)
    except ConfigurationError as error:
        return failed(check, error.detail, error.hint, code=error.code)
    kind = "embedded" if here.owned else "configured"
    return ok(check, f"{facts.version}, {kind}, takes writes")


def _persistence(here: Installation) -> Finding:
    if here.in_memory:
        return warning(
            "persistence",
            "in memory only: all sessions are lost when this daemon ends",
            "set persistence.enabled to true to keep them",
        )
    return _durability(here)


def _durability(here: Installation) -> Finding:
    check, facts, fsync = "persistence", here.server, here.settings.appendfsync
    if facts.aof and facts.aof_failing:
        return failed(
            check,
            "Redis could not write or rewrite its append-only file",
            "see its log; is its disk full? It refuses writes until it can",
            code="store-unavailable",
        )
    if not facts.aof:
        kept = f"snapshots ({here.settings.save})" if here.settings.save else "snapshots, if any"
        return warning(
            check,
            f"appendonly is off: a crash of Redis loses what came since its last of {kept}",
            "redis-cli config set appendonly yes, and in redis.conf; see config/redis.conf",
        )
    if facts.snapshots_failing:
        return warning(
            check, "the last snapshot failed; the append-only file is kept", "see Redis's log"
        )
    if fsync is None:
        return warning(
            check,
            "appendonly is on; how often it is synced (appendfsync) is not told to this user",
            f"{_ADMINISTRATOR}appendfsync; until then take it for everysec",
        )
    if fsync == "no":
        return warning(
            check,
            "appendfsync no: a power cut loses what the system had not written, maybe 30 s",
            "redis-cli config set appendfsync everysec, or always",
        )
    return ok(check, f"appendonly yes, appendfsync {fsync}")


def _waitaof(here: Installation) -> Finding:
    check = "WAITAOF"
    if not here.waitaof:
        return skipped(check, "not there, not allowed to this user, or not tried yet; not needed")
    if here.settings.appendfsync == "always":
        return ok(check, "each write is synced before it is answered")
    if here.waitaof == "unverified":
        return warning(
            check,
            "answers at once, which no server can that syncs each second: not to be relied on",
            "nothing here does; for certainty set appendfsync always",
        )
    return ok(check, "answers when the disk has it")


def _memory(here: Installation) -> Finding:
    check, facts = "memory", here.server
    used = f"{size(facts.memory_used)} used"
    if facts.policy.startswith("allkeys-"):
        return warning(
            check,
            f"maxmemory-policy {facts.policy} would drop sessions; only that maxmemory is 0 helps",
            "redis-cli config set maxmemory-policy noeviction, and in redis.conf",
        )
    if facts.policy.startswith("volatile-"):
        return warning(
            check,
            f"maxmemory-policy {facts.policy} drops turns and presence when memory is full: two "
            "could then run the same turn",
            "redis-cli config set maxmemory-policy noeviction, and in redis.conf",
        )
    if not facts.memory_limit:
        return ok(check, f"{used}, no limit (maxmemory 0), {facts.policy}")
    text = f"{used} of {size(facts.memory_limit)}, {facts.policy}"
    if facts.memory_used >= facts.memory_limit:
        return failed(
            check,
            f"{text}: full, Redis refuses writes",
            "redis-cli config set maxmemory to more; writes go on without a restart",
            code="store-full",
        )
    if facts.memory_used >= _FULL * facts.memory_limit:
        return warning(check, f"{text}: nearly full", "raise maxmemory before it refuses writes")
    return ok(check, text)


def _replication(here: Installation) -> Finding:
    check, facts, wanted = "replicas", here.server, here.wanted_replicas
    online = [replica for replica in facts.replicas if replica.state == "online"]
    required = here.settings.required_replicas
    text = f"{len(online)} connected"
    if required:
        text += f", min-replicas-to-write {required}"
    if required and len(online) < required:
        return failed(
            check,
            f"{text}: Redis refuses writes",
            "bring the replicas back, or lower min-replicas-to-write",
            code="store-unavailable",
        )
    if wanted and (len(online) < wanted or here.degraded_since):
        since = f" since {here.degraded_since}" if here.degraded_since else ""
        return warning(
            check,
            f"{text}, {wanted} wanted: acknowledgements are degraded{since}",
            "bring the replicas back (redis-cli info replication), or set redis.durability local",
        )
    slow = [one for one in online if _is_behind(one.lag_seconds, one.lag_bytes)]
    if slow:
        return warning(
            check,
            f"{text}; {slow[0].address} is {slow[0].lag_seconds} s, "
            f"{size(slow[0].lag_bytes)} behind",
            "look at that replica and at the network: a failover would lose as much",
        )
    if wanted:
        return ok(check, f"{text}, {wanted} confirm each write (durability replica)")
    return ok(check, f"{text}; writes do not wait for them (durability local)")


def _is_behind(seconds: int, size: int) -> bool:
    return seconds >= _SECONDS_BEHIND or size >= _MANY_BYTES_BEHIND


def _clock(here: Installation) -> Finding:
    check, ahead = "clock", here.clock_ahead_ms
    if ahead == 0:
        return ok(check, "agrees with Redis's")
    side = "ahead of" if ahead > 0 else "behind"
    return warning(
        check,
        f"is {abs(ahead) / 1000:g} s {side} Redis's",
        "sessiond corrects what it brings in; better set the clock (NTP) on both machines",
    )


def journal_finding(waiting: int) -> Finding:
    """Tell how many journaled writes wait for Redis."""
    check = "journal"
    if not waiting:
        return ok(check, "all of it is in Redis")
    return warning(
        check,
        f"{waiting} journaled writes wait for Redis",
        "nothing is lost; `sessiond status` tells which sessions are held up, and why",
    )


def folder_finding(folder: FolderFacts) -> Finding:
    """Tell whether a folder is private, and whether there is room."""
    check = folder.name
    text = f"{folder.path}, {size(folder.free_bytes)} free"
    if folder.fault:
        return failed(
            check,
            f"{folder.path} {folder.fault}",
            f"make it yours alone: chown and chmod 700 {folder.path}",
            code="configuration",
        )
    if folder.free_bytes < _HARDLY_ANY_SPACE:
        return failed(check, text, "free some space: writes fail soon", code="journal-unavailable")
    if folder.free_bytes < _LITTLE_SPACE:
        return warning(check, text, "free some space before writes fail")
    return ok(check, text)


def size(count: int) -> str:
    """Return a number of bytes for people."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"

"""What is found wrong with an installation: facts in, findings out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sessiond.errors import BY_CODE, ConfigurationError
from sessiond.service.health.checks import FolderFacts, check_server, findings, folder_finding
from sessiond.service.health.promise import Installation
from sessiond.store.probe import ReplicaFacts, ServerFacts, ServerSettings

MIB = 1024 * 1024


def server(**more: Any) -> ServerFacts:
    return ServerFacts(**{"version": "redis 7.0.15", "memory_used": 2 * MIB, **more})


def here(facts: ServerFacts | None = None, **more: Any) -> Installation:
    settings = ServerSettings(appendfsync="everysec", save="", required_replicas=0)
    return Installation(**{"server": facts or server(), "settings": settings, **more})


def replica(lag_seconds: int = 0, lag_bytes: int = 0, state: str = "online") -> ReplicaFacts:
    return ReplicaFacts("10.0.0.2:6379", state, lag_seconds, lag_bytes)


def test_where_nothing_is_wrong_nothing_is_found() -> None:
    folder = FolderFacts("data folder", Path("/data"), "", 2 * 1024**3)
    found = {finding.check: finding for finding in findings(here(), [folder])}
    assert list(found) == [
        *("redis", "persistence", "WAITAOF", "memory", "replicas", "clock", "journal"),
        "data folder",
    ]
    assert {finding.state for finding in found.values()} == {"ok", "skipped"}
    assert found["WAITAOF"].state == "skipped"
    assert found["memory"].finding == "2.0 MiB used, no limit (maxmemory 0), noeviction"
    assert found["data folder"].finding == "/data, 2.0 GiB free"


FULL = {"memory_limit": 2 * MIB}
ROOMY = {"memory_limit": 200 * MIB}
NEEDS_TWO = ServerSettings(appendfsync="everysec", save="", required_replicas=2)


@pytest.mark.parametrize(
    ("installation", "check", "state", "finding", "remedy"),
    [
        (here(server(version="redis 6.2.1")), "redis", "failed", "redis 6.2.1", "Redis 7"),
        (
            here(server(cluster=True)),
            "redis",
            "failed",
            "a node of a Redis Cluster",
            "a single server (cluster-enabled no)",
        ),
        (
            here(server(sentinel=True)),
            "redis",
            "failed",
            "the server is a Sentinel",
            "point redis.url at the primary",
        ),
        (
            here(server(role="slave", primary="10.0.0.1:6379")),
            "redis",
            "failed",
            "a replica of 10.0.0.1:6379",
            "point redis.url at its primary, 10.0.0.1:6379",
        ),
        (
            here(server(policy="allkeys-lru", **ROOMY)),
            "redis",
            "failed",
            "maxmemory-policy allkeys-lru",
            "noeviction",
        ),
        (here(owned=True), "redis", "ok", "embedded", ""),
        (here(server(aof=False)), "persistence", "warning", "appendonly is off", "appendonly yes"),
        (
            here(server(aof_failing=True)),
            "persistence",
            "failed",
            "could not write",
            "is its disk full?",
        ),
        (
            here(server(snapshots_failing=True)),
            "persistence",
            "warning",
            "snapshot failed",
            "Redis's log",
        ),
        (
            here(settings=ServerSettings()),
            "persistence",
            "warning",
            "not told to this user",
            "config get appendfsync",
        ),
        (
            here(settings=ServerSettings(appendfsync="no")),
            "persistence",
            "warning",
            "appendfsync no",
            "everysec, or always",
        ),
        (
            here(settings=ServerSettings(appendfsync="always")),
            "persistence",
            "ok",
            "appendfsync always",
            "",
        ),
        (here(waitaof="unverified"), "WAITAOF", "warning", "answers at once", "always"),
        (here(waitaof="truthful"), "WAITAOF", "ok", "when the disk has it", ""),
        (
            here(waitaof="unverified", settings=ServerSettings(appendfsync="always")),
            "WAITAOF",
            "ok",
            "before it is answered",
            "",
        ),
        (
            here(server(policy="allkeys-lfu")),
            "memory",
            "warning",
            "would drop sessions",
            "noeviction",
        ),
        (
            here(server(policy="volatile-ttl")),
            "memory",
            "warning",
            "two could then run the same turn",
            "noeviction",
        ),
        (
            here(server(**FULL)),
            "memory",
            "failed",
            "refuses writes",
            "config set maxmemory to more",
        ),
        (
            here(server(memory_limit=2 * MIB + 1)),
            "memory",
            "warning",
            "nearly full",
            "raise maxmemory",
        ),
        (here(server(**ROOMY)), "memory", "ok", "2.0 MiB used of 200.0 MiB", ""),
        (
            here(server(replicas=(replica(),))),
            "replicas",
            "ok",
            "1 connected; writes do not wait",
            "",
        ),
        (
            here(server(replicas=(replica(),)), wanted_replicas=1),
            "replicas",
            "ok",
            "1 confirm each write",
            "",
        ),
        (here(wanted_replicas=1), "replicas", "warning", "0 connected, 1 wanted", "bring"),
        (
            here(server(replicas=(replica(state="wait_bgsave"),)), wanted_replicas=1),
            "replicas",
            "warning",
            "0 connected, 1 wanted",
            "bring",
        ),
        (
            here(
                server(replicas=(replica(),)),
                wanted_replicas=1,
                degraded_since="2026-01-13T10:30:00.000Z",
            ),
            "replicas",
            "warning",
            "degraded since 2026-01-13T10:30:00.000Z",
            "bring",
        ),
        (
            here(server(replicas=(replica(),)), settings=NEEDS_TWO),
            "replicas",
            "failed",
            "min-replicas-to-write 2: Redis refuses writes",
            "lower min-replicas-to-write",
        ),
        (
            here(server(replicas=(replica(), replica(lag_seconds=11)))),
            "replicas",
            "warning",
            "11 s, 0 B behind",
            "a failover would lose as much",
        ),
        (
            here(server(replicas=(replica(lag_bytes=20 * MIB),))),
            "replicas",
            "warning",
            "20.0 MiB behind",
            "a failover would lose as much",
        ),
        (here(clock_ahead_ms=-2500), "clock", "warning", "2.5 s behind", "NTP"),
        (here(clock_ahead_ms=60_000), "clock", "warning", "60 s ahead of", "NTP"),
        (here(waiting=7), "journal", "warning", "7 journaled writes wait", "`sessiond status`"),
    ],
)
def test_what_is_wrong_is_found_and_comes_with_a_remedy(
    installation: Installation, check: str, state: str, finding: str, remedy: str
) -> None:
    (found,) = [one for one in findings(installation, []) if one.check == check]
    assert found.state == state
    assert finding in found.finding
    assert remedy in found.remedy
    assert bool(found.remedy) == (state != "ok")
    assert (found.code in BY_CODE) == (state == "failed")


@pytest.mark.parametrize(
    ("fault", "free", "state"),
    [
        ("is writable by group or others", 2 * 1024**3, "failed"),
        ("", 10 * MIB, "failed"),
        ("", 500 * MIB, "warning"),
        ("", 2 * 1024**3, "ok"),
    ],
)
def test_folders_are_private_and_have_room(fault: str, free: int, state: str) -> None:
    found = folder_finding(FolderFacts("journal folder", Path("/j"), fault, free))
    assert (found.check, found.state) == ("journal folder", state)
    assert (found.code in BY_CODE) == (state == "failed")
    assert bool(found.remedy) == (state != "ok")


@pytest.mark.parametrize(
    "facts",
    [
        server(),
        server(version="valkey 9.1.2"),
        server(policy="allkeys-lru"),  # without a limit nothing is dropped
        server(policy="volatile-lru", memory_limit=MIB),  # turns and presence only
        server(aof=False),
    ],
)
def test_a_server_that_keeps_sessions_is_not_refused(facts: ServerFacts) -> None:
    check_server(facts)


@pytest.mark.parametrize(
    "facts",
    [
        server(version="redis 6.2.14"),
        server(version="redis unknown"),
        server(policy="allkeys-random", memory_limit=MIB),
        server(role="slave", primary="h:1"),
    ],
)
def test_a_server_that_could_not_keep_them_is_refused_with_a_remedy(facts: ServerFacts) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_server(facts)
    assert refused.value.hint

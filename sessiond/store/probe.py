"""Asking a server what it is, how it keeps what it is given, and whether what it says is true.

What a user may not ask (CONFIG GET and WAITAOF are not among the rights of config/redis-acl.conf)
or an older server does not know is unknown, never guessed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from sessiond.errors import SessiondError
from sessiond.store.connection import answered, translate

Waitaof = Literal["", "truthful", "unverified"]
"""What WAITAOF's answers are worth; empty: unknown, or the server has no such command."""

_SECTIONS = ("server", "memory", "persistence", "replication", "cluster")
_SETTINGS = ("appendfsync", "save", "min-replicas-to-write")
_TRIES = 4
_TRY_PAUSE_SECONDS = 0.1
_SUSPICIOUS_SECONDS = 0.05
_WAITAOF_MS = 2000


class ReplicaFacts(Struct, frozen=True):
    """A replica as its primary sees it. `lag_seconds`: since it last told how far it is."""

    address: str
    state: str
    lag_seconds: int
    lag_bytes: int


class ServerFacts(Struct, frozen=True, kw_only=True):
    """What a server says of itself.

    Args:
        version: name and version, such as "valkey 9.1.2".
        run_id: another one after each start of the server.
        role: `master` or `slave`, in Redis's words.
        primary: host and port of the server that a replica follows.
        policy: its maxmemory-policy.
        memory_limit: bytes, 0 for none.
        memory_used: bytes.
        aof: whether writes go to an append-only file.
        aof_failing: whether the last write or rewrite of that file failed.
        snapshots_failing: whether the last snapshot failed.
        cluster: whether it is a node of a Redis Cluster.
        sentinel: whether it is a Sentinel, which only watches servers.
        replicas: those that are connected.
    """

    version: str
    run_id: str = ""
    role: str = "master"
    primary: str = ""
    policy: str = "noeviction"
    memory_limit: int = 0
    memory_used: int = 0
    aof: bool = True
    aof_failing: bool = False
    snapshots_failing: bool = False
    cluster: bool = False
    sentinel: bool = False
    replicas: tuple[ReplicaFacts, ...] = ()


class ServerSettings(Struct, frozen=True, kw_only=True):
    """Settings that only CONFIG GET tells; None where this user may not ask.

    `save`: when snapshots are taken; empty: never. `required_replicas`: min-replicas-to-write.
    """

    appendfsync: str | None = None
    save: str | None = None
    required_replicas: int | None = None


async def read_facts(redis: Redis) -> ServerFacts:
    """Ask the server what it is: one command.

    Raises:
        StoreUnavailable, ConfigurationError: it does not answer, or refuses this user.
    """
    return facts_of(await answered(redis.info(*_SECTIONS)))


def facts_of(info: Mapping[str, Any]) -> ServerFacts:
    """Return what a server says of itself; of sections that were not asked for, the usual."""
    name = info.get("server_name", "redis")
    replica = info.get("role") == "slave"
    return ServerFacts(
        version=f"{name} {info.get('valkey_version') or info['redis_version']}",
        run_id=str(info.get("run_id", "")),
        role=str(info.get("role", "master")),
        primary=f"{info.get('master_host')}:{info.get('master_port')}" if replica else "",
        policy=str(info.get("maxmemory_policy", "")),
        memory_limit=int(info.get("maxmemory", 0)),
        memory_used=int(info.get("used_memory", 0)),
        aof=bool(int(info.get("aof_enabled", 0))),
        aof_failing=any(
            info.get(f"aof_last_{what}_status", "ok") != "ok" for what in ("write", "bgrewrite")
        ),
        snapshots_failing=info.get("rdb_last_bgsave_status", "ok") != "ok",
        cluster=bool(int(info.get("cluster_enabled", 0))),
        sentinel="sentinel" in (info.get("redis_mode"), info.get("server_mode")),
        replicas=tuple(_replicas(info)),
    )


def _replicas(info: Mapping[str, Any]) -> list[ReplicaFacts]:
    end = int(info.get("master_repl_offset", 0))
    found = [info.get(f"slave{number}") for number in range(int(info.get("connected_slaves", 0)))]
    return [
        ReplicaFacts(
            f"{row['ip']}:{row['port']}",
            str(row["state"]),
            int(row.get("lag", 0)),
            max(0, end - int(row.get("offset", 0))),
        )
        for row in found
        if isinstance(row, dict)
    ]


async def read_settings(redis: Redis) -> ServerSettings:
    """Ask for the settings that INFO does not tell.

    Raises:
        StoreUnavailable: the server does not answer.
    """
    found: dict[str, str] = {}
    with suppress(ResponseError):  # this user may not, or a hosted server does not know CONFIG
        found = await _unless_away(redis.config_get(*_SETTINGS))
    required = found.get("min-replicas-to-write")
    return ServerSettings(
        appendfsync=found.get("appendfsync"),
        save=found.get("save"),
        required_replicas=None if required is None else int(required),
    )


async def server_ms(redis: Redis) -> int:
    """Return the server's time in milliseconds since 1970.

    Raises:
        StoreUnavailable: it does not answer.
    """
    seconds, microseconds = await answered(redis.time())
    return int(seconds) * 1000 + int(microseconds) // 1000


async def try_waitaof(
    redis: Redis,
    key: str,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Waitaof:
    """Tell what WAITAOF is worth on a server with `appendfsync everysec`.

    With it the file is synced about once a second, so of several writes within a second no more
    than two can be on disk at once. A server whose answers all come at once answers before the
    sync. Takes a few seconds at most; the scratch key is removed.

    Raises:
        StoreUnavailable, StoreRefusesUser: the server does not answer, or refuses the key.
    """
    try:
        for _ in range(_TRIES):
            began = now()
            synced = await _write_and_wait(redis, key)
            if not synced:
                return ""
            if now() - began >= _SUSPICIOUS_SECONDS:
                return "truthful"
            await sleep(_TRY_PAUSE_SECONDS)
    except ResponseError:  # an older server, one without an append-only file, or no right to it
        return ""
    finally:
        with suppress(SessiondError):
            await answered(redis.delete(key))
    return "unverified"


async def _write_and_wait(redis: Redis, key: str) -> bool:
    """Write an entry; tell whether the server says that it is on its disk."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.xadd(key, {"probe": "1"}, maxlen=1, approximate=False)
    pipeline.execute_command("WAITAOF", 1, 0, _WAITAOF_MS)
    _, answer = await _unless_away(pipeline.execute())
    return bool(answer[0])


async def _unless_away(command: Awaitable[Any]) -> Any:
    """Await a command; the server's refusals go on as they are, its absence as ours."""
    try:
        return await command
    except ResponseError:
        raise
    except RedisError as error:
        raise translate(error) from error

"""Asking whoever listens on a Unix socket which Redis or Valkey server it is."""

from __future__ import annotations

import enum
import os
import socket
import struct
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - redis-py's own, which is not the built-in one
)

from sessiond.store.connection import LimitedRedis

if TYPE_CHECKING:
    from pathlib import Path

ANSWER_TIMEOUT_S = 1.0

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Identity(msgspec.Struct, frozen=True):
    """What a server that answers is."""

    pid: int
    version: str
    """Name and version, such as "valkey 9.1.2"."""
    directory: str
    port: int
    appendfsync: str
    password: str

    def __repr__(self) -> str:
        return f"Identity(pid={self.pid}, version={self.version!r})"


class Unidentified(enum.Enum):
    """Why there is no Identity; the value completes "at the socket …"."""

    ABSENT = "nobody listens"
    SILENT = "somebody listens but does not answer"
    LOADING = "a server is still reading its data"
    REFUSED = "somebody else's server listens"


async def identify(path: Path, password: str | None) -> Identity | Unidentified:
    """Ask the server at the Unix socket `path` what it is.

    Takes at most about a second. The password goes only to a process of our own user that asks
    for one.
    """
    listener = _listener(path)
    if isinstance(listener, Unidentified):
        return listener
    client = _connection(path)
    try:
        facts = await _enter(client, password)
        await client.ping()
        settings = await client.config_get("dir", "port", "appendfsync", "requirepass")
    except BusyLoadingError:
        return Unidentified.LOADING
    except (AuthenticationError, ResponseError):
        return Unidentified.REFUSED
    except (RedisError, OSError):
        return Unidentified.SILENT
    finally:
        await client.aclose()
    return _identity(listener, facts, settings)


async def ask_to_shut_down(path: Path, password: str | None, *, pid: int) -> bool:
    """Ask the server at `path`, if it is process `pid`, to write everything and to end.

    Returns:
        Whether it accepted; it may need more time to end. False also when it did not answer
        within about a second or could not write.
    """
    listener = _listener(path)
    if isinstance(listener, Unidentified):
        return False
    client = _connection(path)
    try:
        facts = await _enter(client, password)
        if (listener or int(facts["process_id"])) != pid:
            return False
        with suppress(TimeoutError):  # it is writing
            await client.shutdown()
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()
    return True


def is_listening(path: Path) -> bool:
    """Tell whether some process listens on the Unix socket."""
    return _listener(path) is not Unidentified.ABSENT


async def _enter(client: Redis, password: str | None) -> dict[str, Any]:
    """Log in if asked to; return what the server says about itself, even while loading."""
    # By hand, because redis-py turns a refused password into a plain ConnectionError when it
    # authenticates on a Unix socket by itself.
    try:
        return dict(await client.info("server"))
    except AuthenticationError:
        if password is None:
            raise
        await client.auth(password)
        return dict(await client.info("server"))


def _identity(listener: int, facts: dict[str, Any], settings: dict[Any, Any]) -> Identity:
    name = "valkey" if "valkey_version" in facts else "redis"
    return Identity(
        pid=listener or int(facts["process_id"]),
        version=f"{name} {facts[f'{name}_version']}",
        directory=str(settings["dir"]),
        port=int(settings["port"]),
        appendfsync=str(settings["appendfsync"]),
        password=str(settings["requirepass"]),
    )


def _connection(path: Path) -> Redis:
    return LimitedRedis(
        limit_seconds=ANSWER_TIMEOUT_S,
        unix_socket_path=str(path),
        single_connection_client=True,
        decode_responses=True,
        protocol=2,
        driver_info=None,
        socket_timeout=None,
        retry=Retry(NoBackoff(), 0),
    )


def _listener(path: Path) -> int | Unidentified:
    """Return the pid that listens on the socket, 0 where the system does not tell."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as visitor:
        visitor.settimeout(0)  # a Unix socket answers at once or not at all
        try:
            visitor.connect(str(path))
        except BlockingIOError:
            return Unidentified.SILENT  # its queue of visitors is full
        except OSError:
            return Unidentified.ABSENT
        if not hasattr(socket, "SO_PEERCRED"):
            return 0
        answer = visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(answer)
    # pid 0 is a process outside of our pid namespace: nothing that we could watch or end.
    return int(pid) if pid > 0 and uid == os.geteuid() else Unidentified.REFUSED

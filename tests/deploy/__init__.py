"""What the tests of the deployment files share: servers and daemons run with those files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from sessiond.store.embedded.binaries import shipped_binary
from sessiond.store.embedded.probe import is_listening

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
DEPLOY = ROOT / "deploy"
DEBIAN_REDIS = Path("/usr/bin/redis-server")
NO_PASSWORD = "0" * 64  # stands in redis-acl.conf where the digest of a password belongs
PASSWORDS = {"sessiond": "a-password", "inspector": "another-password", "admin": "a-third"}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="starts services of Linux")


def binaries() -> list[Any]:
    """Every server that the files must work with, as parameters of a test."""
    shipped = shipped_binary()
    missing = pytest.mark.skip(reason="not installed")
    return [
        pytest.param(shipped, id="valkey", marks=() if shipped else missing),
        pytest.param(DEBIAN_REDIS, id="redis", marks=() if DEBIAN_REDIS.exists() else missing),
    ]


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder of our own; Unix sockets in it have short paths."""
    folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def until(condition: Callable[[], bool], *, within_s: float = 10) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {within_s:g} s"
        time.sleep(0.01)


def acl_rules(user: str) -> list[str]:
    """The words of redis-acl.conf about a user."""
    lines = (CONFIG / "redis-acl.conf").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"user {user} "))
    return line.split()


def acl_file(folder: Path) -> Path:
    """A copy of redis-acl.conf as an operator would complete it, with an administrator."""
    users = [
        " ".join(acl_rules(user)).replace(NO_PASSWORD, digest(PASSWORDS.get(user, "")))
        for user in ("default", "sessiond", "inspector")
    ]
    users.append(f"user admin on #{digest(PASSWORDS['admin'])} ~* &* +@all")
    path = folder / "users.acl"
    path.write_text("\n".join(users) + "\n")
    return path


def digest(password: str) -> str:
    """What stands behind the `#` in an ACL file."""
    return sha256(password.encode()).hexdigest()


def login(socket: Path, user: str = "", password: str | None = None) -> Redis:
    """A client of the server at a socket; without a user it does not log in."""
    return Redis(
        unix_socket_path=str(socket),
        username=user or None,
        password=password or PASSWORDS.get(user),
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),  # a refusal is an answer, too
    )


@contextmanager
def running(
    arguments: Sequence[str | Path], *, log: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program; its output goes to a file. It is asked to end, then made to."""
    with log.open("ab") as output:
        child = subprocess.Popen(arguments, stdout=output, stderr=output, env=env)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=20)
        child.kill()
        child.wait()


@contextmanager
def redis_server(
    binary: Path, folder: Path, *arguments: str | Path, user: str = ""
) -> Iterator[Path]:
    """Run a server with config/redis.conf on a Unix socket, and return the socket once it answers.

    Args:
        binary: the server.
        folder: where its data, its socket and its log go.
        arguments: more settings, as on the command line.
        user: who asks whether it answers.
    """
    socket = folder / "redis.sock"
    where = ["--dir", str(folder), "--port", "0", "--unixsocket", str(socket)]
    log = folder / "redis.log"
    with running([binary, CONFIG / "redis.conf", *where, *arguments], log=log) as server:
        until(lambda: server.poll() is not None or answers(socket, user))
        assert server.poll() is None, log.read_text()
        yield socket


def answers(socket: Path, user: str) -> bool:
    with suppress(RedisError), login(socket, user) as client:
        return bool(client.ping())
    return False


def daemon_environment(folder: Path) -> dict[str, str]:
    """Nothing of ours but the path: a daemon finds its folders below `folder`."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_STATE_HOME": str(folder / "state"),
    }


def sessiond(*arguments: str) -> list[str]:
    """The command line of sessiond, with this Python."""
    return [sys.executable, "-m", "sessiond", *arguments]


@contextmanager
def daemon(folder: Path, *arguments: str, **more: str) -> Iterator[Path]:
    """Run a daemon and return its socket once it listens; `more` are variables."""
    environment = daemon_environment(folder) | more
    socket = Path(more.get("SESSIOND_API_SOCKET", folder / "run" / "sessiond" / "api.sock"))
    log = folder / "sessiond.log"
    with running(sessiond("run", *arguments), log=log, env=environment) as process:
        until(lambda: process.poll() is not None or is_listening(socket))
        assert process.poll() is None, log.read_text()
        yield socket

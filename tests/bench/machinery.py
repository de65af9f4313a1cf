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
from typing import cast

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
async def daemon(
    folder: Path, *flags: str, module: str = "sessiond"
) -> AsyncIterator[tuple[DaemonClient, int]]:
    """Run a daemon and give a client of it and its pid."""
    folder.mkdir(mode=0o700, exist_ok=True)
    names = ("XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, "run", *flags,
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


class RawClient(asyncio.Protocol):
    """As little client as possible: one keep-alive connection, no parsing but for the length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._received = b""

    @classmethod
    async def open(cls, socket: Path) -> RawClient:
        """Connect to a daemon."""
        _, client = await asyncio.get_running_loop().create_unix_connection(cls, str(socket))
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, content = self._received.partition(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0] or -1)
        if len(content) == length and self._answer:
            self._answer.set_result(self._received)

    async def append(self, session_id: str, index: int) -> None:
        """Append the message of a number."""
        content = body(index)
        head = (
            f"POST /v1/sessions/{session_id}/messages HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        assert self._transport
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + content)
        answer = await self._answer
        assert answer.startswith(b"HTTP/1.1 201"), answer

    def close(self) -> None:
        """Let go of the connection."""
        if self._transport:
            self._transport.close()


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

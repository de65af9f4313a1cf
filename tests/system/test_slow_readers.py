"""Readers that take nothing: the daemon's memory stays bounded, and nobody else feels them."""

from __future__ import annotations

import asyncio
import resource
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessiond.client import DaemonClient
from sessiond.model import NewMessage, NewSession
from sessiond.service.status import Status
from tests.daemons import RunningDaemon, running_daemon
from tests.system.observing import Observer, until

MIB = 1024 * 1024
EACH_BYTES = 96 * 1024
"""What a reader that takes nothing may cost, with what the kernel keeps of it."""
SLACK_BYTES = 96 * MIB
_LARGE = "x" * (15 * MIB)
_DELAY_SECONDS = 4.0
_DELAY_SECONDS_EACH = 0.005


class StalledReader:
    """A stream that is asked for, and never read."""

    def __init__(self, daemon: Path, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(daemon))
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLHUP)

    @property
    def is_reset(self) -> bool:
        """Whether the daemon hung up."""
        return bool(self._poll.poll(0))

    def close(self) -> bytes:
        """Hang up; return the last that was sent."""
        found = b""
        self._socket.settimeout(5)
        while part := self._socket.recv(MIB):
            found = (found + part)[-100:]
        self._socket.close()
        return found


class Memory:
    """What a process has in memory, in bytes."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    @property
    def now(self) -> int:
        """What it has now."""
        return self._of("VmRSS")

    @property
    def peak(self) -> int:
        """The most that it had since the peak was forgotten."""
        return self._of("VmHWM")

    def forget_peak(self) -> None:
        """Measure the peak from now on."""
        (self._folder / "clear_refs").write_text("5", encoding="ascii")

    def _of(self, name: str) -> int:
        lines = (self._folder / "status").read_text(encoding="ascii").splitlines()
        (line,) = [line for line in lines if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024


@pytest.fixture
def daemon() -> Iterator[RunningDaemon]:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with running_daemon(start=False) as daemon:
        daemon.environ["SESSIOND_API_MAX_BODY_BYTES"] = str(16 * MIB)
        daemon.environ["SESSIOND_SYNC_HEARTBEAT_SECONDS"] = "2"
        daemon.environ["SESSIOND_JOURNAL_WAIT_SECONDS"] = "30"
        daemon.start()
        yield daemon


async def traffic(client: DaemonClient, observer: Observer) -> float:
    """Write large messages and many small ones.

    Returns:
        How long it took at most until small ones were written and seen, in seconds.
    """
    longest = 0.0
    for _ in range(2):
        await client.append("s", [NewMessage(role="tool", content=_LARGE)])
        for _ in range(20):
            group = [NewMessage(role="user", content="y" * 1000) for _ in range(32)]
            began = time.monotonic()
            written = await client.append("s", group)
            await observer.until(int(written.position.partition(":")[2]))
            longest = max(longest, time.monotonic() - began)
    return longest


@pytest.mark.timeout(600)
@pytest.mark.parametrize("readers", [300, pytest.param(3_000, marks=pytest.mark.soak)])
async def test_readers_that_take_nothing_are_reset_and_cost_little(
    daemon: RunningDaemon, client: DaemonClient, readers: int
) -> None:
    assert daemon.process
    memory = Memory(daemon.process.pid)
    await client.create(NewSession(session_id="s"))
    observer = Observer(client, "s")
    await observer.start()
    await traffic(client, observer)
    alone, left = memory.peak, memory.now

    paths = ("/v1/sessions/s/events", "/v1/workspaces/default/events")
    stalled = [StalledReader(daemon.socket, paths[number % 2]) for number in range(readers)]

    async def are_connected() -> bool:
        found: Status
        found, _ = await client.call("GET", "/v1/status", Status)
        return found.subscribers == readers + 1

    await until(are_connected, 120)
    memory.forget_peak()
    assert await traffic(client, observer) < _DELAY_SECONDS + readers * _DELAY_SECONDS_EACH
    assert observer.offsets == list(range(1, len(observer.offsets) + 1))
    assert observer.names.count("reset") == 0
    assert memory.peak - alone < readers * EACH_BYTES + SLACK_BYTES

    async def are_reset() -> bool:
        return all(reader.is_reset for reader in stalled)

    await until(are_reset, 60)
    endings = await asyncio.gather(*(asyncio.to_thread(each.close) for each in stalled))
    assert not any(end.endswith(b"\r\n0\r\n\r\n") for end in endings), "it looks like an end"

    async def is_back() -> bool:
        return memory.now - left < SLACK_BYTES

    await until(is_back, 30)
    await observer.stop()

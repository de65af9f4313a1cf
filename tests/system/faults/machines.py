"""The machines of a laboratory: one Redis, sidecars, and a chaotic way from each to it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.api.servers import DurableServer
from tests.daemons import RunningDaemon
from tests.system.faults.planted import VARIABLE
from tests.system.faults.proxy import ChaosProxy
from tests.system.faults.schedule import SIDECARS

_OPTIONS = {
    "SESSIOND_SYNC_RETRY_SECONDS": "0.5",
    "SESSIOND_REDIS_TIMEOUT_SECONDS": "1",
    "SESSIOND_JOURNAL_WAIT_SECONDS": "0.3",
    "SESSIOND_JOURNAL_KEPT_MIB": "8192",  # longer than any laboratory lives
    "SESSIOND_API_MAX_BODY_BYTES": str(16 * 1024 * 1024),
}
_START_SECONDS = 20.0


class Machine:
    """A sidecar and its way to Redis. Who ends or starts its process holds `lock`."""

    def __init__(
        self, folder: Path, number: int, redis: Path, bug: str, *, keeps_copies: bool
    ) -> None:
        self.proxy = ChaosProxy(folder / f"p{number}", redis)
        home = folder / f"d{number}"
        home.mkdir(mode=0o700)
        flags = ("--redis-url", self.proxy.url, "--instance", f"side{number}")
        self.sidecar = RunningDaemon(home, *flags)
        self.sidecar.environ |= _OPTIONS
        if not keeps_copies:
            self.sidecar.environ["SESSIOND_REPLICA_LIMIT_MIB"] = "0"
        if bug:
            self.sidecar.environ[VARIABLE] = bug
            self.sidecar.module = "tests.system.faults.planted"
        self.lock = asyncio.Lock()

    @property
    def socket(self) -> str:
        """Where the sidecar's API listens."""
        return str(self.sidecar.socket)

    @property
    def is_running(self) -> bool:
        """Whether the sidecar's process is there."""
        process = self.sidecar.process
        return process is not None and process.poll() is None

    @property
    def journal_log(self) -> Path:
        """The write-ahead log of the sidecar's journal."""
        return self.sidecar.folder / "sessiond" / "journal" / "current" / "journal.db-wal"

    async def start(self) -> None:
        """Start the sidecar as a supervisor does: again and again, until it serves.

        Raises:
            AssertionError: it does not, for long.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return await asyncio.to_thread(self.sidecar.start)
            except AssertionError:
                self.sidecar.kill()
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.05)


class RedisHost:
    """The Redis that all use, and copies of its files from before. Who ends it holds `lock`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers = 0
        self._copies: list[str] = []
        self.server = self.new_server()
        self.lock = asyncio.Lock()

    def new_server(self) -> DurableServer:
        """Return one more server, which does not run."""
        self._servers += 1
        folder = self._folder / f"r{self._servers}"
        folder.mkdir()
        return DurableServer(folder)

    async def copy(self) -> None:
        """Copy its files, to go back to this moment."""
        name = f"copy{len(self._copies)}"
        with contextlib.suppress(shutil.Error):  # it rewrites them just now: no copy is made
            await asyncio.to_thread(self.server.copy, name)
            self._copies.append(name)

    def forget_copies(self) -> None:
        """Begin anew: there is no going back behind this moment."""
        for name in self._copies:
            self.server.forget(name)
        self._copies = []

    async def go_back(self, *, far: bool) -> None:
        """End it with SIGKILL, and start it with the oldest copy (`far`) or the newest one."""
        self.server.kill()
        self.server.restore(self._copies[0 if far else -1])
        await asyncio.to_thread(self.server.start)

    async def replace(self, successor: DurableServer) -> None:
        """Let another server that runs take its place."""
        self.server.kill()
        self.server, self._copies = successor, []
        await self.copy()

    async def ask(self, *command: str | int) -> None:
        """Send an administrator's command; one that it does not take changes nothing."""
        async with Redis(unix_socket_path=str(self.server.socket)) as redis:
            with contextlib.suppress(RedisError):
                await redis.execute_command(*command)


class Machines:
    """All of them, in a folder of their own.

    Args:
        folder: short, since paths of sockets are limited.
        bug: what is planted in the sidecars; empty for nothing.
        keeps_copies: whether they keep copies of sessions.
    """

    def __init__(self, folder: Path, bug: str, *, keeps_copies: bool) -> None:
        self.redis = RedisHost(folder)
        socket = self.redis.server.socket
        self.each = [
            Machine(folder, number, socket, bug, keeps_copies=keeps_copies)
            for number in range(SIDECARS)
        ]

    async def start(self) -> None:
        """Start everything."""
        await asyncio.to_thread(self.redis.server.start)
        for machine in self.each:
            await machine.proxy.start()
        await asyncio.gather(*(machine.start() for machine in self.each))

    async def stop(self) -> None:
        """End everything."""
        for machine in self.each:
            machine.sidecar.kill()
            await machine.proxy.stop()
        self.redis.server.kill()

    async def heal(self) -> None:
        """End every fault that is still there."""
        for machine in self.each:
            machine.proxy.calm()
            if not machine.is_running:
                await machine.start()

    async def lead_to(self, successor: DurableServer) -> None:
        """Lead every sidecar to another Redis, which runs."""
        for machine in self.each:
            machine.proxy.target = successor.socket
            await machine.proxy.drop()
        await self.redis.replace(successor)


@asynccontextmanager
async def machines(bug: str = "", *, keeps_copies: bool = True) -> AsyncIterator[Machines]:
    """Run machines in a fresh folder."""
    folder = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
    found = Machines(folder, bug, keeps_copies=keeps_copies)
    try:
        await found.start()
        yield found
    finally:
        await found.stop()
        shutil.rmtree(folder, ignore_errors=True)

"""A Redis, sidecars with a chaotic way to it, and one run after the other on them."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from sessiond.client import DaemonClient
from sessiond.codec import json
from sessiond.errors import NotFound, SessionDeleted, SessiondError
from sessiond.model import NewSession
from sessiond.service.status import OutboxStatus
from tests.api.servers import DurableServer, durable_server
from tests.daemons import RunningDaemon
from tests.system.faults.history import FinalSession, History, Seen
from tests.system.faults.proxy import ChaosProxy
from tests.system.faults.schedule import SIDECARS, Schedule, Step
from tests.system.faults.workload import Watcher, Writer, seen_in

WRITERS = 4
_WATCHED = 2
_SETTLE_SECONDS = 25.0
_QUIET_SECONDS = 1.3
_OPTIONS = {
    "SESSIOND_SYNC_RETRY_SECONDS": "0.5",
    "SESSIOND_REDIS_TIMEOUT_SECONDS": "1",
    "SESSIOND_JOURNAL_WAIT_SECONDS": "0.3",
}
_TORN_BYTES = 700
_PAGE = 1_000
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


class Laboratory:
    """What runs share: they follow one another with sessions of their own."""

    def __init__(self, folder: Path, redis: DurableServer, module: str) -> None:
        self.redis = redis
        self._copies = 0
        self._copy = ""
        self.sidecars: list[RunningDaemon] = []
        self.proxies: list[ChaosProxy] = []
        for number in range(SIDECARS):
            proxy = ChaosProxy(folder / f"p{number}", redis.socket)
            home = folder / f"d{number}"
            home.mkdir(mode=0o700)
            flags = ("--redis-url", proxy.url, "--instance", f"side{number}")
            sidecar = RunningDaemon(home, *flags)
            sidecar.environ |= _OPTIONS
            sidecar.module = module
            self.proxies.append(proxy)
            self.sidecars.append(sidecar)

    async def start(self) -> None:
        """Start everything."""
        for proxy, sidecar in zip(self.proxies, self.sidecars, strict=True):
            await proxy.start()
            await asyncio.to_thread(sidecar.start)

    async def stop(self) -> None:
        """Stop everything."""
        for sidecar in self.sidecars:
            await asyncio.to_thread(sidecar.kill)
        for proxy in self.proxies:
            await proxy.stop()

    async def run(self, schedule: Schedule) -> History:
        """Let clients work while a schedule's faults happen; return what came of it."""
        history = History()
        name = f"s{schedule.seed}-{self._copies}"
        sessions = [f"{name}-a", f"{name}-b"]
        await self._create(sessions)
        self.redis_copy()
        writers = [
            Writer(f"w{number}", self._socket(number), sessions, history, schedule.seed)
            for number in range(WRITERS)
        ]
        watchers = {
            session_id: [Watcher(self._socket(number), session_id) for number in range(_WATCHED)]
            for session_id in sessions
        }
        tasks = [asyncio.create_task(writer.run()) for writer in writers]
        began = time.monotonic()
        for step in schedule.steps:
            await asyncio.sleep(max(0.0, began + step.at - time.monotonic()))
            await self._do(step, tasks)
        for writer in writers:
            writer.stop()
        await self._heal()
        healed = time.monotonic()
        await asyncio.gather(*tasks, return_exceptions=True)
        history.recovery_seconds = max(0.0, await self._settled() - healed)
        known = dict.fromkeys([*sessions, *(told.session_id for told in history.told)])
        history.final = {session_id: await self._final(session_id) for session_id in known}
        await self._watchers_caught_up(watchers, history)
        for session_id, some in watchers.items():
            for watcher in some:
                await watcher.stop()
            history.observed[session_id] = [watcher.seen for watcher in some]
        failures = [task.exception() for task in tasks if not task.cancelled() and task.exception()]
        if failures:
            raise RuntimeError(f"a client failed: {failures[0]!r}") from failures[0]
        return history

    def redis_copy(self) -> None:
        """Copy Redis's files, for a rollback to this moment."""
        self._copies += 1
        self._copy = f"copy{self._copies}"
        self.redis.copy(self._copy)

    def _socket(self, number: int) -> str:
        return str(self.sidecars[number % SIDECARS].socket)

    async def _create(self, sessions: list[str]) -> None:
        client = DaemonClient(socket=self._socket(0))
        for session_id in sessions:
            await client.create(NewSession(session_id=session_id))
        await client.close()

    # Faults

    async def _do(self, step: Step, tasks: list[asyncio.Task[None]]) -> None:
        proxy, sidecar = self.proxies[step.sidecar], self.sidecars[step.sidecar]
        match step.kind:
            case "slow":
                proxy.slow(0.05)
            case "stop up" | "stop down":
                proxy.block(step.kind.removeprefix("stop "))
            case "refuse":
                await proxy.refuse()
            case "cut answer":
                proxy.cut_answers(after_bytes=int(step.lasts * 40))
            case "zombie":
                await self._zombie(proxy, sidecar, step)
            case "pause sidecar" if sidecar.process:
                await _paused(sidecar.process.pid, step.lasts)
            case "kill sidecar":
                sidecar.kill()
                await asyncio.sleep(step.lasts / 4)
                await asyncio.to_thread(sidecar.start)
            case "torn tail":
                sidecar.kill()
                _tear(sidecar.folder)
                await asyncio.to_thread(sidecar.start)
                sidecar.kill()
                await asyncio.to_thread(sidecar.start)
            case "wrong clock":
                await self._restart_at(sidecar, "+1h" if step.at * 100 % 2 else "-1h")
            case "full disk" if sidecar.process:
                await _full_disk(sidecar, step.lasts)
            case "kill client":
                tasks[step.sidecar].cancel()
            case kind:
                await self._redis_fault(kind, step)
        if step.kind in ("slow", "stop up", "stop down", "refuse"):
            await asyncio.sleep(step.lasts)
            proxy.calm()

    async def _redis_fault(self, kind: str, step: Step) -> None:
        redis = self.redis
        match kind:
            case "kill redis":
                redis.kill()
                await asyncio.sleep(step.lasts / 4)
                await asyncio.to_thread(redis.start)
            case "pause redis":
                await _paused(redis.pid, step.lasts)
            case "rollback":
                redis.kill()
                redis.restore(self._copy)
                await asyncio.to_thread(redis.start)
            case "flushall":
                await self._admin("FLUSHALL")
            case "full memory":
                await self._admin("CONFIG", "SET", "maxmemory", "1")
                await asyncio.sleep(step.lasts)
                await self._admin("CONFIG", "SET", "maxmemory", "0")
            case _:
                raise ValueError(f"there is no fault {kind!r}")

    async def _zombie(self, proxy: ChaosProxy, sidecar: RunningDaemon, step: Step) -> None:
        """Keep what is on its way to Redis until its daemon was killed and has begun anew."""
        proxy.hold()
        await asyncio.sleep(step.lasts / 4)
        sidecar.kill()
        proxy.calm()
        await asyncio.to_thread(sidecar.start)

    async def _restart_at(self, sidecar: RunningDaemon, offset: str) -> None:
        """Start a sidecar whose clock is wrong until its next start."""
        sidecar.kill()
        usual = dict(sidecar.environ)
        sidecar.environ |= {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME": offset,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        try:
            await asyncio.to_thread(sidecar.start)
        finally:
            sidecar.environ = usual

    async def _admin(self, *command: str) -> None:
        async with Redis(unix_socket_path=str(self.redis.socket)) as redis:
            with suppress(RedisError):
                await redis.execute_command(*command)

    # The end

    async def _heal(self) -> None:
        for proxy in self.proxies:
            proxy.calm()
        for sidecar in self.sidecars:
            if sidecar.process is None or sidecar.process.poll() is not None:
                await asyncio.to_thread(sidecar.start)

    async def _settled(self) -> float:
        """Wait until no daemon has anything to write any more; return since when (monotonic).

        Every daemon looks at Redis each second; so long nothing must come up again.
        """
        clients = [DaemonClient(socket=str(sidecar.socket)) for sidecar in self.sidecars]
        states: list[OutboxStatus | None] = []
        busy = time.monotonic()
        end = busy + _SETTLE_SECONDS
        while time.monotonic() < busy + _QUIET_SECONDS:
            if time.monotonic() > end:
                raise RuntimeError(f"the daemons do not come to rest: {states}")
            states = [await _outbox(client) for client in clients]
            if not all(state and not state.waiting and not state.in_doubt for state in states):
                busy = time.monotonic()
            await asyncio.sleep(0.02)
        for client in clients:
            await client.close()
        return busy

    async def _final(self, session_id: str) -> FinalSession:
        final = FinalSession()
        for sidecar in self.sidecars:
            client = DaemonClient(socket=str(sidecar.socket))
            try:
                session = await client.load(session_id)
                final.loads.append(msgspec.json.decode(json.encode(session)))
                final.log = await _log(client, session_id)
            except SessionDeleted:
                final.deleted = True
            except NotFound:
                pass
            with suppress(SessiondError):
                final.conflicts = json.encode(await client.conflicts(session_id)).decode()
            await client.close()
        return final

    async def _watchers_caught_up(
        self, watchers: dict[str, list[Watcher]], history: History
    ) -> None:
        """Give observers the time that they need to connect again."""
        deadline = time.monotonic() + 8
        for session_id, some in watchers.items():
            final = history.final[session_id]
            end = final.log[-1] if final.log else None
            for watcher in some:
                while end and time.monotonic() < deadline and not _holds(watcher, end):
                    await asyncio.sleep(0.02)


@asynccontextmanager
async def laboratory(module: str = "sessiond") -> AsyncIterator[Laboratory]:
    """Run one in a fresh folder."""
    folder = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
    try:
        with durable_server() as redis:
            found = Laboratory(folder, redis, module)
            await found.start()
            try:
                yield found
            finally:
                await found.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _outbox(client: DaemonClient) -> OutboxStatus | None:
    with suppress(SessiondError):
        status: OutboxStatus
        status, _ = await client.call("GET", "/v1/journal", OutboxStatus)
        return status
    return None


async def _log(client: DaemonClient, session_id: str) -> list[Seen]:
    log: list[Seen] = []
    after = "0"
    while True:
        page = await client.operations(session_id, after=after, limit=_PAGE)
        log += [seen_in(json.encode(operation), 0) for operation in page.operations]
        if len(page.operations) < _PAGE:
            return log
        after = page.position


def _holds(watcher: Watcher, end: Seen) -> bool:
    last = watcher.seen[-1] if watcher.seen else None
    return last is not None and (last.offset, last.epoch) == (end.offset, end.epoch)


async def _paused(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


async def _full_disk(sidecar: RunningDaemon, seconds: float) -> None:
    """Let no file of a sidecar grow for a while."""
    assert sidecar.process
    pid, unlimited = sidecar.process.pid, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    await asyncio.sleep(seconds)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)


def _tear(folder: Path) -> None:
    """Leave behind the journal's log what a write that was not finished leaves there.

    Nothing that was acknowledged is touched: it was synced.
    """
    log = folder / "sessiond" / "journal" / "current" / "journal.db-wal"
    if log.exists():
        with log.open("ab") as file:
            file.write(os.urandom(_TORN_BYTES))

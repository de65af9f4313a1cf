"""What can be done to the machines of a laboratory, each by its name in a schedule."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct
from redis.asyncio import Redis

from tests.api.servers import DurableServer
from tests.system.faults.machines import Machine, Machines
from tests.system.faults.proxy import ChaosProxy, Way
from tests.system.faults.schedule import Step

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
_TORN_BYTES = 700
_FULL_BYTES = 1024
_READ_BYTES = 100
_FOLLOW_SECONDS = 10.0
_LONG_SECONDS = 0.6
"""Of a step's time: from here on it does the greater of two harms."""


class Targets(Struct, frozen=True):
    """What faults happen to.

    `clients` are the tasks that write, `session_ids` where.
    """

    machines: Machines
    clients: list[asyncio.Task[None]]
    session_ids: list[str]


Nemesis = Callable[[Targets, Step], Awaitable[None]]


async def strike(targets: Targets, step: Step) -> None:
    """Let a step of a schedule happen, and return when it is over."""
    await NEMESES[step.kind](targets, step)


# Sidecars


async def _kill_sidecar(targets: Targets, step: Step) -> None:
    async with _alone(targets, step) as machine:
        machine.sidecar.kill()
        await asyncio.sleep(step.lasts / 4)
        await machine.start()


async def _pause_sidecar(targets: Targets, step: Step) -> None:
    async with _alone(targets, step) as machine:
        await _pause(_pid(machine), step.lasts)


async def _late_request(targets: Targets, step: Step) -> None:
    """What a sidecar had on its way to Redis arrives when its next life has gone on."""
    async with _alone(targets, step) as machine:
        machine.proxy.hold()
        await asyncio.sleep(step.lasts / 4)
        machine.sidecar.kill()
        await machine.start()
        await asyncio.sleep(step.lasts / 4)
        machine.proxy.release()


async def _torn_tail(targets: Targets, step: Step) -> None:
    """A crash leaves half a write behind the journal's log; what comes then is crashed upon, too.

    Nothing that was acknowledged is touched: it was synced. Redis is away in between, so that
    what is acknowledged then is only in the journal.
    """
    async with _alone(targets, step) as machine:
        machine.sidecar.kill()
        if machine.journal_log.exists():
            with machine.journal_log.open("ab") as log:
                log.write(os.urandom(_TORN_BYTES))
        await machine.start()
        await machine.proxy.refuse()
        await asyncio.sleep(step.lasts / 2)
        machine.sidecar.kill()
        machine.proxy.calm()
        await machine.start()


async def _wrong_clock(targets: Targets, step: Step) -> None:
    """A sidecar's clock is wrong by an hour until its next start."""
    assert FAKETIME, "a clock can be set with libfaketime only (Debian: apt-get install faketime)"
    async with _alone(targets, step) as machine:
        sidecar = machine.sidecar
        sidecar.kill()
        usual = dict(sidecar.environ)
        sidecar.environ |= {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME": "+1h" if step.lasts > _LONG_SECONDS else "-1h",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # else each change of threads takes 20 ms
        }
        try:
            await machine.start()
        finally:
            sidecar.environ = usual


async def _full_disk(targets: Targets, step: Step) -> None:
    """No file of a sidecar can grow for a while."""
    async with _alone(targets, step) as machine:
        pid, unlimited = _pid(machine), resource.RLIM_INFINITY
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (_FULL_BYTES, unlimited))
        await asyncio.sleep(step.lasts)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))


# Clients


async def _kill_client(targets: Targets, step: Step) -> None:
    targets.clients[step.sidecar].cancel()


async def _slow_consumer(targets: Targets, step: Step) -> None:
    """Somebody asks for events from the beginning, and hardly reads them."""
    machine = targets.machines.each[step.sidecar]
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_unix_connection(machine.socket, limit=_READ_BYTES)
        path = f"/v1/sessions/{targets.session_ids[0]}/events"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 0\r\n\r\n".encode())
        await asyncio.sleep(step.lasts)
        writer.transport.abort()


# The way to Redis


async def _slow(targets: Targets, step: Step) -> None:
    proxy = _proxy(targets, step)
    proxy.slow(0.05)
    await asyncio.sleep(step.lasts)
    proxy.calm()


async def _requests_stall(targets: Targets, step: Step) -> None:
    proxy = _proxy(targets, step)
    proxy.block(Way.TO_REDIS)
    await asyncio.sleep(step.lasts)
    proxy.calm()


async def _answers_stall(targets: Targets, step: Step) -> None:
    proxy = _proxy(targets, step)
    proxy.block(Way.TO_DAEMON)
    await asyncio.sleep(step.lasts)
    proxy.calm()


async def _answers_are_lost(targets: Targets, step: Step) -> None:
    """What Redis answers does not arrive, and the connection breaks in the end."""
    proxy = _proxy(targets, step)
    proxy.block(Way.TO_DAEMON)
    await asyncio.sleep(step.lasts)
    await proxy.drop()
    proxy.calm()


async def _refuse(targets: Targets, step: Step) -> None:
    proxy = _proxy(targets, step)
    await proxy.refuse()
    await asyncio.sleep(step.lasts)
    proxy.calm()


async def _cut_answer(targets: Targets, step: Step) -> None:
    _proxy(targets, step).cut_answers(after_bytes=int(step.lasts * 40))


# Redis


async def _kill_redis(targets: Targets, step: Step) -> None:
    redis = targets.machines.redis
    async with redis.lock:
        redis.server.kill()
        await asyncio.sleep(step.lasts / 4)
        await asyncio.to_thread(redis.server.start)


async def _pause_redis(targets: Targets, step: Step) -> None:
    redis = targets.machines.redis
    async with redis.lock:
        await _pause(redis.server.pid, step.lasts)


async def _rollback(targets: Targets, step: Step) -> None:
    """Redis crashes and comes back as it was when the run began, or a moment ago."""
    redis = targets.machines.redis
    async with redis.lock:
        if step.lasts <= _LONG_SECONDS:
            await redis.copy()
            await asyncio.sleep(step.lasts / 2)
        await redis.go_back(far=step.lasts > _LONG_SECONDS)


async def _flush(targets: Targets, _: Step) -> None:
    redis = targets.machines.redis
    async with redis.lock:
        await redis.ask("FLUSHALL")


async def _full_memory(targets: Targets, step: Step) -> None:
    redis = targets.machines.redis
    async with redis.lock:
        await redis.ask("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(step.lasts)
        await redis.ask("CONFIG", "SET", "maxmemory", "0")


async def _demote(targets: Targets, step: Step) -> None:
    """Redis is told to follow a server that is not there, and then to lead again."""
    redis = targets.machines.redis
    async with redis.lock:
        await redis.ask("REPLICAOF", "127.0.0.1", 1)
        await asyncio.sleep(step.lasts / 2)
        await redis.ask("REPLICAOF", "NO", "ONE")


async def _promote(targets: Targets, step: Step) -> None:
    """A replica that stopped hearing of Redis takes its place."""
    machines = targets.machines
    async with machines.redis.lock:
        successor = machines.redis.new_server()
        await asyncio.to_thread(successor.start)
        async with _followed(machines.redis.server, successor) as link:
            link.block(Way.TO_DAEMON)
            await asyncio.sleep(step.lasts / 2)
            async with Redis(unix_socket_path=str(successor.socket)) as redis:
                await redis.execute_command("REPLICAOF", "NO", "ONE")
            await machines.lead_to(successor)


@asynccontextmanager
async def _followed(primary: DurableServer, replica: DurableServer) -> AsyncIterator[ChaosProxy]:
    """Let a server follow another one, through a proxy; begins when it has all and keeps it."""
    link = ChaosProxy(replica.socket.with_suffix(".link"), primary.socket)
    port = await link.start_on_loopback()
    try:
        async with Redis(unix_socket_path=str(primary.socket)) as redis:
            await redis.execute_command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
        async with Redis(unix_socket_path=str(replica.socket)) as redis:
            await redis.execute_command("REPLICAOF", "127.0.0.1", port)
            deadline = time.monotonic() + _FOLLOW_SECONDS
            while not _is_following(await redis.info("everything")):
                assert time.monotonic() < deadline, "the replica does not follow"
                await asyncio.sleep(0.02)
        yield link
    finally:
        await link.stop()


def _is_following(found: dict[str, object]) -> bool:
    """Tell whether a replica has all of its primary, and writes it into its own files."""
    return found.get("master_link_status") == "up" and not (
        found.get("aof_rewrite_in_progress") or found.get("aof_rewrite_scheduled")
    )


NEMESES: dict[str, Nemesis] = {
    "kill sidecar": _kill_sidecar,
    "pause sidecar": _pause_sidecar,
    "late request": _late_request,
    "torn tail": _torn_tail,
    "wrong clock": _wrong_clock,
    "full disk": _full_disk,
    "kill client": _kill_client,
    "slow consumer": _slow_consumer,
    "slow": _slow,
    "requests stall": _requests_stall,
    "answers stall": _answers_stall,
    "answers lost": _answers_are_lost,
    "refuse": _refuse,
    "cut answer": _cut_answer,
    "kill redis": _kill_redis,
    "pause redis": _pause_redis,
    "rollback": _rollback,
    "flush": _flush,
    "full memory": _full_memory,
    "demote": _demote,
    "promote": _promote,
}


@asynccontextmanager
async def _alone(targets: Targets, step: Step) -> AsyncIterator[Machine]:
    """Wait until no other fault ends or starts the step's sidecar."""
    machine = targets.machines.each[step.sidecar]
    async with machine.lock:
        yield machine


def _proxy(targets: Targets, step: Step) -> ChaosProxy:
    return targets.machines.each[step.sidecar].proxy


def _pid(machine: Machine) -> int:
    assert machine.sidecar.process
    return machine.sidecar.process.pid


async def _pause(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    os.kill(pid, signal.SIGCONT)

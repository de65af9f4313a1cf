"""Daemons from outside: HTTP, events, loading, start and size."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import uvloop

from sessiond.client import DaemonClient
from sessiond.config import Configuration, RedisOptions
from sessiond.core import Core
from sessiond.manager.direct import DirectBackend
from sessiond.model import NewSession
from sessiond.store.draft import Draft
from tests.bench.machinery import (
    Figure,
    RawClient,
    api_socket,
    body,
    daemon,
    figure,
    latencies,
    p50,
    p99,
    scratch,
    server,
    shifted,
    throughput,
)

_AT = "2026-11-22T09:00:00.000Z"
_SUBSCRIBERS = 1_000


def figures() -> list[Figure]:
    """Measure daemons."""
    with scratch() as folder, server(folder) as url:
        return [
            *uvloop.run(_start(folder / "own")),
            *uvloop.run(_appends(folder / "one", url)),
            *uvloop.run(_events(folder, url)),
            *uvloop.run(_loading(folder / "load", url)),
        ]


async def _start(folder: Path) -> list[Figure]:
    """Ready with an embedded server of its own; resident memory when idle."""
    taken = []
    resident = 0.0
    for number in range(3):
        began = time.perf_counter()
        async with daemon(folder.with_name(f"own{number}")) as (_, pid):
            taken.append(time.perf_counter() - began)
            await asyncio.sleep(1)
            resident = max(resident, _resident_mib(pid))
    return [
        figure("ready with the embedded server", p50(taken), "s", most=1),
        figure("resident memory, idle", resident, "MiB", most=100),
    ]


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def _appends(folder: Path, url: str) -> list[Figure]:
    async with daemon(folder, "--redis-url", url) as (client, _):
        await client.create(NewSession(session_id="ses_http"))
        clients = [await RawClient.open(api_socket(folder)) for _ in range(16)]
        await latencies(300, lambda index: clients[0].append("ses_http", index))
        one = await latencies(2_000, lambda index: clients[0].append("ses_http", 10_000 + index))
        idle = list(clients)

        async def append(index: int) -> None:
            mine = idle.pop()
            await mine.append("ses_http", index)
            idle.append(mine)

        rates = []
        for round_ in range(3):
            first = 100_000 * (round_ + 1)
            rates.append(await throughput(15_000, 16, shifted(append, first)))
        for each in clients:
            each.close()
    return [
        figure("HTTP append over the Unix socket, p50", p50(one) * 1e3, "ms", most=0.6),
        figure("HTTP append, 16 clients on one session", p50(rates), "/s", least=10_000),
    ]


async def _events(folder: Path, url: str) -> list[Figure]:
    """Append at one daemon, event at another, for one subscriber and for a thousand."""
    async with (
        daemon(folder / "first", "--redis-url", url) as (first, _),
        daemon(folder / "second", "--redis-url", url, "--instance", "second"),
    ):
        await first.create(NewSession(session_id="ses_events"))
        writer = await RawClient.open(api_socket(folder / "first"))
        alone = await _delays(writer, api_socket(folder / "second"), 1, 500, 0)
        crowd = await _delays(writer, api_socket(folder / "second"), _SUBSCRIBERS, 30, 1_000)
        writer.close()
    return [
        figure("append here → event there, p50", p50(alone) * 1e3, "ms", most=1.5),
        figure("append here → event there, p99", p99(alone) * 1e3, "ms", most=10),
        figure("the same with 1,000 subscribers, p50", p50(crowd) * 1e3, "ms", most=20),
    ]


async def _delays(
    writer: RawClient, socket: Path, subscribers: int, count: int, first: int
) -> list[float]:
    """Return the seconds from sending an append to its arrival, of every subscriber."""
    arrived: list[float] = []
    everybody = asyncio.Event()
    started = asyncio.Semaphore(0)

    async def subscribe(connection: asyncio.StreamReader) -> None:
        await connection.readuntil(b"retry: ")
        started.release()
        while True:
            await connection.readuntil(b"event: message.append")
            arrived.append(time.perf_counter())
            if len(arrived) % subscribers == 0:
                everybody.set()

    async with AsyncExitStack() as stack:
        tasks = []
        for _ in range(subscribers):
            reader, sender = await asyncio.open_unix_connection(str(socket))
            stack.callback(sender.close)
            sender.write(b"GET /v1/sessions/ses_events/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            tasks.append(asyncio.create_task(subscribe(reader)))
        for _ in range(subscribers):
            await started.acquire()
        delays: list[float] = []
        for index in range(count):
            arrived.clear()
            everybody.clear()
            sent = time.perf_counter()
            await writer.append("ses_events", first + index)
            await everybody.wait()
            delays += [moment - sent for moment in arrived]
        for task in tasks:
            task.cancel()
    return delays


async def _loading(folder: Path, url: str) -> list[Figure]:
    """Load and catch up with 10,000 messages of 1 KiB."""
    core = Core(url, Configuration(redis=RedisOptions(url=url)), instance="bench")
    direct = DirectBackend(core)
    await direct.create(NewSession(session_id="ses_long"))

    async def append(index: int) -> None:
        draft = Draft("message.append", f"msg_{index:016d}", _AT, body(index))
        await core.committer.commit("ses_long", [draft])

    await throughput(10_000, 100, append)
    start = (await direct.operations("ses_long", limit=1)).position
    loads, http, raw, caught = [], [], [], []
    async with daemon(folder, "--redis-url", url) as (client, _):
        for _ in range(5):
            began = time.perf_counter()
            session = await direct.load("ses_long")
            loads.append(time.perf_counter() - began)
            assert len(session.conversation.messages) == 10_000
            began = time.perf_counter()
            await client.load("ses_long")
            http.append(time.perf_counter() - began)
            raw.append(await _raw_load(api_socket(folder)))
            caught.append(await _catch_up(client, start))
    await direct.close()
    return [
        figure("load 10,000 messages to Structs, direct", p50(loads) * 1e3, "ms", most=70),
        figure("load 10,000 messages through HTTP", p50(raw) * 1e3, "ms", most=120),
        figure("the same, decoded to Structs by the client", p50(http) * 1e3, "ms"),
        figure("catch up with 10,000 missed messages", p50(caught) * 1e3, "ms", most=150),
    ]


async def _raw_load(socket: Path) -> float:
    connector = aiohttp.UnixConnector(str(socket))
    async with aiohttp.ClientSession(connector=connector, read_bufsize=2**20) as http:
        began = time.perf_counter()
        async with http.get("http://localhost/v1/sessions/ses_long") as response:
            content = await response.read()
        taken = time.perf_counter() - began
    assert content.count(b'"role"') == 10_000
    return taken


async def _catch_up(client: DaemonClient, after: str) -> float:
    began = time.perf_counter()
    count = 0
    async with client.events("ses_long", after) as events:
        async for _ in events:
            count += 1
            if count == 10_000:
                break
    return time.perf_counter() - began

"""What it costs to notice damage, to look for it, and to trace operations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import uvloop

from sessiond.config import Configuration, RedisOptions
from sessiond.core import Core
from sessiond.model import NewMessage, NewSession
from tests.bench.machinery import (
    Figure,
    RawClient,
    api_socket,
    daemon,
    figure,
    latencies,
    p50,
    scratch,
    server,
)

_MESSAGES = 10_000
_GROUP = 50
_LOADS = 15
_ROUNDS = 6
_APPENDS = 500


def figures() -> Iterator[Figure]:
    """Measure on one server: in-process, then a daemon whose trace is switched on and off."""
    with scratch() as folder, server(folder) as url:
        yield from uvloop.run(_reading(url))
        yield from uvloop.run(_tracing(folder / "d", url))


async def _reading(url: str) -> list[Figure]:
    core = Core(url, Configuration(redis=RedisOptions(url=url)), instance="bench")
    await core.sessions.create(NewSession(session_id="ses_long"))
    for start in range(0, _MESSAGES, _GROUP):
        group = [
            NewMessage(role="user", content=f"{number} " + "x" * 900)
            for number in range(start, start + _GROUP)
        ]
        await core.messages.append("ses_long", group)
    checked, unchecked = [], []
    for _ in range(_LOADS):  # in turns, so that a busy moment hits both
        checked.append(await _load(core))
        with patch("sessiond.store.entries.broken_link", lambda _: None):
            unchecked.append(await _load(core))
    began = time.perf_counter()
    page = await core.scanner.sessions(["ses_long"])
    scanned = time.perf_counter() - began
    assert page.damage == []
    await core.close()
    return [
        figure("load 10,000 messages, chain followed", p50(checked) * 1000, "ms"),
        figure("the same / chain not followed", p50(checked) / p50(unchecked), "×"),
        figure("scan a session of 10,000 messages", scanned * 1000, "ms"),
    ]


async def _load(core: Core) -> float:
    began = time.perf_counter()
    await core.sessions.load("ses_long")
    return time.perf_counter() - began


async def _tracing(folder: Path, url: str) -> list[Figure]:
    off, ratios = [], []
    async with daemon(folder, "--redis-url", url) as (client, _):
        writer = await RawClient.open(api_socket(folder))
        for round_ in range(_ROUNDS):
            taken = {}
            for switch in ("false", "true") if round_ % 2 else ("true", "false"):
                option = {"debug.sessions": switch}
                await client.call("PATCH", "/v1/config", dict[str, str], body=option)
                name = f"ses_{round_}_{switch}"
                await client.create(NewSession(session_id=name))
                times = await latencies(_APPENDS, lambda n, name=name: writer.append(name, n))  # type: ignore[misc]
                taken[switch] = p50(times)
            off.append(taken["false"])
            ratios.append(taken["true"] / taken["false"])
        writer.close()
    return [
        figure("HTTP append, not traced, p50", statistics.median(off) * 1000, "ms"),
        figure("HTTP append, p50: debug.sessions on / off", statistics.median(ratios), "×"),
    ]

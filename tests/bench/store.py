"""The store against plain Redis commands on the same server, in the same run."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop
from redis.asyncio import Redis

from sessiond.config import Configuration, RedisOptions, SyncOptions
from sessiond.core import Core
from sessiond.model import NewSession
from sessiond.store.draft import Draft
from tests.bench.machinery import (
    Figure,
    body,
    figure,
    latencies,
    p50,
    scratch,
    server,
    shifted,
    throughput,
)

_AT = "2026-11-22T09:00:00.000Z"
_ROUNDS = 5
_WRITERS = 16
_PER_WRITER = 400


def figures() -> list[Figure]:
    """Measure the store."""
    with scratch() as folder, server(folder) as url:
        return [
            *uvloop.run(_sequential(url)),
            *uvloop.run(_concurrent(url)),
            *_processes(url),
            *uvloop.run(_memory(url)),
        ]


def _core(url: str, batch: int = 128) -> Core:
    options = Configuration(redis=RedisOptions(url=url), sync=SyncOptions(batch_operations=batch))
    return Core(url, options, instance="bench")


async def _session(core: Core, name: str) -> Callable[[int], Awaitable[object]]:
    await core.sessions.create(NewSession(session_id=name))

    def append(index: int) -> Awaitable[object]:
        draft = Draft("message.append", f"msg_{index:016d}", _AT, body(index))
        return core.committer.commit(name, [draft])

    return append


async def _sequential(url: str) -> list[Figure]:
    """Ratios of medians, taken in turns, so that a machine's moods hit both."""
    core, plain = _core(url), Redis.from_url(url)
    append = await _session(core, "ses_sequential")
    filled = await _session(core, "ses_filled")
    for first in range(0, 10_000, 100):
        await asyncio.gather(*(filled(index) for index in range(first, first + 100)))

    def xadd(index: int) -> Awaitable[object]:
        return plain.execute_command("XADD", "plain", "*", "json", body(index))

    ratios, flat, ours, theirs = [], [], [], []
    for round_ in range(_ROUNDS):
        first = round_ * 400
        baseline = p50(await latencies(400, xadd))
        empty = p50(await latencies(400, shifted(append, first)))
        full = p50(await latencies(400, shifted(filled, 10_000 + first)))
        ratios.append(empty / baseline)
        flat.append(full / empty)
        ours.append(empty * 1e6)
        theirs.append(baseline * 1e6)
    await plain.aclose()
    await core.close()
    return [
        figure("plain XADD, redis-py, p50", p50(theirs), "µs"),
        figure("append, p50", p50(ours), "µs"),
        figure("append / plain XADD, p50", p50(ratios), "×", most=1.5),
        figure("append at 10,000 messages / empty session", p50(flat), "×", most=1.1),
    ]


async def _concurrent(url: str) -> list[Figure]:
    core, single = _core(url), _core(url, batch=1)
    append = await _session(core, "ses_concurrent")
    unbatched = await _session(single, "ses_unbatched")
    await throughput(2_000, 64, lambda index: append(10**9 + index))
    grouped, alone, native = [], [], []
    for round_ in range(3):
        first = round_ * 20_000
        grouped.append(await throughput(20_000, 64, shifted(append, first)))
        alone.append(await throughput(2_000, 64, shifted(unbatched, first)))
        native.append(_redis_benchmark(url))
    await core.close()
    await single.close()
    found = [
        figure("64 appenders, one session", p50(grouped), "/s"),
        figure("64 appenders / unbatched", p50(grouped) / p50(alone), "×", least=4),
    ]
    if all(native):
        best = p50([value for value in native if value])
        found.append(figure("redis-benchmark XADD, 16 clients", best, "/s"))
        found.append(figure("64 appenders / redis-benchmark", p50(grouped) / best, "×", least=1.2))
    return found


def _redis_benchmark(url: str) -> float | None:
    program = shutil.which("redis-benchmark")
    if program is None:
        return None
    output = subprocess.run(
        [
            program, "-s", url.removeprefix("unix://"), "-c", "16", "-n", "40000", "--csv",
            "XADD", "native", "*", "json", "x" * 1024,
        ],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return float(output.splitlines()[-1].split('","')[1].strip('"'))


def _processes(url: str) -> list[Figure]:
    """16 processes write to one session, then 16 processes XADD to one stream."""
    ours, theirs = _writers(url, "append"), _writers(url, "xadd")
    total = _WRITERS * _PER_WRITER
    rate, plain = total / max(ours), total / max(theirs)
    return [
        figure("16 writer processes, one session", rate, "/s"),
        figure("16 writer processes / plain XADD writers", rate / plain, "×", least=0.6),
        figure("slowest / fastest of them", min(ours) / max(ours), "×", least=0.7),
    ]


def _writers(url: str, kind: str) -> list[float]:
    uvloop.run(_create(url, f"ses_{kind}"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.store", url, kind, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(_WRITERS)
    ]
    for process in processes:
        assert process.stdout
        process.stdout.readline()  # it is ready
    for process in processes:
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.flush()
    return [float(process.communicate()[0]) for process in processes]


async def _create(url: str, name: str) -> None:
    core = _core(url)
    await core.sessions.create(NewSession(session_id=name))
    await core.close()


async def _writer(url: str, kind: str, number: int) -> None:
    """Be one of the writer processes."""
    core, plain = _core(url), Redis.from_url(url)
    await core.redis.ping()
    await plain.ping()

    def write(index: int) -> Awaitable[object]:
        message = number * 10**6 + index
        if kind == "xadd":
            return plain.execute_command("XADD", "contended", "*", "json", body(message))
        draft = Draft("message.append", f"msg_{message:016d}", _AT, body(message))
        return core.committer.commit("ses_append", [draft])

    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    began = time.perf_counter()
    for index in range(_PER_WRITER):
        await write(index)
    print(time.perf_counter() - began, flush=True)
    await plain.aclose()
    await core.close()


async def _memory(url: str) -> list[Figure]:
    core = _core(url)
    append = await _session(core, "ses_memory")
    before = (await core.redis.info("memory"))["used_memory"]
    for first in range(0, 20_000, 100):
        await asyncio.gather(*(append(index) for index in range(first, first + 100)))
    after = (await core.redis.info("memory"))["used_memory"]
    await core.close()
    return [
        figure("Redis memory per 1 KiB message", (after - before) / 20_000 / 1024, "KiB", most=1.3)
    ]


if __name__ == "__main__":
    uvloop.run(_writer(sys.argv[1], sys.argv[2], int(sys.argv[3])))

"""One document that many change at once, against WATCH/MULTI/EXEC on the same server.

Both read it, open a file and close an older one, count, move to another place, and write it back.
What WATCH protects is two fields of a hash: no log, no versions, no conflicts, nobody is told.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvloop
from redis.asyncio import Redis
from redis.exceptions import WatchError

from sessiond.config import Configuration, RedisOptions
from sessiond.core import Core
from sessiond.model import Context, NewSession
from sessiond.service.writing import Request
from tests.bench.machinery import Figure, figure, latencies, p50, scratch, server
from tests.bench.merge import large_context

_CHANGES = 1_600
_ROUNDS = 3
_PROCESSES, _EACH = 4, 4
_OPEN = 5
"""Files that a writer has open."""

Write = Callable[[int], Awaitable[None]]


def figures() -> list[Figure]:
    """Measure contended documents."""
    with scratch() as folder, server(folder) as url:
        return [*uvloop.run(_contended(url)), *_processes(url), *uvloop.run(_large(url))]


def _core(url: str) -> Core:
    return Core(url, Configuration(redis=RedisOptions(url=url)), instance="bench")


async def _contended(url: str) -> list[Figure]:
    """Writers of one process, taken in turns, so that a machine's moods hit both."""
    core, found = _core(url), []
    for writers in (1, 4, 16):
        ours, theirs = [], []
        for round_ in range(_ROUNDS):
            name = f"{writers}_{round_}"
            await _create(core, name)
            ours.append(await _rate(await _mergers(core, name, writers)))
            await _check(core, name)
            plain = Redis.from_url(url)
            theirs.append(await _rate([_watcher(plain, name, n) for n in range(writers)]))
            assert await plain.hget(f"plain_{name}", "edit_count") == b"%d" % _CHANGES
            await plain.aclose()
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        title = f"{writers} writer{'s' * (writers > 1)} of one document"
        found += [
            figure(f"{title}: merged changes", p50(ours), "/s"),
            figure(f"{title} / WATCH, MULTI, EXEC", p50(ratios), "×", least=5 * (writers == 16)),
        ]
    await core.close()
    return found


async def _rate(writers: list[Write], changes: int = _CHANGES) -> float:
    each = changes // len(writers)

    async def work(write: Write) -> None:
        for number in range(each):
            await write(number)

    began = time.perf_counter()
    await asyncio.gather(*map(work, writers))
    return each * len(writers) / (time.perf_counter() - began)


async def _create(core: Core, name: str) -> None:
    context = Context(state={"edit_count": 0})
    await core.sessions.create(NewSession(session_id=f"ses_{name}", context=context))


async def _check(core: Core, name: str) -> None:
    value = (await core.documents.read(f"ses_{name}", "context")).value
    assert value.state["edit_count"] == _CHANGES, "a change was lost"


async def _mergers(core: Core, name: str, writers: int, first: int = 0) -> list[Write]:
    """Return writers that base each change on the answer to their last."""
    session_id = f"ses_{name}"
    known = await core.documents.read(session_id, "context")

    def merger(writer: int) -> Write:
        answer = known

        async def write(number: int) -> None:
            nonlocal answer
            before: dict[str, Any] = msgspec.to_builtins(answer.value)
            patch = {
                "active_files": _files(before["active_files"], writer, number),
                "working_directory": f"/{writer}/{number}",
                "state": {"edit_count": before["state"]["edit_count"] + 1},
            }
            request = Request(base=answer.version)
            answer = await core.documents.change(session_id, "context", patch, request)

        return write

    return [merger(first + writer) for writer in range(writers)]


def _watcher(redis: Redis, name: str, writer: int) -> Write:
    """Return a writer that reads, changes and writes under WATCH until nobody was faster."""
    key = f"plain_{name}"

    async def write(number: int) -> None:
        async with redis.pipeline() as pipeline:
            while True:
                await pipeline.watch(key)
                fields = await pipeline.hgetall(key)
                files = msgspec.json.decode(fields.get(b"active_files", b"[]"))
                pipeline.multi()
                pipeline.hset(
                    key,
                    mapping={
                        "active_files": msgspec.json.encode(_files(files, writer, number)),
                        "working_directory": f"/{writer}/{number}",
                        "edit_count": int(fields.get(b"edit_count", 0)) + 1,
                    },
                )
                try:
                    await pipeline.execute()
                except WatchError:
                    continue
                return

    return write


def _files(before: list[str], writer: int, number: int) -> list[str]:
    closed = f"{writer}-{number - _OPEN}.py"
    return [*(file for file in before if file != closed), f"{writer}-{number}.py"]


def _processes(url: str) -> list[Figure]:
    """Some processes with some writers each: they meet only in Redis."""
    uvloop.run(_created(url))
    ours, theirs = _rates(url, "merge"), _rates(url, "watch")
    title = f"{_PROCESSES} processes × {_EACH} writers of one document"
    return [
        figure(f"{title}: merged changes", ours, "/s"),
        figure(f"{title} / WATCH, MULTI, EXEC", ours / theirs, "×"),
    ]


async def _large(url: str) -> list[Figure]:
    """Two writers take turns in a large context, each on the answer to its own last change."""
    core = _core(url)
    await core.sessions.create(
        NewSession(session_id="ses_large", context=msgspec.convert(large_context(), Context))
    )
    known = await core.documents.read("ses_large", "context")
    answers = [known, known]

    async def write(number: int) -> None:
        last = answers[number % 2]
        state = msgspec.to_builtins(last.value.state)
        state["tasks"][f"task_{number}"]["title"] += ", changed"
        request = Request(base=last.version)
        patch = {"state": {"tasks": state["tasks"]}}
        answers[number % 2] = await core.documents.change("ses_large", "context", patch, request)

    taken = await latencies(100, write)
    await core.close()
    return [figure("a merged change of a 100 KB context, in all, p50", p50(taken) * 1e3, "ms")]


async def _created(url: str) -> None:
    core = _core(url)
    await _create(core, "processes")
    await core.close()


def _rates(url: str, kind: str) -> float:
    """Return changes per second of all processes, until the slowest is done."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.documents", url, kind, str(number * _EACH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(_PROCESSES)
    ]
    for process in processes:
        assert process.stdout
        process.stdout.readline()  # it is ready
    for process in processes:
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.flush()
    slowest = max(float(process.communicate()[0]) for process in processes)
    return _CHANGES / slowest


async def _writer(url: str, kind: str, first: int) -> None:
    """Be one of the processes."""
    core, plain = _core(url), Redis.from_url(url)
    writers = (
        await _mergers(core, "processes", _EACH, first)
        if kind == "merge"
        else [_watcher(plain, "processes", first + number) for number in range(_EACH)]
    )
    await plain.ping()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    changes = _CHANGES // _PROCESSES
    print(changes / await _rate(writers, changes), flush=True)
    await plain.aclose()
    await core.close()


if __name__ == "__main__":
    uvloop.run(_writer(sys.argv[1], sys.argv[2], int(sys.argv[3])))

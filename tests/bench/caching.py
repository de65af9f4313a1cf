"""What the cache of tools' answers costs and saves, beside the tools themselves.

No recording of an opencode here reads files, so what is read together is taken from the history of
this project: `data/read_together.txt` has the files of 104 commits, a line for each. One machine
works through the first half of them, another through the second: how much of what it asks for is in
its daemon's memory, with and without loading ahead? As between the calls of a model, there is time
to load between two questions.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvloop

from sessiond.config import Configuration, RedisOptions
from sessiond.core import Core
from sessiond.manager.session_cache import Looked, SessionCache
from sessiond.model import CacheCall, CacheLookup, NewCacheValue, NewSession
from sessiond.service.cached.caching import Caches
from sessiond.service.cached.fingerprints import SETTLED_NS, Fingerprints
from sessiond.service.cached.prefetching import AHEAD
from sessiond.store.cache import CacheStore
from tests.bench.machinery import (
    Figure,
    daemon,
    figure,
    latencies,
    p50,
    scratch,
    server,
    shifted,
)

_SESSION = "ses_1"
_CALLS = 1_000
_FILES = 400
_BYTES = 4_096
_SEARCHES = 50
_COMMITS = (Path(__file__).parent / "data" / "read_together.txt").read_text().splitlines()


def figures() -> Iterator[Figure]:
    """Measure on a server of this machine; the plain tools come first, for comparison."""
    with scratch() as folder, server(folder) as url:
        project = _project(folder / "project")
        time.sleep(SETTLED_NS / 1e9 + 0.1)  # what was just written is not cached
        yield from _tools(project)
        yield from uvloop.run(_daemon(folder / "daemon", url, project))
        yield from uvloop.run(_ahead(url, project))


def _project(root: Path) -> Path:
    paths = {path for line in _COMMITS for path in line.split()}
    paths |= {f"many/{number}.txt" for number in range(_FILES)}
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        line = f"{secrets.token_hex(30)} {path}\n"
        (root / path).write_text(line * (_BYTES // len(line)))
    return root


def _tools(project: Path) -> Iterator[Figure]:
    def read(index: int) -> None:
        (project / f"many/{index % _FILES}.txt").read_text(encoding="utf-8")

    yield figure("a file of 4 KiB, read plainly, p50", 1e6 * _timed(_CALLS, read), "µs")
    found = _timed(_SEARCHES, lambda _: _grep(project))
    yield figure(f"grep -r through {_FILES} of them, p50", 1000 * found, "ms")


def _timed(count: int, action: Callable[[int], object]) -> float:
    taken = []
    for index in range(count):
        began = time.perf_counter()
        action(index)
        taken.append(time.perf_counter() - began)
    return p50(taken)


def _grep(project: Path) -> str:
    done = subprocess.run(
        ["grep", "-rc", "ffff", str(project / "many")], capture_output=True, text=True, check=False
    )
    return done.stdout


async def _daemon(folder: Path, url: str, project: Path) -> list[Figure]:
    """Through a daemon's socket, one call after the other, each for another file."""
    async with daemon(folder, "--redis-url", url) as (client, _):
        await client.create(NewSession(session_id=_SESSION))
        cache = SessionCache(client, _SESSION, str(project))
        missed: list[Looked] = []

        async def miss(index: int) -> None:
            missed.append(await cache.get("cat", index, path=f"many/{index % _FILES}.txt"))

        async def put(index: int) -> None:
            assert (await cache.put(missed[index], "x" * _BYTES)).stored

        async def hit(index: int) -> None:
            assert (await cache.get("cat", index, path=f"many/{index % _FILES}.txt")).is_hit

        async def search(index: int) -> None:
            await cache.get("grep", index, path="many", scope="tree")

        return [
            figure("get, miss, p50", 1000 * p50(await latencies(_CALLS, miss)), "ms"),
            figure("put of 4 KiB, p50", 1000 * p50(await latencies(_CALLS, put)), "ms"),
            figure("get, hit in Redis, p50", 1000 * p50(await latencies(_CALLS, hit)), "ms"),
            figure("get, hit in memory, p50", 1000 * p50(await latencies(_CALLS, hit)), "ms"),
            figure(
                f"get of a search through {_FILES} files, p50",
                1000 * p50(await latencies(_SEARCHES, shifted(search, 1))),
                "ms",
            ),
        ]


async def _ahead(url: str, project: Path) -> list[Figure]:
    half = len(_COMMITS) // 2
    rates = {}
    for ahead in (0, AHEAD):
        core = Core(url, _configuration(), instance="bench")
        await core.sessions.create(NewSession(session_id=_SESSION))
        await _work(_caches(core, 0), project, _COMMITS[:half])
        caches = _caches(core, ahead)
        asked = await _work(caches, project, _COMMITS[half:])
        use = caches.use()
        rates[ahead] = (100 * use.hits / asked, 100 * use.near / asked)
        await core.close()
    (found, near), (_, loaded) = rates[0], rates[AHEAD]
    return [
        figure("another machine's work: found in the cache", found, "%"),
        figure("the same, in its daemon's memory", near, "%"),
        figure(f"the same, {AHEAD} loaded ahead after each", loaded, "%"),
    ]


def _configuration() -> Configuration:
    return Configuration(redis=RedisOptions(namespace=f"bench-{secrets.token_hex(4)}"))


def _caches(core: Core, ahead: int) -> Caches:
    store = CacheStore(core.redis, core.keys, life_ms=3_600_000, limit_bytes=2**24)
    return Caches(
        store,
        core.store,
        Fingerprints(),
        machine="bench",
        active_files=_none_active,
        ahead=ahead,
    )


async def _none_active(session_id: str) -> Sequence[str]:
    del session_id
    return ()


async def _work(caches: Caches, project: Path, commits: list[str]) -> int:
    """Read the files of commits as a model would, through the cache; return how many."""
    paths = [path for line in commits for path in line.split()]
    for path in paths:
        await _read(caches, project, path)
        await caches.settled()
    return len(paths)


async def _read(caches: Caches, project: Path, path: str) -> None:
    call = CacheCall(tool="cat", path=path)
    lookup = CacheLookup(root=str(project), calls=[call])
    (answer,) = (await caches.lookup(_SESSION, lookup)).answers
    if answer.outcome != "hit":
        text = await asyncio.to_thread((project / path).read_text)
        new = NewCacheValue(root=str(project), call=call, stamp=answer.stamp, value=text)
        assert (await caches.put(_SESSION, answer.key, new)).stored

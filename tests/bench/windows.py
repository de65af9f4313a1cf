"""What a window on a long conversation costs, and the load that it begins with.

The conversation has 10,000 messages, each of about 1 KiB of Python's own library: questions,
answers and calls of tools with their output, in turns. A window takes 100,000 tokens of it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import uvloop

from sessiond.config import Configuration, RedisOptions
from sessiond.core import Core
from sessiond.model import Message, NewMessage, NewSession, Session, WindowStrategy
from sessiond.policy.window import window
from tests.bench.archive import library_texts
from tests.bench.machinery import Figure, daemon, figure, latencies, p50, scratch, server

_SESSION = "ses_long"
_MESSAGES = 10_000
_GROUP = 64
_TOKENS = 100_000
_ROUNDS = 11
_TICK_SECONDS = 0.001
_STRATEGIES: tuple[WindowStrategy, ...] = ("recent", "pinned", "tools")


def figures() -> Iterator[Figure]:
    """Measure loads, windows by themselves, and windows through a daemon."""
    with scratch() as folder, server(folder) as url:
        loaded, found = uvloop.run(_loads(url))
        yield from found
        yield from _windows(loaded.conversation.messages)
        yield from uvloop.run(_daemon(folder / "daemon", url))


def _conversation() -> Iterator[NewMessage]:
    for number, text in enumerate(itertools.islice(library_texts(), _MESSAGES)):
        if number % 3 == 1:
            called = {"id": "call", "type": "tool", "tool": "bash", "state": {"output": text}}
            yield NewMessage(role="assistant", parts=[called])
        else:
            yield NewMessage(role="assistant" if number % 3 else "user", content=text)


async def _loads(url: str) -> tuple[Session, list[Figure]]:
    """Load the session several times for the first time in a process, and once more each."""
    await _fill(url)
    first, late, again = [], [], []
    for _ in range(_ROUNDS):
        core = _core(url)
        await core.redis_answers()
        seconds, lateness, loaded = await _timed_load(core)
        first.append(seconds)
        late.append(lateness)
        again.append((await _timed_load(core))[0])
        await core.close()
    return msgspec.json.decode(loaded, type=Session), [
        figure("first load of 10,000 messages, tokens counted, p50", 1000 * p50(first), "ms"),
        figure("the same, how long the event loop was held, p50", 1000 * p50(late), "ms"),
        figure("every load after it, p50", 1000 * p50(again), "ms"),
    ]


async def _fill(url: str) -> None:
    core = _core(url)
    await core.sessions.create(NewSession(session_id=_SESSION))
    given = _conversation()
    while group := list(itertools.islice(given, _GROUP)):
        await core.messages.append(_SESSION, group)
    await core.close()


def _core(url: str) -> Core:
    return Core(url, Configuration(redis=RedisOptions(url=url)), instance="bench")


async def _timed_load(core: Core) -> tuple[float, float, bytes]:
    """Load the session; return how long that took, how late others got their turn, and it."""
    late = [0.0]

    async def others() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_TICK_SECONDS)
            late.append(time.perf_counter() - began - _TICK_SECONDS)

    beside = asyncio.create_task(others())
    await asyncio.sleep(0)
    began = time.perf_counter()
    loaded = await core.sessions.load(_SESSION)
    seconds = time.perf_counter() - began
    await asyncio.sleep(2 * _TICK_SECONDS)
    beside.cancel()
    return seconds, max(late), loaded


def _windows(messages: list[Message]) -> Iterator[Figure]:
    for strategy in _STRATEGIES:
        taken = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            window(messages, _TOKENS, strategy)
            taken.append(time.perf_counter() - began)
        name = f"100,000 tokens' window on 10,000 messages, {strategy}, p50"
        yield figure(name, 1000 * p50(taken), "ms")


async def _daemon(folder: Path, url: str) -> list[Figure]:
    """Through a daemon's socket, one call after the other, decoded by the client."""
    async with daemon(folder, "--redis-url", url) as (client, _):

        async def load(_: int) -> None:
            await client.load(_SESSION)

        async def view(_: int) -> None:
            found = await client.window(_SESSION, tokens=_TOKENS)
            assert 0 < found.tokens <= _TOKENS

        await load(0)
        return [
            figure("such a window through HTTP, recent, p50", await _ms(view), "ms"),
            figure("the whole session through HTTP, decoded, p50", await _ms(load), "ms"),
        ]


async def _ms(action: Callable[[int], Awaitable[None]]) -> float:
    return 1000 * p50(await latencies(_ROUNDS, action))

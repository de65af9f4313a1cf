"""What long and old sessions cost: memory live, compressed and archived, and time to come back.

Messages hold real text, slices of Python's own library: neither repetitive nor random. What random
letters would cost, which nothing compresses well, is told beside it.
"""

from __future__ import annotations

import itertools
import os
import random
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import uvloop
from redis.asyncio import Redis

from sessiond.config import Configuration, RedisOptions, RetentionOptions
from sessiond.core import Core
from sessiond.model import NewMessage, NewSession
from sessiond.service.clock import system_clock
from sessiond.service.retention.compression import Compression
from sessiond.service.writing import Request
from sessiond.store.blocks import BlockStore
from tests.bench.machinery import MESSAGE_BYTES, Figure, figure, p50, scratch, server

_MESSAGES = 10_000
_GROUP = 64
_ROUNDS = 7
_HEAD_BYTES = 140
"""Of a message's JSON, about, beside its content."""

Contents = Callable[[], Iterator[str]]


def figures() -> Iterator[Figure]:
    """Measure one session of 10,000 messages of 1 KiB."""
    with scratch() as folder, server(folder) as url:
        yield from uvloop.run(_memory(url, folder / "archive", library_texts, "text"))
        yield from uvloop.run(_memory(url, folder / "archive", _letters, "random letters"))
        yield from uvloop.run(_loads(url, folder / "archive"))


def library_texts() -> Iterator[str]:
    size = MESSAGE_BYTES - _HEAD_BYTES
    for path in sorted(Path(os.__file__).parent.glob("*/*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if text.isascii():
            yield from (text[at : at + size] for at in range(0, len(text) - size, size))


def _letters() -> Iterator[str]:
    chance = random.Random(1)  # noqa: S311 - no secret
    letters = string.ascii_letters + string.digits
    while True:
        yield "".join(chance.choices(letters, k=MESSAGE_BYTES - _HEAD_BYTES))


def _core(url: str, archive: Path | None = None) -> Core:
    retention = RetentionOptions(archive=f"file://{archive}" if archive else "")
    configuration = Configuration(redis=RedisOptions(url=url), retention=retention)
    return Core(url, configuration, instance="bench")


def _later() -> Request:
    """Return a request from when the session has rested for an hour."""
    return Request(at_ms=system_clock() + 3_600_000)


async def _fill(core: Core, name: str, contents: Contents) -> int:
    """Write a session of as many messages; return how many bytes of JSON they have."""
    await core.sessions.create(NewSession(session_id=name))
    given = itertools.islice(contents(), _MESSAGES)
    while group := [
        NewMessage(role="assistant", content=text) for text in itertools.islice(given, _GROUP)
    ]:
        await core.messages.append(name, group)
    loaded = msgspec.json.decode(await core.sessions.load(name))["conversation"]["messages"]
    assert len(loaded) == _MESSAGES
    return sum(len(msgspec.json.encode(message)) for message in loaded)


async def _compress(core: Core, name: str) -> None:
    blocks = BlockStore(core.redis, core.keys)
    compression = Compression(core.store, blocks, settled_seconds=0, now=time.monotonic)
    await compression.compress(name, (await core.store.end(name)).position.offset)


async def _used(redis: Redis, *keys: str) -> int:
    """Return how many bytes keys take in Redis."""
    sizes = [await redis.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys]
    return sum(size or 0 for size in sizes)


async def _memory(url: str, archive: Path, contents: Contents, what: str) -> list[Figure]:
    core, in_folder = _core(url), _core(url, archive)
    name = f"ses_{what.replace(' ', '_')}"
    keys = set(core.keys.archiving(name))
    json = await _fill(core, name, contents)
    live = await _used(core.redis, *keys)
    await _compress(core, name)
    compressed = await _used(core.redis, *keys)
    await core.archiving.archive(name, _later())
    in_redis = await _used(core.redis, *keys)
    await core.archiving.restore(name)
    restored = await _used(core.redis, *keys)
    in_file = (await in_folder.archiving.archive(name, _later())).bytes
    stub = await _used(core.redis, *keys)
    for text in itertools.islice(contents(), _MESSAGES):
        await core.redis.execute_command("XADD", "plain", "*", "json", text + "x" * _HEAD_BYTES)
    stream = await _used(core.redis, "plain")
    await core.redis.delete("plain")
    await core.close()
    await in_folder.close()
    assert isinstance(in_file, int)

    def per_message(title: str, size: float) -> Figure:
        return figure(f"{title}, {what}", size / _MESSAGES, "bytes")

    return [
        per_message("a message's JSON", json),
        per_message("Redis memory per message, plain stream", stream),
        per_message("the same, a live session", live),
        per_message("the same, compressed beside the newest 1,024", compressed),
        per_message("the same, archived in Redis", in_redis),
        per_message("the same, archived in a folder", stub),
        per_message("the same, back from an archive", restored),
        per_message("archive file per message", in_file),
        figure(f"live session / plain stream, {what}", live / stream, "×", most=1.3),
        figure(f"compressed session / plain stream, {what}", compressed / stream, "×"),
    ]


async def _loads(url: str, archive: Path) -> list[Figure]:
    """Load an archived session; archiving it again is not counted."""
    found = []
    for place, core in (("Redis", _core(url)), ("a folder", _core(url, archive))):
        name = f"ses_{place.replace(' ', '_')}"
        await _fill(core, name, library_texts)
        whole = await core.sessions.load(name)
        taken = []
        for _ in range(_ROUNDS):
            await core.archiving.archive(name, _later())
            began = time.perf_counter()
            loaded = await core.sessions.load(name)
            taken.append(time.perf_counter() - began)
            assert loaded == whole
        await core.close()
        title = f"load {_MESSAGES:,} archived messages from {place}"
        found.append(figure(title, p50(taken) * 1e3, "ms", most=300))
    return found

"""What tools answered, in Redis: for all instances of a session, bounded, each with its own end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
import zstandard
from msgspec import Struct
from redis.asyncio import Redis

from sessiond.errors import StoreDamaged
from sessiond.model import CacheCall, CacheCounts
from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.store.scripts import CACHE
from sessiond.store.sessions import check_alive

Verb = Literal["get", "put", "drop", "clear", "look", "order"]

LARGEST_ANSWER = 1024 * 1024
"""Bytes of an answer's JSON; a larger one is not cached."""

_MOST_ENTRIES = 4096
_WORTH_COMPRESSING = 1024
_ENTRY = re.compile(rb"(\d{1,15}) (\d{1,15}) (\w{1,128}) (json|zstd) ", re.ASCII)
_COUNTS = re.compile(rb"(\d{1,15}) (\d{1,15}) (\d{1,15}) (\d{1,15}) (\d{1,15}) (\d{1,15})")


class Answer(Struct, frozen=True):
    """What a tool answered to a call on a machine; the JSON of an entry."""

    call: CacheCall
    machine: str
    value: Any


class Entry(Struct, frozen=True):
    """An answer, when it was cached and until when it counts (ms, Redis's clock), and its size."""

    key: str
    answer: Answer
    digest: str
    stored_ms: int
    expires_ms: int
    bytes: int


class Found(Struct, frozen=True):
    """What is cached of a call: `hit` with the answer, `stale` or `miss` without."""

    outcome: Literal["hit", "stale", "miss"]
    entry: Entry | None = None


_ANSWER = msgspec.json.Decoder(Answer)


class CacheStore:
    """The caches of the sessions of one Redis.

    Every method may raise StoreUnavailable, and NotFound or SessionDeleted where there is no such
    session, or no more.

    Args:
        redis: client for commands.
        keys: names of the keys.
        life_ms: how long an answer is kept.
        limit_bytes: of all answers of a session; the least recently used are evicted.
        compress: whether answers of more than 1 KiB are compressed.
    """

    def __init__(
        self, redis: Redis, keys: Keys, *, life_ms: int, limit_bytes: int, compress: bool = True
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._life_ms = life_ms
        self.limit_bytes = limit_bytes
        self._compress = compress

    async def get(
        self, session_id: str, asked: Sequence[tuple[str, str]], *, hits_before: int = 0
    ) -> list[Found]:
        """Return what is cached under keys, each with the digest that an answer must have.

        The outcomes are counted, and hits count as used.

        Args:
            session_id: whose cache.
            asked: pairs of a key and a digest.
            hits_before: hits that needed no Redis, to be counted with these.
        """
        pairs = (text for pair in asked for text in pair)
        reply = await self._ask("get", session_id, hits_before, *pairs)
        return [
            _found(key, outcome.decode(), entry)
            for (key, _), outcome, entry in zip(asked, reply[::2], reply[1::2], strict=True)
        ]

    async def put(self, session_id: str, key: str, digest: str, answer: Answer) -> bool:
        """Cache an answer; return False where it is too large."""
        encoding, data = b"json", msgspec.json.encode(answer)
        if len(data) > LARGEST_ANSWER:
            return False
        if self._compress and len(data) > _WORTH_COMPRESSING:
            encoding, data = b"zstd", zstandard.ZstdCompressor().compress(data)
        if len(data) > self.limit_bytes // 2:
            return False
        limits = self.limit_bytes, _MOST_ENTRIES
        await self._ask("put", session_id, key, digest, encoding, data, *limits)
        return True

    async def drop(self, session_id: str, subjects: Iterable[str]) -> int:
        """Drop the answers whose keys are, or begin with, one of these; return how many."""
        return int((await self._ask("drop", session_id, *subjects))[0])

    async def clear(self, session_id: str) -> int:
        """Drop all answers, and begin to count anew; return how many there were."""
        return int((await self._ask("clear", session_id))[0])

    async def order(self, session_id: str, most: int) -> list[str]:
        """Return the keys of the answers that were used last, in that order."""
        return [
            key.decode("ascii", "replace") for key in await self._ask("order", session_id, most)
        ]

    async def look(self, session_id: str, *keys: str) -> tuple[CacheCounts, list[Entry]]:
        """Return the counts and some answers, or all, the latest used first; none is used by it.

        Raises:
            StoreDamaged: the counts are none.
        """
        counts, *rest = await self._ask("look", session_id, *keys)
        found = [_entry(key, value) for key, value in zip(rest[::2], rest[1::2], strict=True)]
        entries = [entry for entry in found if entry]
        return self._counts(session_id, counts, len(entries)), entries

    async def mark(self, session_id: str) -> str:
        """Return what is another text after each change of a cache and each use; "" of none.

        Raises:
            StoreDamaged: the key of the cache is none of ours.
        """
        key, _ = self._keys.cache(session_id)
        match = _COUNTS.fullmatch(await answered(self._redis.hget(key, "_counts")) or b"")
        return b" ".join(match.group(1, 2, 6)).decode() if match else ""

    def _counts(self, session_id: str, text: bytes, entries: int) -> CacheCounts:
        match = _COUNTS.fullmatch(text)
        if match is None:
            raise StoreDamaged(f"the cache of session {session_id!r} is damaged")
        size, _, hits, misses, stale, evicted = map(int, match.groups())
        return CacheCounts(
            entries=entries,
            bytes=size,
            limit_bytes=self.limit_bytes,
            hits=hits,
            misses=misses,
            stale=stale,
            evicted=evicted,
        )

    async def _ask(self, verb: Verb, session_id: str, *given: str | int | bytes) -> list[Any]:
        keys = [*self._keys.cache(session_id), self._keys.metadata(session_id)]
        arguments = [verb, self._life_ms, *given]
        verdict, *rest = await answered(CACHE.run(self._redis.execute_command, keys, arguments))
        if verdict == b"gone":
            check_alive(session_id, rest[0] or None)
        return list(rest)


def _found(key: str, outcome: str, value: bytes) -> Found:
    if outcome != "hit":
        return Found("stale" if outcome == "stale" else "miss")
    entry = _entry(key.encode(), value)
    return Found("hit", entry) if entry else Found("miss")


def _entry(key: bytes, value: bytes) -> Entry | None:
    """Return what an entry holds; None for one that is none of ours: a cache may lose things."""
    match = _ENTRY.match(value)
    if match is None:
        return None
    try:
        answer = _ANSWER.decode(_plain(match[4], value[match.end() :]))
        name = key.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, zstandard.ZstdError):
        return None
    return Entry(
        key=name,
        answer=answer,
        digest=match[3].decode(),
        stored_ms=int(match[2]),
        expires_ms=int(match[1]),
        bytes=len(value),
    )


def _plain(encoding: bytes, data: bytes) -> bytes:
    """Return the JSON of an answer.

    Raises:
        zstandard.ZstdError: it is not compressed, or larger than an answer may be.
    """
    if encoding == b"json":
        return data
    if not 0 <= zstandard.frame_content_size(data) <= LARGEST_ANSWER:
        raise zstandard.ZstdError("larger than an answer may be")
    return zstandard.ZstdDecompressor().decompress(data)

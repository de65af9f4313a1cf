"""What tools answered, in Redis: bounds that hold with several writers, and what counts as used."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import zstandard

from sessiond.errors import NotFound, SessionDeleted, StoreDamaged, StoreUnavailable
from sessiond.model import CacheCall
from sessiond.policy.caching import key_of, subjects_of_change
from sessiond.store.cache import LARGEST_ANSWER, Answer, CacheStore
from sessiond.store.connection import connect
from sessiond.store.keys import Keys
from tests.store.support import Services, creating, deleting

LIFE_MS = 60_000
LIMIT = 20_000
HIT, STALE, MISS = "hit", "stale", "miss"


def call(path: str = "a.py", **more: Any) -> CacheCall:
    return CacheCall(tool="read", path=path, **more)


def answer(path: str = "a.py", value: Any = "text") -> Answer:
    return Answer(call(path), "laptop", value)


def cache_on(core: Services, *, limit: int = LIMIT, compress: bool = False) -> CacheStore:
    return CacheStore(core.redis, core.keys, life_ms=LIFE_MS, limit_bytes=limit, compress=compress)


@pytest.fixture
async def cache(core: Services) -> CacheStore:
    """A cache, and a session `s` that has it."""
    await core.commit("s", creating("s"))
    return cache_on(core)


async def put(cache: CacheStore, path: str, digest: str = "d1", value: Any = "text") -> str:
    key = key_of(call(path))
    assert await cache.put("s", key, digest, answer(path, value))
    return key


async def get(cache: CacheStore, *asked: tuple[str, str]) -> list[str]:
    return [found.outcome for found in await cache.get("s", asked)]


async def bytes_in(core: Services) -> int:
    fields = await core.redis.hgetall(core.keys.cache("s")[0])
    return sum(len(name) + len(value) for name, value in fields.items() if name != b"_counts")


async def later(core: Services, ms: int) -> None:
    """Make every answer this much older, instead of waiting."""
    name = core.keys.cache("s")[0]
    for key, value in (await core.redis.hgetall(name)).items():
        if key != b"_counts":
            expires, stored, rest = value.split(b" ", 2)
            await core.redis.hset(
                name, key, b"%d %d " % (int(expires) - ms, int(stored) - ms) + rest
            )


async def test_an_answer_is_given_for_its_digest_and_no_other(cache: CacheStore) -> None:
    key = await put(cache, "a.py", "d1", {"lines": ["x", None, 1.5]})
    (found,) = await cache.get("s", [(key, "d1")])
    assert found.entry
    assert found.entry.answer == answer("a.py", {"lines": ["x", None, 1.5]})
    assert found.entry.expires_ms - found.entry.stored_ms == LIFE_MS
    other = key_of(call("b.py"))
    assert await get(cache, (key, "d2"), (other, "d1"), (key, "d1")) == [STALE, MISS, HIT]


async def test_what_is_stale_here_stays_for_machines_where_it_is_right(cache: CacheStore) -> None:
    key = await put(cache, "a.py", "main")
    assert await get(cache, (key, "branch"), (key, "main")) == [STALE, HIT]
    await put(cache, "a.py", "branch")
    assert await get(cache, (key, "branch"), (key, "main")) == [HIT, STALE]


async def test_outcomes_are_counted(cache: CacheStore) -> None:
    key = await put(cache, "a.py")
    await get(cache, (key, "d1"), (key, "d1"), (key, "d2"), (key_of(call("b.py")), "d1"))
    counts, entries = await cache.look("s")
    assert (counts.hits, counts.stale, counts.misses) == (2, 1, 1)
    assert (counts.entries, counts.evicted, counts.limit_bytes) == (1, 0, LIMIT)
    assert [entry.key for entry in entries] == [key]


async def test_an_answer_ends_by_itself_and_is_none_then(core: Services, cache: CacheStore) -> None:
    key = await put(cache, "a.py")
    await later(core, LIFE_MS - 5_000)
    assert await get(cache, (key, "d1")) == [HIT]
    await later(core, 5_000)
    assert await get(cache, (key, "d1")) == [MISS]
    counts, entries = await cache.look("s")
    assert (entries, counts.bytes, await bytes_in(core)) == ([], 0, 0)


async def test_a_cache_that_nobody_asks_leaves_nothing_behind(
    core: Services, cache: CacheStore
) -> None:
    await put(cache, "a.py")
    for name in core.keys.cache("s"):
        assert 0 < await core.redis.pttl(name) <= LIFE_MS


async def test_what_was_not_used_the_longest_goes_first(core: Services) -> None:
    await core.commit("s", creating("s"))
    one = len(b"%d %d d1 json " % (10**12, 10**12)) + 49 + 1_000
    cache = cache_on(core, limit=4 * (one + 200))
    keys = [await put(cache, f"{name}.py", value="x" * 900) for name in "abcd"]
    await get(cache, (keys[0], "d1"))
    keys += [await put(cache, "e.py", value="x" * 900)]
    expected = [HIT, MISS, HIT, HIT, HIT]
    assert await get(cache, *((key, "d1") for key in keys)) == expected
    assert (await cache.look("s"))[0].evicted == 1


async def test_the_order_of_use_is_told_and_hits_that_needed_no_redis_are_counted(
    cache: CacheStore,
) -> None:
    keys = [await put(cache, f"{name}.py") for name in "abc"]
    await cache.get("s", [(keys[0], "d1")], hits_before=5)
    assert await cache.order("s", 10) == [keys[1], keys[2], keys[0]]
    assert await cache.order("s", 2) == [keys[2], keys[0]]
    assert (await cache.look("s"))[0].hits == 6


async def test_looking_at_all_is_no_use(core: Services, cache: CacheStore) -> None:
    first, second = await put(cache, "a.py"), await put(cache, "b.py")
    for _ in range(2):
        _, entries = await cache.look("s")
        assert [entry.key for entry in entries] == [second, first]
    _, entries = await cache.look("s", first)
    assert [entry.answer.call.path for entry in entries] == ["a.py"]


async def test_the_bound_and_the_count_of_bytes_hold_with_several_writers(
    core: Services, cache: CacheStore
) -> None:
    chance = random.Random(7)  # noqa: S311 - what is put when, the same each time
    caches = [cache, cache_on(core, compress=True), cache_on(core)]

    async def write(each: CacheStore) -> None:
        for _ in range(60):
            name = f"{chance.randrange(30)}.py"
            await put(each, name, f"d{chance.randrange(3)}", "x" * chance.randrange(4_000))
            if chance.random() < 0.2:
                await each.drop("s", subjects_of_change([f"{chance.randrange(30)}.py"]))

    await asyncio.gather(*(write(each) for each in caches))
    counts, entries = await cache.look("s")
    assert counts.bytes == await bytes_in(core) <= LIMIT
    assert counts.evicted > 0
    names = {entry.key.encode() for entry in entries}
    hash_name, uses = core.keys.cache("s")
    assert set(await core.redis.zrange(uses, 0, -1)) == names
    assert set(await core.redis.hkeys(hash_name)) == {*names, b"_counts"}


async def test_large_answers_are_compressed_and_come_back_whole(core: Services) -> None:
    await core.commit("s", creating("s"))
    cache = cache_on(core, compress=True)
    text = "the same line again\n" * 500
    key = await put(cache, "a.py", value=text)
    assert await bytes_in(core) < len(text) / 10
    (found,) = await cache.get("s", [(key, "d1")])
    assert found.entry
    assert found.entry.answer.value == text


async def test_an_answer_that_is_too_large_is_not_cached(core: Services, cache: CacheStore) -> None:
    key = key_of(call())
    assert not await cache.put("s", key, "d1", answer(value="x" * LIMIT))
    large = cache_on(core, limit=100 * LARGEST_ANSWER, compress=True)
    assert not await large.put("s", key, "d1", answer(value="x" * LARGEST_ANSWER))
    assert await get(cache, (key, "d1")) == [MISS]


async def test_a_changed_file_takes_its_answers_and_those_of_its_folders_with_it(
    cache: CacheStore,
) -> None:
    paths = ["src/a.py", "src/b.py", "src", ".", "docs"]
    scopes = ["file", "file", "tree", "tree", "tree"]
    keys = []
    for path, scope in zip(paths, scopes, strict=True):
        of = CacheCall(tool="grep", path=path, scope=scope)  # type: ignore[arg-type]
        keys.append(key_of(of))
        assert await cache.put("s", keys[-1], "d1", Answer(of, "laptop", path))
    assert await cache.drop("s", subjects_of_change(["src/a.py"])) == 3
    assert await get(cache, *((key, "d1") for key in keys)) == [MISS, HIT, MISS, MISS, HIT]
    assert await cache.drop("s", [keys[1]]) == 1
    assert await cache.drop("s", [keys[1]]) == 0


async def test_clearing_drops_all_and_counts_anew(core: Services, cache: CacheStore) -> None:
    await put(cache, "a.py")
    await put(cache, "b.py")
    assert await cache.clear("s") == 2
    assert await cache.clear("s") == 0
    assert await core.redis.exists(*core.keys.cache("s")) == 0


async def test_a_deleted_session_keeps_nothing_that_was_cached(
    core: Services, cache: CacheStore
) -> None:
    key = await put(cache, "a.py")
    await core.store.commit("s", [deleting("s")], 0)
    assert await core.redis.exists(*core.keys.cache("s")) == 0
    with pytest.raises(SessionDeleted):
        await cache.get("s", [(key, "d1")])
    with pytest.raises(SessionDeleted):
        await cache.put("s", key, "d1", answer())
    with pytest.raises(NotFound):
        await cache.look("never-was")
    assert await core.redis.exists(*core.keys.cache("s"), *core.keys.cache("never-was")) == 0


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"nonsense",
        b"99999999999999 1 d1 json {",
        b'99999999999999 1 d1 json {"call":1}',
        b"99999999999999 1 d1 zstd no such thing",
        b"99999999999999 1 d1 zstd " + zstandard.ZstdCompressor().compress(b"not json"),
        b"99999999999999 1 d1 zstd "
        + zstandard.ZstdCompressor().compress(b" " * (LARGEST_ANSWER + 1)),
    ],
)
async def test_an_entry_that_is_none_of_ours_is_a_miss_and_can_be_replaced(
    core: Services, cache: CacheStore, entry: bytes
) -> None:
    key = key_of(call())
    name, uses = core.keys.cache("s")
    await core.redis.hset(name, key, entry)
    await core.redis.zadd(uses, {key: 1})
    assert await get(cache, (key, "d1")) == [MISS]
    await put(cache, "a.py")
    assert await get(cache, (key, "d1")) == [HIT]
    assert (await cache.look("s"))[0].bytes == await bytes_in(core)


async def test_a_key_that_is_none_of_ours_is_damage_of_this_session(
    core: Services, cache: CacheStore
) -> None:
    await core.redis.set(core.keys.cache("s")[0], b"a string")
    with pytest.raises(StoreDamaged):
        await get(cache, (key_of(call()), "d1"))


async def test_a_redis_that_is_away_is_told() -> None:
    nowhere = connect("redis://127.0.0.1:9/0", timeout_seconds=0.5, max_connections=2)
    cache = CacheStore(nowhere, Keys(), life_ms=LIFE_MS, limit_bytes=LIMIT)
    with pytest.raises(StoreUnavailable):
        await cache.get("s", [(key_of(call()), "d1")])
    await nowhere.aclose()

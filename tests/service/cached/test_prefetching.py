"""Answers that are in memory before they are asked for, and what is never given from there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sessiond.model import CacheCall
from sessiond.policy.caching import key_of
from sessiond.service.cached.caching import Caches
from sessiond.service.cached.edits import EditWatch
from sessiond.service.cached.fingerprints import Fingerprints
from sessiond.service.cached.prefetching import NearAnswers
from sessiond.store.cache import Answer, CacheStore, Entry
from tests.service.cached.test_caching import caches_on, look, outcome, put
from tests.service.cached.test_fingerprints import LATER_NS, Clock, rewrite_keeping_times
from tests.service.support import create
from tests.store.support import Services

CALLS = [CacheCall(tool="cat", path=f"{name}.py") for name in "abcdef"]


@pytest.fixture
async def root(core: Services, tmp_path: Path) -> Path:
    """A project of six files, all of which `desktop` has read in their order."""
    await create(core)
    for call in CALLS:
        (tmp_path / call.path).write_text(f"content of {call.path}")
    desktop = caches_on(core, "desktop")
    for call in CALLS:
        await put(desktop, tmp_path, call)
    return tmp_path


def reading_ahead(core: Services, *active: str, ahead: int = 8) -> Caches:
    async def active_files(session_id: str) -> Sequence[str]:
        return active

    clock = Clock()
    clock.ahead_ns = LATER_NS
    store = CacheStore(core.redis, core.keys, life_ms=60_000, limit_bytes=1_000_000)
    return Caches(
        store,
        core.store,
        Fingerprints(clock),
        machine="laptop",
        active_files=active_files,
        ahead=ahead,
    )


async def near_after(caches: Caches, root: Path, *calls: CacheCall) -> list[str]:
    """Look calls up, one after the other, and return the files whose answers are in memory then."""
    for call in calls:
        assert await outcome(caches, root, call) == "hit"
        await caches.settled()
    keys = caches._near.keys("ses_1")
    return [call.path for call in CALLS if key_of(call) in keys]


async def test_what_others_read_together_is_here_before_it_is_asked_for(
    core: Services, root: Path
) -> None:
    caches = reading_ahead(core)
    assert await near_after(caches, root, CALLS[0]) == [f"{name}.py" for name in "abcdef"]
    for call in CALLS[1:]:
        assert await outcome(caches, root, call) == "hit"
    use = caches.use()
    assert (use.hits, use.near) == (6, 5)
    await look(caches, root, CacheCall(tool="cat", path="a.py", arguments="of a miss"))
    assert (await caches.contents("ses_1")).counts.hits == 6, "they are counted in the session, too"
    await caches.close()


async def test_the_nearest_come_first_and_no_more_than_allowed(core: Services, root: Path) -> None:
    caches = reading_ahead(core, ahead=2)
    assert await near_after(caches, root, CALLS[1]) == ["b.py", "c.py", "d.py"]
    await caches.close()


async def test_what_is_worked_on_is_loaded_without_anybody_having_read_it_here(
    core: Services, root: Path
) -> None:
    caches = reading_ahead(core, "f.py", ahead=1)
    found = await near_after(caches, root, CALLS[0])
    assert found in (["a.py", "b.py"], ["a.py", "f.py"])
    assert await near_after(caches, root, CALLS[2]) != found
    assert "f.py" in await near_after(caches, root, CALLS[0])
    await caches.close()


async def test_without_it_only_what_was_asked_for_is_in_memory(core: Services, root: Path) -> None:
    caches = reading_ahead(core, ahead=0)
    assert await near_after(caches, root, CALLS[0], CALLS[2]) == ["a.py", "c.py"]


async def test_what_is_in_memory_is_given_for_the_same_content_only(
    core: Services, root: Path
) -> None:
    caches = reading_ahead(core)
    await near_after(caches, root, CALLS[0])
    rewrite_keeping_times(root / "b.py", "CONTENT OF b.py")
    assert await outcome(caches, root, CALLS[1]) == "stale"
    assert (await put(caches, root, CALLS[1]))[1] == ""
    (found,) = await look(caches, root, CALLS[1])
    assert found.value == "CONTENT OF b.py"
    await caches.close()


async def test_what_is_dropped_cleared_or_deleted_is_not_given_from_memory(
    core: Services, root: Path
) -> None:
    caches = reading_ahead(core, ahead=0)
    await near_after(caches, root, *CALLS)
    await caches.invalidate("ses_1", ["a.py"])
    assert await outcome(caches, root, CALLS[0]) == "miss"
    await near_after(caches, root, CALLS[1])
    await caches.drop("ses_1", key_of(CALLS[1]))
    assert await outcome(caches, root, CALLS[1]) == "miss"
    await near_after(caches, root, CALLS[2])
    await caches.clear("ses_1")
    assert await outcome(caches, root, CALLS[2]) == "miss"
    await put(caches, root, CALLS[3])
    await near_after(caches, root, CALLS[3])
    core.store.on_commit.append(EditWatch(caches).note_commit)
    await core.sessions.delete("ses_1")
    assert caches._near.keys("ses_1") == set()


def entry(path: str, size: int = 10, digest: str = "d") -> Entry:
    call = CacheCall(tool="cat", path=path)
    return Entry(
        key=key_of(call),
        answer=Answer(call, "m", path),
        digest=digest,
        stored_ms=0,
        expires_ms=1,
        bytes=size,
    )


def test_memory_is_bounded_and_what_was_used_last_stays() -> None:
    near = NearAnswers(limit_bytes=30, now=lambda: 0.0)
    entries = [entry(name) for name in "abc"]
    for each in entries:
        near.put("s", each)
    assert near.get("s", entries[0].key, "d")
    near.put("s", entry("d"))
    kept = near.keys("s")
    assert entries[1].key not in kept
    assert len(kept) == 3
    near.put("s", entry("huge", 31))
    assert near.keys("s") == set()
    assert near._bytes == 0


def test_memory_is_for_a_minute_and_for_one_digest_and_session() -> None:
    seconds = 0.0
    near = NearAnswers(now=lambda: seconds)
    here = entry("a")
    near.put("s", here)
    assert near.get("s", here.key, "d") == here
    assert near.get("s", here.key, "other") is None
    assert near.get("t", here.key, "d") is None
    seconds = 60.0
    assert near.get("s", here.key, "d") is None
    assert near.keys("s") == set()

"""`cache.json` tells what tools answered, costs the conversation nothing, and is for reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sessiond.files.layout import MOST_CACHED, cache_of
from sessiond.model import CacheCall, CachedCall, CacheLookup, NewCacheValue
from sessiond.service.status import FileProblem
from tests.service.mirrors import Mirrored, mirrored
from tests.service.support import create, said
from tests.store.support import AT, Services

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)

HAND_MADE = json.dumps({"entries": {"mine": {"value": 1, "stored_at": AT, "expires_at": AT}}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "a.py").write_text("aaaa", encoding="utf-8")
    return root


async def cache(here: Mirrored, root: Path, tool: str, value: Any) -> str:
    """Cache an answer of a tool about `a.py`; return its key."""
    call = CacheCall(tool=tool, arguments={"of": f"{root}/a.py"}, path="a.py")
    (answer,) = (
        await here.caches.lookup("ses_1", CacheLookup(root=str(root), calls=[call]))
    ).answers
    new = NewCacheValue(root=str(root), call=call, stamp=answer.stamp, value=value)
    assert (await here.caches.put("ses_1", answer.key, new)).stored
    return answer.key


async def test_the_file_tells_what_is_cached_and_small_answers_wholly(
    core: Services, folder: Path, root: Path
) -> None:
    await create(core)
    async with mirrored(core, folder) as here:
        assert here.read("cache") == {"entries": {}}
        small = await cache(here, root, "cat", ["aaaa"])
        large = await cache(here, root, "read", "a" * 2000)
        await here.step()
        entries = here.read("cache")["entries"]
        assert set(entries) == {small, large}
        assert entries[small]["stored_at"] < entries[small]["expires_at"]
        told = entries[small]["value"]
        assert (told["tool"], told["path"], told["value"]) == ("cat", "a.py", ["aaaa"])
        assert "project" not in str(told["arguments"]), "what is cached is of no machine"
        assert entries[large]["value"]["bytes"] > 0
        assert "value" not in entries[large]["value"]


async def test_what_is_dropped_leaves_the_file_and_a_later_life_finds_what_was_cached(
    core: Services, folder: Path, root: Path
) -> None:
    await create(core)
    async with mirrored(core, folder) as here:
        key = await cache(here, root, "cat", 1)
        await here.step()
    (folder / "ses_1" / "cache.json").unlink()
    async with mirrored(core, folder) as here:
        await here.step()
        assert set(here.read("cache")["entries"]) == {key}
        await here.caches.invalidate("ses_1", ["a.py"])
        await here.step()
        assert here.read("cache") == {"entries": {}}


async def test_what_another_process_cached_comes_with_the_next_write(
    core: Services, folder: Path, root: Path
) -> None:
    await create(core)
    async with mirrored(core, folder) as here:
        here.caches.on_change.clear()
        key = await cache(here, root, "cat", 1)
        await here.step()
        assert here.read("cache") == {"entries": {}}
        await core.messages.append("ses_1", [said("one", "m1")])
        await here.step(2)
        assert set(here.read("cache")["entries"]) == {key}


async def test_a_cache_that_did_not_change_is_not_read_again(
    core: Services, folder: Path, root: Path
) -> None:
    await create(core)
    async with mirrored(core, folder) as here:
        await cache(here, root, "cat", 1)
        await here.step()
        inode = here.path("cache").stat().st_ino
        mark, _ = await here.caches.newest("ses_1", 1) or ("", [])
        assert await here.caches.newest("ses_1", 1, mark) is None
        await core.messages.append("ses_1", [said("one", "m1")])
        await here.step(2)
        assert here.read("conversation")["total_messages"] == 1
        assert here.path("cache").stat().st_ino == inode


async def test_an_edit_by_hand_is_told_and_kept_beside_when_more_is_cached(
    core: Services, folder: Path, root: Path
) -> None:
    await create(core)
    async with mirrored(core, folder) as here:
        here.edit("cache", HAND_MADE)
        await here.step(3)
        (problem,) = here.mirror.status().rejected
        assert (problem.file, problem.what) == ("cache.json", "rejected")
        assert "for reading only" in problem.reason
        await core.messages.append("ses_1", [said("one", "m1")])
        await here.step(2)
        assert here.read("conversation")["total_messages"] == 1, "it holds nothing else up"
        assert here.path("cache").read_text(encoding="utf-8") == HAND_MADE
        key = await cache(here, root, "cat", 1)
        await here.step(2)
        assert set(here.read("cache")["entries"]) == {key}
        (problem,) = here.mirror.status().recent
        assert problem.what == "set_aside"
        assert content_of(problem) == HAND_MADE
        assert here.mirror.status().rejected == []


async def test_a_damaged_cache_keeps_nothing_else_from_being_written(
    core: Services, folder: Path
) -> None:
    await create(core)
    key, _ = core.keys.cache("ses_1")
    await core.redis.set(key, "not ours")
    async with mirrored(core, folder) as here:
        assert here.read("cache") == {"entries": {}}
        await core.messages.append("ses_1", [said("one", "m1")])
        await here.step(2)
        assert here.read("conversation")["total_messages"] == 1


async def test_a_deleted_session_with_a_cache_leaves_no_files(
    core: Services, folder: Path, root: Path
) -> None:
    await create(core)
    async with mirrored(core, folder) as here:
        await cache(here, root, "cat", 1)
        await core.sessions.delete("ses_1")
        await here.step(3)
        assert not (folder / "ses_1").exists()


async def test_an_archived_session_s_cache_stays_as_it_was_told(
    core: Services, folder: Path, root: Path
) -> None:
    await create(core)
    async with mirrored(core, folder) as here:
        key = await cache(here, root, "cat", 1)
        await here.step()
        await core.archiving.archive("ses_1", idle_seconds=0)
        here.mirror.note_cached("ses_1")
        await here.step(2)
        assert set(here.read("cache")["entries"]) == {key}


def test_the_file_has_the_answers_used_last_and_is_bounded(kind: str) -> None:
    calls = [_called(str(number)) for number in range(MOST_CACHED + 5)]
    assert list(cache_of(calls).entries) == [str(number) for number in range(MOST_CACHED)]


def content_of(problem: FileProblem) -> str:
    return Path(problem.kept).read_text(encoding="utf-8")


def _called(key: str) -> CachedCall:
    at = "2026-01-13T10:30:00Z"
    given = {"key": key, "tool": "cat", "path": "a", "scope": "file", "machine": "m", "bytes": 9}
    return msgspec.convert({**given, "stored_at": at, "expires_at": at}, CachedCall)

"""The cache as programs see it: right on each machine, or nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sessiond.errors import (
    InvalidInput,
    NotFound,
    SessionDeleted,
    StoreUnavailable,
)
from sessiond.model import CacheAnswer, CacheCall, CacheLookup, NewCacheValue, NewMessage
from sessiond.service.cached.caching import Caches
from sessiond.service.cached.edits import EditWatch
from sessiond.service.cached.fingerprints import Fingerprints
from sessiond.service.status import CacheUse
from sessiond.store.cache import CacheStore
from tests.service.cached.test_fingerprints import (
    LATER_NS,
    Clock,
    rename_over,
    rewrite_keeping_times,
)
from tests.service.support import body, create, live_from_now
from tests.store.support import Services

READ = CacheCall(tool="read", path="src/a.py")
GREP = CacheCall(tool="grep", arguments={"pattern": "a"}, path=".", scope="tree")


def caches_on(
    core: Services, machine: str = "laptop", prints: Fingerprints | None = None, ahead: int = 0
) -> Caches:
    clock = Clock()
    clock.ahead_ns = LATER_NS
    store = CacheStore(core.redis, core.keys, life_ms=60_000, limit_bytes=1_000_000)
    return Caches(
        store,
        core.store,
        prints or Fingerprints(clock),
        machine=machine,
        active_files=nothing_active,
        ahead=ahead,
    )


async def nothing_active(session_id: str) -> list[str]:
    return []


@pytest.fixture
async def caches(core: Services) -> Caches:
    """Caches of files that have been there for a while, and a session `ses_1`."""
    await create(core)
    return caches_on(core)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "src" / "a.py").write_text("aaaa")
    (root / "b.py").write_text("bbbb")
    return root


async def look(caches: Caches, root: Path, *calls: CacheCall) -> list[CacheAnswer]:
    lookup = CacheLookup(root=str(root), calls=list(calls or (READ,)))
    return (await caches.lookup("ses_1", lookup)).answers


async def outcome(caches: Caches, root: Path, call: CacheCall = READ) -> str:
    return (await look(caches, root, call))[0].outcome


async def put(
    caches: Caches, root: Path, call: CacheCall = READ, value: Any = None
) -> tuple[str, str]:
    """Run the tool as a program would: look up, read, put; return the key and why not."""
    (missed,) = await look(caches, root, call)
    if value is None:
        value = (root / call.path).read_text()
    new = NewCacheValue(root=str(root), call=call, stamp=missed.stamp, value=value)
    return missed.key, (await caches.put("ses_1", missed.key, new)).reason


async def test_what_a_tool_answered_is_given_while_its_file_is_the_same(
    caches: Caches, root: Path
) -> None:
    assert await outcome(caches, root) == "miss"
    assert (await put(caches, root))[1] == ""
    (found,) = await look(caches, root)
    assert (found.outcome, found.value, found.machine) == ("hit", "aaaa", "laptop")
    (root / "src" / "a.py").write_text("cccc")
    assert await outcome(caches, root) == "stale"
    (root / "src" / "a.py").write_text("aaaa")
    assert await outcome(caches, root) == "hit"


async def test_a_search_is_right_while_every_file_below_is_the_same(
    caches: Caches, root: Path
) -> None:
    assert (await put(caches, root, GREP, ["src/a.py:1"]))[1] == ""
    assert await outcome(caches, root, GREP) == "hit"
    (root / "new.py").write_text("a")
    assert await outcome(caches, root, GREP) == "stale"
    (root / "new.py").unlink()
    assert await outcome(caches, root, GREP) == "hit"


async def test_another_machine_gets_it_if_its_files_are_the_same_and_with_its_own_paths(
    core: Services, caches: Caches, root: Path, tmp_path: Path
) -> None:
    there, desktop = tmp_path / "elsewhere" / "clone", caches_on(core, "desktop")
    shutil.copytree(root, there)
    os.utime(there / "src" / "a.py", (1, 1))
    call = CacheCall(tool="read", path="src/a.py", arguments={"filePath": f"{root}/src/a.py"})
    local = CacheCall(tool="read", path="src/a.py", arguments={"filePath": f"{there}/src/a.py"})
    assert (await put(caches, root, call, {"title": f"{root}/src/a.py", "lines": ["aaaa"]}))[
        1
    ] == ""
    (found,) = await look(desktop, there, local)
    assert (found.outcome, found.machine) == ("hit", "laptop")
    assert found.value == {"title": f"{there}/src/a.py", "lines": ["aaaa"]}
    (there / "src" / "a.py").write_text("cccc")
    assert await outcome(desktop, there, local) == "stale"
    assert await outcome(caches, root, call) == "hit"


async def test_what_changed_while_the_tool_ran_is_not_cached(caches: Caches, root: Path) -> None:
    file = root / "src" / "a.py"
    for call in (READ, GREP):
        for change in (rewrite_keeping_times, rename_over):
            (missed,) = await look(caches, root, call)
            change(file, "cccc")
            seen = file.read_text()
            change(file, "aaaa")  # back again: the content says nothing
            new = NewCacheValue(root=str(root), call=call, stamp=missed.stamp, value=seen)
            stored = await caches.put("ses_1", missed.key, new)
            assert (stored.stored, stored.reason) == (
                *(False,),
                "the files are not what they were before the tool ran",
            )
            assert await outcome(caches, root, call) == "miss"


async def test_what_changed_a_moment_ago_is_not_cached(core: Services, root: Path) -> None:
    await create(core)
    caches = caches_on(core, prints=Fingerprints())
    (missed,) = await look(caches, root)
    assert (missed.outcome, missed.stamp) == ("miss", "")
    assert "less than 2 s ago" in missed.reason
    assert "less than 2 s ago" in (await put(caches, root))[1]
    assert await outcome(caches, root) == "miss"


@pytest.mark.parametrize("stamp", ["", "x", "0" * 32 + "." + "0" * 32])
async def test_a_stamp_of_something_else_caches_nothing(
    caches: Caches, root: Path, stamp: str
) -> None:
    (missed,) = await look(caches, root)
    new = NewCacheValue(root=str(root), call=READ, stamp=stamp, value="wrong")
    assert not (await caches.put("ses_1", missed.key, new)).stored
    assert await outcome(caches, root) == "miss"


async def test_many_are_looked_up_at_once_and_each_has_its_own_outcome(
    core: Services, caches: Caches, root: Path
) -> None:
    await put(caches_on(core, "desktop"), root)
    missing = CacheCall(tool="read", path="missing.py")
    other = CacheCall(tool="read", path="b.py")
    found = await look(caches, root, missing, READ, other)
    assert [each.outcome for each in found] == ["unknown", "hit", "miss"]
    assert found[0].reason == "No such file or directory"
    assert caches.use() == CacheUse(hits=1, near=0, misses=1, stale=0, unknown=1)


async def test_a_key_is_read_as_it_is_now_and_dropped(caches: Caches, root: Path) -> None:
    key, _ = await put(caches, root)
    assert (await caches.read("ses_1", key, str(root))).value == "aaaa"
    (root / "src" / "a.py").write_text("cccc")
    assert (await caches.read("ses_1", key, str(root))).outcome == "stale"
    assert (await caches.drop("ses_1", key)).dropped == 1
    with pytest.raises(NotFound):
        await caches.read("ses_1", key, str(root))


async def test_the_contents_say_what_is_cached_and_how_well_that_serves(
    caches: Caches, root: Path
) -> None:
    await put(caches, root)
    await put(caches, root, GREP, "found")
    await look(caches, root)
    contents = await caches.contents("ses_1")
    assert [(each.tool, each.path, each.scope) for each in contents.entries] == [
        ("read", "src/a.py", "file"),
        ("grep", ".", "tree"),
    ]
    first = contents.entries[0]
    assert (first.expires_at - first.stored_at).total_seconds() == 60
    assert (contents.counts.hits, contents.counts.misses, contents.counts.entries) == (1, 2, 2)
    assert (await caches.clear("ses_1")).dropped == 2
    assert (await caches.contents("ses_1")).entries == []


async def test_a_changed_file_is_dropped_and_the_others_are_told(
    core: Services, caches: Caches, root: Path
) -> None:
    await put(caches, root)
    await put(caches, root, CacheCall(tool="read", path="b.py"))
    async with live_from_now(core) as subscriber:
        assert (await caches.invalidate("ses_1", ["src/../src/a.py"])).dropped == 1
        assert (await caches.invalidate("ses_1", ["src/a.py"])).dropped == 0
        (event,) = await subscriber.told(1)
        assert body(event)["body"] == {"cache": {"changed": ["src/a.py"], "machine": "laptop"}}
    assert await outcome(caches, root) == "miss"
    assert await outcome(caches, root, CacheCall(tool="read", path="b.py")) == "hit"


async def test_an_edit_that_a_tool_made_drops_what_is_cached_of_its_file(
    core: Services, caches: Caches, root: Path
) -> None:
    await put(caches, root)
    await put(caches, root, CacheCall(tool="read", path="b.py"))
    watch = EditWatch(caches)
    core.store.on_commit.append(watch.note_commit)
    path = "${WORKTREE}/src/a.py"
    part = {"id": "p", "type": "tool", "tool": "edit", "state": {"input": {"filePath": path}}}
    await core.messages.append("ses_1", [NewMessage(role="assistant", id="m")])
    for status, kept in (("running", 2), ("completed", 1)):
        part["state"] |= {"status": status}  # type: ignore[operator]
        await core.records.put_part("ses_1", "m", "p", part)
        await watch.close()
        assert len((await caches.contents("ses_1")).entries) == kept
    assert await outcome(caches, root) == "miss"


@pytest.mark.parametrize("root_given", ["relative", "", ".", "/", "//", "/a\0b"])
async def test_a_root_that_is_no_project_s_folder_is_refused(
    caches: Caches, root_given: str
) -> None:
    with pytest.raises(InvalidInput, match="root is"):
        await caches.lookup("ses_1", CacheLookup(root=root_given, calls=[READ]))


async def test_a_key_of_another_call_is_refused(caches: Caches, root: Path) -> None:
    (missed,) = await look(caches, root)
    new = NewCacheValue(root=str(root), call=GREP, stamp=missed.stamp, value="x")
    with pytest.raises(InvalidInput, match="not the call's"):
        await caches.put("ses_1", missed.key, new)


async def test_a_session_that_is_not_there_is_told(
    core: Services, caches: Caches, root: Path
) -> None:
    lookup = CacheLookup(root=str(root), calls=[READ])
    with pytest.raises(NotFound):
        await caches.lookup("never-was", lookup)
    await core.sessions.delete("ses_1")
    with pytest.raises(SessionDeleted):
        await caches.lookup("ses_1", lookup)
    with pytest.raises(SessionDeleted):
        await caches.contents("ses_1")


async def refuses() -> Any:
    raise StoreUnavailable("away")


async def never_answers() -> Any:
    await asyncio.sleep(3600)


@pytest.mark.parametrize("reply", [refuses, never_answers])
async def test_a_redis_that_is_away_is_a_miss_and_is_left_alone_for_a_while(
    core: Services, root: Path, reply: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(core)
    asked, seconds = 0, 0.0

    async def ask(*_: Any) -> Any:
        nonlocal asked
        asked += 1
        return await reply()

    store = CacheStore(core.redis, core.keys, life_ms=1, limit_bytes=1)
    monkeypatch.setattr(store, "_ask", ask)
    clock = Clock()
    clock.ahead_ns = LATER_NS
    caches = Caches(
        store,
        core.store,
        Fingerprints(clock),
        machine="m",
        active_files=nothing_active,
        ahead=0,
        now=lambda: seconds,
    )
    for _ in range(3):
        (found,) = await look(caches, root)
        assert (found.outcome, found.reason) == ("miss", "Redis does not answer")
        assert (await put(caches, root))[1] == "Redis does not answer"
    assert asked == 1
    seconds = 3.0
    await look(caches, root)
    assert asked == 2

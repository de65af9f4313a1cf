"""The cache through the Python API: what a tool answered here is not asked of it again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

import pytest

from sessiond import Session, SessionManager
from sessiond.client import DaemonClient
from sessiond.errors import DaemonUnreachable, InvalidInput, NotFound, SessionDeleted
from sessiond.manager.session_cache import SessionCache
from tests.manager.programs import Connect
from tests.opencode.waiting import until

OLD = Path(os.__file__).parent
"""A folder of files that nobody changes: those of Python itself."""


async def test_a_tool_runs_once_for_the_same_file_whoever_asks(
    connect: Connect, session: Session
) -> None:
    runs = 0

    async def run() -> int:
        nonlocal runs
        runs += 1
        return len((OLD / "os.py").read_text().splitlines())

    other = await connect().load(session.id)
    for each in (session, session, other):
        cache = each.cache.below(OLD)
        lines = await cache.through("wc", {"lines": True}, path="os.py", run=run)
        assert lines == len((OLD / "os.py").read_text().splitlines())
    assert runs == 1
    counts = (await session.cache.contents()).counts
    assert (counts.hits, counts.misses, counts.entries) == (2, 1, 1)


async def test_a_file_that_changed_is_asked_for_again(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("one")
    cache = session.cache.below(tmp_path)

    async def run() -> str:
        return file.read_text()

    async def is_cached() -> bool:
        assert await cache.through("cat", path="a.py", run=run) == file.read_text()
        return (await cache.get("cat", path="a.py")).is_hit

    await until(is_cached)  # two seconds after it was written
    assert time.time() - file.stat().st_mtime >= 2
    before = file.stat()
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not (await cache.get("cat", path="a.py")).is_hit
    assert await cache.through("cat", path="a.py", run=run) == "two"


async def test_a_search_depends_on_all_files_below_its_folder(session: Session) -> None:
    cache = session.cache.below(OLD)
    missed = await cache.get("grep", "loads", path="json", scope="tree")
    assert (await cache.put(missed, ["decoder.py"])).stored
    found = await cache.get("grep", "loads", path="json", scope="tree")
    assert (found.is_hit, found.value) == (True, ["decoder.py"])
    assert not (await cache.get("grep", "dumps", path="json", scope="tree")).is_hit


async def test_what_tells_the_history_is_asked_for_again_after_a_commit(
    session: Session, tmp_path: Path
) -> None:
    def commit(name: str) -> None:
        names = ("-c", "user.name=t", "-c", "user.email=t@t")
        for what in (("init",), ("commit", "--allow-empty", "-m", name)):
            subprocess.run(["git", *names, *what], cwd=tmp_path, check=True, capture_output=True)

    def history() -> str:
        command = ["git", "log", "--format=%s"]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True
        ).stdout.decode()

    cache = session.cache.below(tmp_path)

    async def run() -> str:
        return await asyncio.to_thread(history)

    async def is_cached() -> bool:
        answer = await cache.through("log", path=".", scope="revision", run=run)
        assert answer == await run()
        return (await cache.get("log", path=".", scope="revision")).is_hit

    await asyncio.to_thread(commit, "one")
    await until(is_cached)
    await asyncio.to_thread(commit, "two")
    assert not (await cache.get("log", path=".", scope="revision")).is_hit
    assert await cache.through("log", path=".", scope="revision", run=run) == "two\none\n"


async def test_what_changed_is_dropped_and_the_rest_cleared(session: Session) -> None:
    cache = session.cache.below(OLD)
    for path in ("os.py", "abc.py", "io.py"):
        await cache.put(await cache.get("cat", path=path), "text")
    assert await cache.invalidate("os.py", "glob.py") == 1
    assert {each.path for each in (await cache.contents()).entries} == {"abc.py", "io.py"}
    assert await cache.clear() == 2
    assert (await cache.contents()).entries == []


async def test_a_daemon_that_is_away_is_no_error_and_the_tool_runs(tmp_path: Path) -> None:
    nobody = DaemonClient(socket=str(tmp_path / "no.sock"))
    cache = SessionCache(nobody, "ses_1", str(OLD))

    async def run() -> str:
        return "ran"

    missed = await cache.get("cat", path="os.py")
    assert not missed.is_hit
    assert "no daemon answers" in missed.answer.reason
    assert not (await cache.put(missed, "text")).stored
    assert await cache.through("cat", path="os.py", run=run) == "ran"
    with pytest.raises(DaemonUnreachable):
        await cache.contents()
    await nobody.close()


async def test_what_cannot_be_is_told(session: Session, manager: SessionManager) -> None:
    cache = session.cache.below(OLD)
    with pytest.raises(InvalidInput, match="no path below"):
        await cache.get("cat", path="../x")
    with pytest.raises(InvalidInput):
        await cache.get("", path="os.py")
    missed = await cache.get("cat", path="os.py")
    with pytest.raises(InvalidInput):
        await cache.put(missed, object())
    assert (await cache.put(missed, "text")).stored
    await manager.delete(session.id)
    with pytest.raises(SessionDeleted):
        await cache.get("cat", path="os.py")
    with pytest.raises((NotFound, SessionDeleted)):
        await cache.contents()

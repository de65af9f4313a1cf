"""`sessiond cache`, and the cache in `status` and `show`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessiond.client import DaemonClient
from sessiond.manager.session_cache import SessionCache
from sessiond.model import NewSession
from tests.cli.commands import EVIL, SHOWN, ask, called, controls
from tests.daemons import RunningDaemon, wait_for

OLD = str(Path(os.__file__).parent)


async def fill(client: DaemonClient, session_id: str, *tools: str) -> None:
    cache = SessionCache(client, session_id, OLD)
    for tool in tools:
        await cache.put(await cache.get(tool, path="os.py"), "text")
    missed = await cache.get("grep", "x", path="json", scope="tree")
    await cache.put(missed, "found")
    assert (await cache.get("grep", "x", path="json", scope="tree")).is_hit


@pytest.fixture
def cached(daemon: RunningDaemon) -> Iterator[str]:
    """A session with two cached answers."""
    session_id = ask(daemon, lambda client: client.create(NewSession())).metadata.session_id
    ask(daemon, lambda client: fill(client, session_id, "cat"))
    yield session_id
    ask(daemon, lambda client: client.delete(session_id))


def test_it_shows_what_is_cached_and_how_well_that_serves(
    daemon: RunningDaemon, cached: str
) -> None:
    summary, heading, *rows = called(daemon, "cache", "show", cached).stdout.splitlines()
    expected = "2 answers, 0.0 of 16 MiB; 1 hits, 2 misses, 0 stale, 0 evicted"
    assert summary == expected
    assert heading.split() == ["TOOL", "OF", "FROM", "BYTES", "EXPIRES", "KEY"]
    assert [row.split()[:3] for row in rows] == [
        ["grep", "json/**", "here"],
        ["cat", "os.py", "here"],
    ]
    assert f"cache          {expected}\n" in called(daemon, "show", cached).stdout
    told = json.loads(called(daemon, "cache", "show", cached, "--json").stdout)
    assert [entry["tool"] for entry in told["entries"]] == ["grep", "cat"]


def test_the_session_s_cache_json_tells_the_same(daemon: RunningDaemon, cached: str) -> None:
    path = daemon.folder / "sessiond/.opencode/sessions" / cached / "cache.json"

    def told() -> list[str]:
        entries = json.loads(path.read_bytes())["entries"] if path.exists() else {}
        return [entry["value"]["tool"] for entry in entries.values()]

    wait_for(lambda: told() == ["grep", "cat"])


def test_it_clears_and_says_before_what_would_go(daemon: RunningDaemon, cached: str) -> None:
    dry = called(daemon, "cache", "clear", cached, "--dry-run").stdout
    assert dry == "2 cached answers would be dropped\n"
    assert json.loads(called(daemon, "cache", "clear", cached, "--json").stdout) == {"dropped": 2}
    assert called(daemon, "cache", "clear", cached).stdout == "0 cached answers dropped\n"
    assert "\ncache " not in called(daemon, "show", cached).stdout


@pytest.mark.usefixtures("cached")
def test_status_says_what_became_of_lookups_here(daemon: RunningDaemon) -> None:
    use = json.loads(called(daemon, "status", "--json").stdout)["cache"]
    assert use["hits"] >= 1
    line = f"cache        {use['hits']} hits, {use['misses']} misses, {use['stale']} stale"
    assert line in called(daemon, "status").stdout


def test_a_session_without_a_cache_says_so_and_one_that_is_none_is_told(
    daemon: RunningDaemon,
) -> None:
    shown = called(daemon, "cache", "show", SHOWN).stdout
    assert shown == "0 answers, 0.0 of 16 MiB; 0 hits, 0 misses, 0 stale, 0 evicted\n"
    for command in ("show", "clear"):
        assert "there is no session" in called(daemon, "cache", command, "never", code=8).stderr


def test_names_of_tools_move_no_terminal(daemon: RunningDaemon, cached: str) -> None:
    ask(daemon, lambda client: fill(client, cached, f"{EVIL}tool"))
    assert not controls(called(daemon, "cache", "show", cached).stdout)

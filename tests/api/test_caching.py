"""The cache over HTTP: what is given, what is refused, and what others are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sessiond.model import CacheCall
from sessiond.policy.caching import key_of
from tests.api.client import Client
from tests.api.streams import EventStream

pytestmark = pytest.mark.usefixtures("_quiet")

READ = {"tool": "read", "path": "a.py"}
KEY = key_of(CacheCall(tool="read", path="a.py"))
ROOT = "/somewhere"
MISSING = "/v1/sessions/never-was"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose one file was written a moment ago."""
    (tmp_path / "a.py").write_text("aaaa")
    return tmp_path


def look(client: Client, path: str, root: Path, *calls: Any) -> Any:
    body = {"root": str(root), "calls": list(calls or (READ,))}
    answer = client.call("POST", f"{path}/cache/lookup", body)
    assert answer.status == 200, answer
    return answer.json["answers"]


def put(client: Client, path: str, root: Path, call: dict[str, Any], value: Any) -> Any:
    """Cache an answer to a call about a file that nobody changes; return its key."""
    (missed,) = look(client, path, root, call)
    assert missed["stamp"], missed
    body = {"root": str(root), "call": call, "stamp": missed["stamp"], "value": value}
    answer = client.call("PUT", f"{path}/cache/{missed['key']}", body)
    assert answer.json == {"key": missed["key"], "stored": True, "reason": ""}
    return missed["key"]


@pytest.fixture
def old() -> tuple[Path, dict[str, Any]]:
    """A file that has not changed for long, and a call about it: Python's own `os.py`."""
    source = Path(os.__file__)
    return source.parent, {"tool": "read", "path": source.name, "arguments": {"limit": 5}}


Old = tuple[Path, dict[str, Any]]


def test_what_was_put_is_found_read_listed_and_dropped(
    client: Client, session: str, old: Old
) -> None:
    root, call = old
    key = put(client, session, root, call, {"lines": ["x"]})
    (found,) = look(client, session, root, call)
    assert (found["outcome"], found["value"]) == ("hit", {"lines": ["x"]})
    assert client.get(f"{session}/cache/{key}?root={root}") == found
    contents = client.get(f"{session}/cache")
    (entry,) = contents["entries"]
    assert (entry["key"], entry["tool"], entry["path"]) == (key, "read", "os.py")
    assert contents["counts"] == {
        "entries": 1,
        "bytes": contents["counts"]["bytes"],
        "limit_bytes": 16 * 1024 * 1024,
        "hits": 2,
        "misses": 1,
        "stale": 0,
        "evicted": 0,
    }
    assert client.call("DELETE", f"{session}/cache/{key}").json == {"dropped": 1}
    client.assert_refused("GET", f"{session}/cache/{key}?root={root}", status=404)
    assert look(client, session, root, call)[0]["outcome"] == "miss"


def test_a_file_that_was_just_written_can_be_asked_for_and_not_cached(
    client: Client, session: str, root: Path
) -> None:
    (missed,) = look(client, session, root)
    assert (missed["key"], missed["outcome"], missed["stamp"]) == (KEY, "miss", "")
    body = {"root": str(root), "call": READ, "stamp": "", "value": "aaaa"}
    answer = client.call("PUT", f"{session}/cache/{KEY}", body)
    assert answer.status == 200
    assert not answer.json["stored"]
    assert "less than 2 s ago" in answer.json["reason"]


def test_a_file_that_is_not_there_or_not_to_be_read_is_unknown(
    client: Client, session: str, root: Path
) -> None:
    (root / "link").symlink_to("/etc/passwd")
    paths = ("missing", "link", ".")
    found = look(client, session, root, *({"tool": "read", "path": path} for path in paths))
    assert [each["outcome"] for each in found] == ["unknown"] * 3
    assert all(each["reason"] and not each["stamp"] for each in found)


def test_a_change_is_told_as_a_live_event_and_clearing_drops_the_rest(
    client: Client, session: str, old: Old
) -> None:
    root, call = old
    put(client, session, root, call, "x")
    with EventStream(client.socket, f"{session}/events") as stream:
        changed = {"paths": ["os.py"]}
        answer = client.call("POST", f"{session}/cache/invalidate", changed)
        assert answer.json == {"dropped": 1}
        event = stream.next()
    assert event.name == "live"
    assert event.json["body"]["cache"]["changed"] == ["os.py"]
    put(client, session, root, call, "x")
    assert client.call("DELETE", f"{session}/cache").json == {"dropped": 1}
    assert client.get(f"{session}/cache")["counts"]["hits"] == 0


def test_the_cache_is_no_document_and_no_part_of_the_log(
    client: Client, session: str, old: Old
) -> None:
    before = client.get(session)
    put(client, session, *old, "x")
    assert client.get(session) == before
    client.assert_refused("PATCH", f"{session}/cache", {}, status=404)


@pytest.mark.parametrize(
    "body",
    [
        {"calls": [READ]},
        {"root": ROOT},
        {"root": ROOT, "calls": []},
        {"root": ROOT, "calls": [READ] * 65},
        {"root": "relative", "calls": [READ]},
        {"root": "/", "calls": [READ]},
        {"root": 1, "calls": [READ]},
        {"root": ROOT, "calls": [{**READ, "path": "../x"}]},
        {"root": ROOT, "calls": [{**READ, "path": "/etc/passwd"}]},
        {"root": ROOT, "calls": [{**READ, "path": ""}]},
        {"root": ROOT, "calls": [{**READ, "tool": ""}]},
        {"root": ROOT, "calls": [{**READ, "scope": "world"}]},
        {"root": ROOT, "calls": [{**READ, "more": 1}]},
        {"root": ROOT, "calls": ["a.py"]},
    ],
    ids=lambda body: str(body)[:60],
)
def test_what_is_no_lookup_is_refused(client: Client, session: str, body: Any) -> None:
    client.assert_refused("POST", f"{session}/cache/lookup", body, status=400)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"root": ROOT, "call": READ, "stamp": "s"},
        {"root": ROOT, "call": READ, "value": 1},
        {"root": ROOT, "call": READ, "stamp": "s" * 257, "value": 1},
        {"root": ROOT, "call": {**READ, "path": "b.py"}, "stamp": "s", "value": 1},
        {"root": "tmp", "call": READ, "stamp": "s", "value": 1},
        [],
    ],
    ids=lambda body: str(body)[:60],
)
def test_what_cannot_be_put_is_refused(client: Client, session: str, body: Any) -> None:
    client.assert_refused("PUT", f"{session}/cache/{KEY}", body, status=400)


@pytest.mark.parametrize("paths", [None, [], [""], ["/a"], ["../a"], "a", ["a"] * 257, [1]])
def test_what_is_no_list_of_changed_files_is_refused(
    client: Client, session: str, paths: Any
) -> None:
    client.assert_refused("POST", f"{session}/cache/invalidate", {"paths": paths}, status=400)


@pytest.mark.parametrize("key", ["x", "a" * 49, "%00", KEY.upper(), KEY + "0"])
def test_what_is_no_key_is_refused(client: Client, session: str, key: str) -> None:
    for method, body in (("GET", None), ("DELETE", None), ("PUT", {})):
        query = "?root=/a" if method == "GET" else ""
        client.assert_refused(method, f"{session}/cache/{key}{query}", body, status=400)


def test_reading_a_key_needs_to_know_where_the_files_are(
    client: Client, session: str, old: Old
) -> None:
    key = put(client, session, *old, "x")
    for query in ("", "?root=", "?root=relative"):
        told = client.assert_refused("GET", f"{session}/cache/{key}{query}", status=400)
        assert "expected the project's folder" in told


def test_a_session_that_is_not_there_has_no_cache(client: Client, root: Path, old: Old) -> None:
    gone = client.create("ses_cache_gone")
    put(client, gone, *old, "x")
    client.call("DELETE", gone)
    lookup = {"root": str(root), "calls": [READ]}
    for path, status in ((MISSING, 404), (gone, 410)):
        client.assert_refused("GET", f"{path}/cache", status=status)
        client.assert_refused("DELETE", f"{path}/cache", status=status)
        client.assert_refused("POST", f"{path}/cache/lookup", lookup, status=status)
        client.assert_refused("POST", f"{path}/cache/invalidate", {"paths": ["a"]}, status=status)


def test_what_a_tool_edits_is_dropped_when_its_call_enters_the_log(
    client: Client, session: str, old: Old
) -> None:
    put(client, session, *old, "x")
    state = {"status": "completed", "input": {"filePath": "${WORKTREE}/os.py"}}
    part = {"type": "tool", "tool": "edit", "state": state}
    with EventStream(client.socket, f"{session}/events") as stream:
        client.call("PUT", f"{session}/messages/first/parts/p", part)
        events = [stream.next(), stream.next()]
    (live,) = (event for event in events if event.name == "live")
    assert live.json["body"]["cache"]["changed"] == ["os.py"]
    assert client.get(f"{session}/cache")["entries"] == []

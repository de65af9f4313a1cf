"""What was exported comes back the same; into a session that went on, it is merged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sessiond.client import DaemonClient
from sessiond.model import Context, NewMessage, NewSession, Part, Session
from tests.cli.commands import ask, called, sessiond
from tests.cli.test_caching import fill
from tests.daemons import RunningDaemon, running_daemon

PARTS: list[Part] = [
    {"id": "p1", "type": "text", "text": "with parts"},
    {"id": "p2", "type": "tool", "tool": "read", "state": {"output": None, "größe": [1, 2.5]}},
]


@pytest.fixture(scope="module")
def other() -> Iterator[RunningDaemon]:
    """Another machine, with a Redis of its own."""
    with running_daemon() as daemon:
        yield daemon


def begin(daemon: RunningDaemon, session_id: str) -> Session:
    async def begin_it(client: DaemonClient) -> Session:
        await client.create(
            NewSession(
                session_id=session_id,
                title="Täglich",
                user_id="ann",
                preferences={"theme": "dark", "nothing": None},
                context=Context(active_files=["a.py"], state={"phase": {"deep": [None]}}),
            )
        )
        said = [NewMessage(role="user", content=f"no {n}", id=f"m{n}") for n in range(70)]
        for group in (said[:64], said[64:]):
            await client.append(session_id, group)
        await client.append(session_id, [NewMessage(role="assistant", id="ma", parts=PARTS)])
        await client.append(session_id, [NewMessage(role="user", id="mo", content="own")])
        await client.put_part(session_id, "mo", "px", {"type": "file", "path": "x"})
        await client.remove(session_id, "m3")
        await client.change_document(session_id, "metadata", {"status": "archived"})
        return await client.load(session_id)

    return ask(daemon, begin_it)


def load(daemon: RunningDaemon, session_id: str) -> Session:
    return ask(daemon, lambda client: client.load(session_id))


def check_same(one: Session, other: Session) -> None:
    assert one.conversation == other.conversation
    assert (one.context, one.preferences) == (other.context, other.preferences)
    for name in ("created_at", "title", "user_id", "status", "environment", "workspace"):
        assert getattr(one.metadata, name) == getattr(other.metadata, name), name


@pytest.mark.parametrize("kind", ["folder", "json"])
def test_an_export_comes_back_the_same_on_another_machine(
    daemon: RunningDaemon, other: RunningDaemon, tmp_path: Path, kind: str
) -> None:
    before = begin(daemon, f"ses_{kind}")
    called(daemon, "export", f"ses_{kind}", "--to", str(tmp_path), "--format", kind)
    shown = sessiond(other, "import", str(tmp_path)).stdout
    assert shown.startswith(f"ses_{kind}  created, ")
    check_same(load(other, f"ses_{kind}"), before)
    position = load(other, f"ses_{kind}").position
    sessiond(other, "import", str(tmp_path))
    assert load(other, f"ses_{kind}").position == position, "nothing is written twice"


def test_an_export_tells_what_is_cached_and_an_import_leaves_that_to_the_tools(
    daemon: RunningDaemon, other: RunningDaemon, tmp_path: Path
) -> None:
    ask(daemon, lambda client: client.create(NewSession(session_id="ses_cache")))
    ask(daemon, lambda client: fill(client, "ses_cache", "cat"))
    called(daemon, "export", "ses_cache", "--to", str(tmp_path))
    one = json.loads(sessiond(daemon, "export", "ses_cache").stdout)["cache"]
    told = json.loads((tmp_path / "ses_cache" / "cache.json").read_bytes())
    assert told == one
    values = [entry["value"] for entry in told["entries"].values()]
    assert [(value["tool"], value["value"]) for value in values] == [
        ("grep", "found"),
        ("cat", "text"),
    ]
    sessiond(other, "import", str(tmp_path))
    assert "0 answers" in called(other, "cache", "show", "ses_cache").stdout


def test_all_sessions_are_exported(daemon: RunningDaemon, tmp_path: Path) -> None:
    begin(daemon, "ses_all")
    called(daemon, "export", "--all", "--to", str(tmp_path))
    listed = ask(daemon, lambda client: client.list_sessions(limit=500)).sessions
    ids = {summary.metadata.session_id for summary in listed}
    assert {path.name for path in tmp_path.iterdir()} == ids


def test_into_a_session_that_went_on_an_edited_export_is_merged_on_its_base(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    begin(daemon, "ses_base")
    called(daemon, "export", "ses_base", "--to", str(tmp_path))
    change(tmp_path / "ses_base" / "preferences.json", theme="light")
    path = tmp_path / "ses_base" / "conversation.json"
    said = json.loads(path.read_bytes())
    said["messages"] = [m for m in said["messages"] if m["id"] != "m5"]
    path.write_text(json.dumps(said), encoding="utf-8")

    async def go_on(client: DaemonClient) -> None:
        await client.change_document("ses_base", "preferences", {"language": "en"})
        await client.append("ses_base", [NewMessage(role="user", content="later", id="mz")])

    ask(daemon, go_on)
    called(daemon, "import", str(tmp_path / "ses_base"))
    after = load(daemon, "ses_base")
    assert after.preferences == {"theme": "light", "nothing": None, "language": "en"}
    ids = [message.id for message in after.conversation.messages]
    assert ids[-1] == "mz"
    assert "m5" not in ids


def test_without_a_base_nothing_is_removed_and_what_differs_becomes_a_conflict(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    begin(daemon, "ses_plain")
    called(daemon, "export", "ses_plain", "--to", str(tmp_path))
    (tmp_path / "ses_plain" / ".state.json").unlink()
    change(tmp_path / "ses_plain" / "preferences.json", theme="light")
    change(tmp_path / "ses_plain" / "conversation.json", messages=[])
    report = json.loads(called(daemon, "import", "--json", str(tmp_path)).stdout)[0]
    after = load(daemon, "ses_plain")
    assert after.preferences["theme"] == "light"
    assert len(after.conversation.messages) == 71
    (number,) = report["conflicts"]
    conflict = ask(daemon, lambda client: client.conflict("ses_plain", number))
    assert (conflict.path, conflict.theirs.value) == (["theme"], "dark")


def test_a_dry_run_writes_nothing(daemon: RunningDaemon, other: RunningDaemon) -> None:
    before = begin(daemon, "ses_dry")
    file = daemon.folder / "dry.json"
    file.write_text(sessiond(daemon, "export", "ses_dry").stdout, encoding="utf-8")
    shown = sessiond(other, "import", "--dry-run", str(file)).stdout
    assert shown.startswith("ses_dry  would be created, ")
    sessiond(other, "show", "ses_dry", code=8)
    assert before.position == load(daemon, "ses_dry").position


def test_what_was_removed_stays_removed_and_is_told(daemon: RunningDaemon, tmp_path: Path) -> None:
    begin(daemon, "ses_gone")
    called(daemon, "export", "ses_gone", "--to", str(tmp_path))
    (tmp_path / "ses_gone" / ".state.json").unlink()
    path = tmp_path / "ses_gone" / "conversation.json"
    said = json.loads(path.read_bytes())["messages"]
    change(path, messages=[*said, {"id": "new", "role": "user", "content": "by hand"}])
    ask(daemon, lambda client: client.remove("ses_gone", "m7"))
    done = sessiond(daemon, "import", str(tmp_path), code=9)
    assert "refused message 'm7' was removed there" in done.stdout
    ids = [message.id for message in load(daemon, "ses_gone").conversation.messages]
    assert "m7" not in ids
    assert ids[-1] == "new"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not valid JSON"),
        ("[]", "Expected `object`"),
        ('{"format": "sessiond/9"}', "Invalid enum value 'sessiond/9'"),
        ('{"info": {}, "messages": []}', "no export of opencode's"),
    ],
)
def test_what_is_no_session_is_refused_with_its_place(
    daemon: RunningDaemon, tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(content, encoding="utf-8")
    refused = sessiond(daemon, "import", str(path), code=3).stderr
    assert str(path) in refused
    assert reason in refused


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "name sessions, or say --all"),
        (("a", "b"), "say where to"),
        (("--all", "a", "--to", "x"), "name sessions, or say --all"),
    ],
)
def test_an_export_that_is_not_clear_is_refused(
    daemon: RunningDaemon, arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in sessiond(daemon, "export", *arguments, code=3).stderr


def test_nothing_is_overwritten(daemon: RunningDaemon, tmp_path: Path) -> None:
    begin(daemon, "ses_twice")
    for kind in ("folder", "json"):
        called(daemon, "export", "ses_twice", "--to", str(tmp_path), "--format", kind)
        refused = sessiond(
            daemon, "export", "ses_twice", "--to", str(tmp_path), "--format", kind, code=3
        )
        assert "is there already" in refused.stderr


def test_a_session_that_is_not_opencode_s_is_not_exported_as_one(daemon: RunningDaemon) -> None:
    begin(daemon, "ses_ours")
    refused = sessiond(daemon, "export", "ses_ours", "--format", "opencode", code=3)
    assert "is not one of opencode's" in refused.stderr


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields), encoding="utf-8")

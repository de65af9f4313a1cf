"""A real opencode's export goes through sessiond, and another opencode imports ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sessiond.client import DaemonClient
from sessiond.exchange import import_session, opencode_export_of, read_sessions
from sessiond.opencode.exported import OpencodeExport, read_export
from sessiond.opencode.mapping import FIELD
from tests.daemons import running_daemon
from tests.opencode.conftest import StartOpencode
from tests.opencode.instance import Opencode


@pytest.fixture
async def client() -> AsyncIterator[DaemonClient]:
    with running_daemon() as daemon:
        client = DaemonClient(socket=str(daemon.socket))
        yield client
        await client.close()


async def exported(opencode: Opencode, session_id: str) -> dict[str, Any]:
    """What an opencode exports, without what its own installation is."""
    output = await opencode.run("export", session_id)
    found: dict[str, Any] = json.loads(output[output.index("{") :])
    found["info"].pop("projectID")
    return found


async def test_a_session_goes_from_opencode_through_sessiond_into_another_opencode(
    start_opencode: StartOpencode, client: DaemonClient, tmp_path: Path
) -> None:
    here = await start_opencode("a")
    session_id = await here.create_session("Exported")
    await here.prompt(session_id, "THINK about it")
    await here.prompt(session_id, f"TOOL: echo done in {here.project}")
    await here.stop()
    output = await here.run("export", session_id)
    file = tmp_path / "export.json"
    file.write_text(output[output.index("{") :], encoding="utf-8")
    original = await exported(here, session_id)
    assert any(part["type"] == "tool" for m in original["messages"] for part in m["parts"])

    (found,) = read_sessions(file)
    report = await import_session(client, found)
    assert report.created
    assert report.refused == []
    session = await client.load(session_id)
    assert session.metadata.title == "Exported"
    assert session.conversation.messages[0].content == "THINK about it"
    assert str(here.project) not in session.conversation.messages[0].metadata[FIELD]
    same = json.loads(opencode_export_of(session, str(here.project)))
    same["info"].pop("projectID")
    assert same == original

    there = await start_opencode("b")
    made = tmp_path / "made.json"
    made.write_bytes(opencode_export_of(session, str(there.project)))
    await there.run("import", str(made))
    again = await exported(there, session_id)
    assert len(again["messages"]) == len(original["messages"])
    moved = json.dumps(again).replace(str(there.project), str(here.project))
    assert _comparable(json.loads(moved)) == _comparable(original)
    await there.prompt(session_id, "go on there")
    assert "go on there" in [text for _, text in await there.texts(session_id)]


def _comparable(export: dict[str, Any]) -> Any:
    """An export without the order of parts and of fields, which opencode does not keep."""
    return sorted(
        (
            message["info"]["id"],
            message["info"]["role"],
            sorted((part["id"], json.dumps(part, sort_keys=True)) for part in message["parts"]),
        )
        for message in export["messages"]
    )


def test_nothing_of_the_machine_is_in_what_is_kept() -> None:
    export = OpencodeExport(
        info={
            "id": "ses_1",
            "projectID": "p",
            "directory": "/home/ann/project/sub",
            "path": "sub",
            "title": "t",
            "version": "1.18.33",
            "time": {"created": 1_768_300_200_000, "updated": 1_768_300_300_000},
        },
        messages=[],
    )
    read = read_export(export)
    assert read.context.opencode == {
        **{name: export.info[name] for name in ("id", "path", "title", "version", "time")},
        "directory": "${WORKTREE}/sub",
    }
    assert read.metadata.created_at.timestamp() == 1_768_300_200
    assert read.metadata.user_agent == "opencode 1.18.33"

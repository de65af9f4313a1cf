"""What sessiond takes for granted of opencode: measured, and to be so again with each version.

One instance serves all tests; each has a session of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.opencode.binary import SUPPORTED
from tests.opencode.events import Events
from tests.opencode.instance import Opencode, OpencodeRefused
from tests.opencode.model import Model
from tests.opencode.projects import git_project
from tests.opencode.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOUR_MS = 3_600_000
DURABLE = (
    "session.created",
    "session.updated",
    "session.deleted",
    "message.updated",
    "message.removed",
    "message.part.updated",
    "message.part.removed",
)

_numbers = count(1)


class Probe:
    """What `probe.js` sees, and does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "notes").touch()

    def notes(self, hook: str) -> list[dict[str, Any]]:
        lines = (self.folder / "notes").read_text(encoding="utf-8").splitlines()
        return [note for note in map(json.loads, lines) if note["hook"] == hook]

    def hold_turns(self) -> None:
        (self.folder / "wanted").touch()

    def order(self, **orders: Any) -> None:
        whole = self.folder / "orders.new"
        whole.write_text(json.dumps(orders), encoding="utf-8")
        whole.rename(self.folder / "orders")

    def reset(self) -> None:
        for name in ("wanted", "orders"):
            (self.folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.close()


@pytest.fixture(scope="module")
def the_probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    return Probe(tmp_path_factory.mktemp("probe") / "notes")


@pytest.fixture
def probe(the_probe: Probe) -> Iterator[Probe]:
    yield the_probe
    the_probe.reset()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opencode(
    binary: Path, model: Model, the_probe: Probe, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Opencode]:
    folder = tmp_path_factory.mktemp("facts")
    opencode = Opencode(
        folder / "opencode",
        git_project(folder / "project"),
        binary=binary,
        model_url=model.url,
        plugins=[Path(__file__).with_name("probe.js")],
        environ={"PROBE_FOLDER": str(the_probe.folder)},
    )
    await opencode.start()
    yield opencode
    await opencode.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def events(opencode: Opencode) -> AsyncIterator[Events]:
    events = await opencode.events()
    yield events
    events.close()


async def test_the_version_is_the_one_that_sessiond_supports(opencode: Opencode) -> None:
    assert (await opencode.request("GET", "/global/health"))["version"] == SUPPORTED


async def test_the_log_has_the_columns_that_are_read(opencode: Opencode) -> None:
    columns = [row["name"] for row in opencode.sql("PRAGMA table_info(event)")]
    assert columns == ["id", "aggregate_id", "seq", "type", "data"]


async def test_row_numbers_of_the_log_grow_with_the_commits(
    opencode: Opencode, events: Events
) -> None:
    for _ in range(2):
        await opencode.prompt(await opencode.create_session(), "hello")
    committed = [event["id"] for event in events.logged]
    rows = opencode.sql("SELECT rowid, id FROM event ORDER BY rowid")
    assert [row["id"] for row in rows if row["id"] in committed] == committed


async def test_hooks_get_what_the_log_has_and_find_it_there(
    opencode: Opencode, probe: Probe
) -> None:
    session = await _finished_turn(opencode, probe, "TOOL:echo hello")
    noted = {
        note["event"]["id"]: note
        for note in probe.notes("event")
        if note["event"]["type"] in DURABLE and _session_of(note["event"]) == session
    }
    history = opencode.history(session)
    assert [row["id"] for row in history] == list(noted)
    for row in history:
        note = noted[row["id"]]
        assert row["type"] == f"{note['event']['type']}.1"
        assert row["data"] == note["event"]["properties"]
        assert json.loads(note["stored"]["data"]) == row["data"]


async def test_replayed_events_appear_and_reach_the_model(opencode: Opencode, model: Model) -> None:
    session, turn = await _turn_of_another(opencode)
    await opencode.replay(*turn)
    assert await opencode.texts(session) == [("user", "from afar"), ("assistant", "answered afar")]

    await opencode.prompt(session, "and here")
    (request,) = model.turn_requests("and here")
    assert request.texts == [
        ("user", "from afar"),
        ("assistant", "answered afar"),
        ("user", "and here"),
    ]


async def test_replay_emits_nothing(opencode: Opencode, events: Events, probe: Probe) -> None:
    session, turn = await _turn_of_another(opencode)
    await opencode.replay(*turn)
    await opencode.request("PATCH", f"/session/{session}", {"title": "the end"})
    await events.wait_for(lambda event: _title(event.properties) == "the end")

    assert events.types(session) == ["session.updated"]
    assert [row["type"] for row in events.logged if row["aggregateID"] == session] == [
        "session.updated.1"
    ]
    noted = [note["event"] for note in probe.notes("event")]
    ids = {event["id"] for event in turn}
    assert not [event for event in noted if event["id"] in ids]


@pytest.mark.parametrize("off_by", [-1, 1, 5])
async def test_a_replayed_event_must_be_the_next(opencode: Opencode, off_by: int) -> None:
    session, (created, *_) = await _turn_of_another(opencode)
    await opencode.replay(created)
    wrong = _renaming(created, "wrong", opencode.seq(session) + 1 + off_by)
    with pytest.raises(OpencodeRefused) as refused:
        await opencode.replay(wrong)
    assert refused.value.status == 500
    assert _title(await _info(opencode, session)) == "from another"


async def test_a_known_event_is_refused_elsewhere_and_harmless_in_its_place(
    opencode: Opencode,
) -> None:
    session, turn = await _turn_of_another(opencode)
    await opencode.replay(*turn)
    with pytest.raises(OpencodeRefused):
        await opencode.replay(turn[1] | {"seq": opencode.seq(session) + 1})
    before = opencode.history(session)
    await opencode.replay(*turn)
    assert opencode.history(session) == before


async def test_a_batch_is_written_as_far_as_it_goes(opencode: Opencode) -> None:
    session, turn = await _turn_of_another(opencode)
    turn[2]["data"]["part"]["messageID"] = "msg_nowhere"
    with pytest.raises(OpencodeRefused):
        await opencode.replay(*turn)
    assert [row["id"] for row in opencode.history(session)] == [event["id"] for event in turn[:2]]


async def test_news_of_an_unknown_session_is_logged_but_makes_none(opencode: Opencode) -> None:
    session, (created, *_) = await _turn_of_another(opencode)
    await opencode.replay(created | {"type": "session.updated.1"})
    assert opencode.seq(session) == 0
    with pytest.raises(OpencodeRefused) as refused:
        await opencode.session(session)
    assert refused.value.status == 404


async def test_a_session_keeps_what_its_news_leave_out(opencode: Opencode) -> None:
    session, (created, *_) = await _turn_of_another(opencode)
    created["data"]["info"] |= {"metadata": {"kept": True}, "revert": {"messageID": "msg_1"}}
    await opencode.replay(created)
    news = _renaming(created, "news", 1)
    del news["data"]["info"]["metadata"], news["data"]["info"]["revert"]
    await opencode.replay(news)
    info = await opencode.session(session)
    assert (info["title"], info["metadata"]) == ("news", {"kept": True})
    assert "revert" not in info


async def test_a_message_that_comes_again_is_replaced_but_stays_in_its_place(
    opencode: Opencode,
) -> None:
    session, turn = await _turn_of_another(opencode)
    await opencode.replay(*turn)
    again = deepcopy(turn[1]) | {"id": _event_id(), "seq": len(turn)}
    created = again["data"]["info"]["time"]["created"]
    again["data"]["info"] |= {"time": {"created": created + 5_000}, "agent": "plan"}
    await opencode.replay(again)

    (row, _) = opencode.sql(
        "SELECT time_created, data FROM message WHERE session_id = ? ORDER BY time_created", session
    )
    assert row["time_created"] == created
    info = again["data"]["info"]
    assert json.loads(row["data"]) == {k: v for k, v in info.items() if k not in _IDS}


async def test_what_is_deleted_here_leaves_no_trace(opencode: Opencode, events: Events) -> None:
    session = await opencode.create_session()
    await opencode.request("DELETE", f"/session/{session}")
    await events.wait_for_type("session.deleted", session)
    assert opencode.history(session) == []
    assert opencode.seq(session) == -1


async def test_row_numbers_are_used_again_after_a_deletion(opencode: Opencode) -> None:
    async def used_again() -> bool:
        """Not so when the end of another test's turn is written in between."""
        doomed = await opencode.create_session()
        its_row = _first_row(opencode, doomed)
        await opencode.request("DELETE", f"/session/{doomed}")
        return _first_row(opencode, await opencode.create_session()) == its_row

    assert await until(used_again)


async def test_what_is_deleted_by_replay_keeps_its_log(opencode: Opencode) -> None:
    session, turn = await _turn_of_another(opencode)
    await opencode.replay(*turn)
    deleted = turn[0] | {"id": _event_id(), "seq": len(turn), "type": "session.deleted.1"}
    await opencode.replay(deleted)
    with pytest.raises(OpencodeRefused):
        await opencode.session(session)
    assert opencode.sql("SELECT id FROM message WHERE session_id = ?", session) == []
    assert opencode.history(session)[-1]["id"] == deleted["id"]

    await opencode.replay(turn[0] | {"id": _event_id(), "seq": len(turn) + 1})
    assert _title(await _info(opencode, session)) == "from another"


async def test_a_message_waits_for_the_plugin_and_takes_the_time_it_gives(
    opencode: Opencode, model: Model, probe: Probe
) -> None:
    session = await opencode.create_session()
    probe.hold_turns()
    turn = asyncio.create_task(opencode.prompt(session, "patience"))
    await until(lambda: _asked(probe, session))
    assert await opencode.messages(session) == []

    created = int(time.time() * 1000) - 60_000
    probe.order(created=created)
    await turn
    (asked, _) = await opencode.messages(session)
    assert asked["info"]["time"]["created"] == created
    assert len(model.turn_requests("patience")) == 1


async def test_a_plugin_can_refuse_a_turn(opencode: Opencode, model: Model, probe: Probe) -> None:
    session = await opencode.create_session()
    probe.hold_turns()
    probe.order(refuse="somebody else's turn")
    with pytest.raises(OpencodeRefused) as refused:
        await opencode.prompt(session, "let me in")
    assert refused.value.status == 500
    written = {row["type"] for row in opencode.history(session)}
    assert written == {"session.created.1", "session.updated.1"}  # which agent, which model
    assert model.turn_requests("let me in") == []


async def test_a_prompt_after_history_from_the_future_is_ignored(
    opencode: Opencode, model: Model
) -> None:
    session, turn = await _turn_of_another(opencode, ahead_ms=HOUR_MS)
    await opencode.replay(*turn)
    await opencode.prompt(session, "ignored")
    assert ("user", "ignored") in await opencode.texts(session)
    assert model.turn_requests("ignored") == []


async def test_the_last_of_a_turn_comes_after_it_is_idle(
    opencode: Opencode, events: Events
) -> None:
    session = await opencode.create_session()
    await opencode.prompt(session, "hello")
    await events.wait_for_type("session.idle", session)

    def summed_up() -> bool:
        types = events.types(session)
        return "message.updated" in types[types.index("session.idle") :]

    assert await until(summed_up)


_IDS = ("id", "sessionID")


def _event_id() -> str:
    return f"evt_sd0123456789abcdx{next(_numbers):x}"


async def _turn_of_another(
    opencode: Opencode, *, ahead_ms: int = 0
) -> tuple[str, list[dict[str, Any]]]:
    """Return a session that is new here, and the events of it and its one turn.

    They are put together from those of a turn that ran here.
    """
    number = next(_numbers)
    session = f"ses_{number:026d}"
    source = await opencode.create_session("from another")
    info = await opencode.session(source)
    now_ms = int(time.time() * 1000) + ahead_ms - HOUR_MS // 60
    asked = {
        "id": f"msg_{number:025d}1",
        "role": "user",
        "time": {"created": now_ms},
        "agent": "build",
        "model": {"providerID": "mock", "modelID": "mock-model"},
    }
    answer = {
        "id": f"msg_{number:025d}2",
        "role": "assistant",
        "parentID": asked["id"],
        "time": {"created": now_ms + 1, "completed": now_ms + 2},
        "modelID": "mock-model",
        "providerID": "mock",
        "mode": "build",
        "agent": "build",
        "path": {"cwd": str(opencode.project), "root": str(opencode.project)},
        "cost": 0,
        "tokens": {"input": 1, "output": 1, "reasoning": 0, "cache": {"read": 0, "write": 0}},
        "finish": "stop",
    }
    told: list[tuple[str, dict[str, Any]]] = [
        ("session.created.1", {"info": info | {"id": session}})
    ]
    for message, text in ((asked, "from afar"), (answer, "answered afar")):
        part = {
            "id": str(message["id"]).replace("msg", "prt"),
            "sessionID": session,
            "messageID": message["id"],
            "type": "text",
            "text": text,
        }
        told.append(("message.updated.1", {"info": message | {"sessionID": session}}))
        told.append(("message.part.updated.1", {"part": part, "time": now_ms}))
    return session, [
        {
            "id": _event_id(),
            "aggregateID": session,
            "seq": seq,
            "type": kind,
            "data": {"sessionID": session} | data,
        }
        for seq, (kind, data) in enumerate(told)
    ]


def _renaming(created: dict[str, Any], title: str, seq: int) -> dict[str, Any]:
    """Return the event that gives a session another title."""
    event = deepcopy(created) | {"id": _event_id(), "seq": seq, "type": "session.updated.1"}
    event["data"]["info"]["title"] = title
    return event


async def _finished_turn(opencode: Opencode, probe: Probe, text: str) -> str:
    """Run a turn in a new session, and return the session when the log and hooks are at rest."""
    session = await opencode.create_session()
    await opencode.prompt(session, text)

    def rests() -> bool:
        types = [
            note["event"]["type"]
            for note in probe.notes("event")
            if _session_of(note["event"]) == session
        ]
        return "session.idle" in types and types[-1] == "message.updated"

    await until(rests)
    return session


def _first_row(opencode: Opencode, session: str) -> int:
    query = "SELECT rowid AS n FROM event WHERE aggregate_id = ? AND seq = 0"
    (row,) = opencode.sql(query, session)
    return int(row["n"])


def _session_of(event: dict[str, Any]) -> str:
    return str(event["properties"].get("sessionID", ""))


def _asked(probe: Probe, session: str) -> bool:
    return any(note["session"] == session for note in probe.notes("chat.message"))


async def _info(opencode: Opencode, session: str) -> dict[str, Any]:
    return {"info": await opencode.session(session)}


def _title(data: dict[str, Any]) -> str:
    return str(data.get("info", {}).get("title", ""))


async def test_a_tool_s_hooks_see_call_and_answer_and_cannot_answer_it(
    opencode: Opencode, probe: Probe
) -> None:
    """So what is cached of a tool saves opencode nothing: see `ToolCache` in the plugin."""
    session = await opencode.create_session("tool hooks")
    await opencode.prompt(session, "TOOL:echo ran | tee ran.txt")
    parts = [part for message in await opencode.messages(session) for part in message["parts"]]
    (tool,) = (part for part in parts if part["type"] == "tool")
    assert (opencode.project / "ran.txt").read_text() == "ran\n"
    assert tool["state"]["output"].strip() == "ran"
    (before,), (after,) = (
        [note for note in probe.notes(hook) if note["session"] == session]
        for hook in ("before", "after")
    )
    assert before["call"] == after["call"] == tool["callID"]
    assert before["args"] == tool["state"]["input"]
    assert after["output"] == tool["state"]["output"]

"""Two real opencodes on two machines share their sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from sessiond.client import DaemonClient
from sessiond.model import NewMessage, NewSession
from tests.opencode.machines import Machine, Team, gone, known, same_history
from tests.opencode.model import NAME as MODEL
from tests.opencode.model import Model
from tests.opencode.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def answering() -> Iterator[Model]:
    model = Model()
    model.delay = 0.01
    yield model
    model.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair_of_machines(
    binary: Path, answering: Model
) -> AsyncIterator[tuple[Machine, Machine]]:
    team = Team(binary, answering.url)
    try:
        ana, ben = await team.start("ana", "ben")
        yield ana, ben
    finally:
        await team.stop()


@pytest.fixture
def ana(pair_of_machines: tuple[Machine, Machine], answering: Model) -> Machine:
    answering.forget()
    return pair_of_machines[0]


@pytest.fixture
def ben(pair_of_machines: tuple[Machine, Machine]) -> Machine:
    return pair_of_machines[1]


async def test_a_turn_with_a_tool_is_the_same_on_both_but_for_the_paths(
    ana: Machine, ben: Machine
) -> None:
    session = await ana.opencode.create_session("the same")
    await ana.opencode.prompt(session, "TOOL:pwd; echo hello > f.txt")
    history = await same_history(session, ana, ben)
    assert "${WORKTREE}" in history
    first, *_, last = await ben.opencode.messages(session)
    assert first["info"]["id"] == (await ana.opencode.messages(session))[0]["info"]["id"]
    assert last["info"]["path"]["cwd"] == str(ben.project)
    tools = [
        part
        for part in (await ben.opencode.messages(session))[1]["parts"]
        if part["type"] == "tool"
    ]
    assert tools[0]["state"]["output"].strip() == str(ben.project)


async def test_what_one_asked_is_in_the_models_context_of_the_other(
    ana: Machine, ben: Machine, answering: Model
) -> None:
    session = await ana.opencode.create_session("context")
    await ana.opencode.prompt(session, "TOOL:echo tool-77")
    await known(ben, session)
    await ben.opencode.prompt(session, "and what now?")
    request = answering.turn_requests("and what now?")[-1]
    calls = [each for each in request.messages if each.get("tool_calls")]
    assert "echo tool-77" in json.dumps(calls)
    assert any(
        each["role"] == "tool" and "tool-77" in str(each["content"]) for each in request.messages
    )
    await same_history(session, ana, ben)
    assert (await ana.turns(session))[-1][0] == "assistant"


async def test_text_is_visible_elsewhere_while_it_streams(
    ana: Machine, ben: Machine, answering: Model
) -> None:
    session = await ana.opencode.create_session("streams")
    await known(ben, session)
    events = await ben.events()
    with answering.holding("SLOW:8", pieces=4) as gate:
        await ana.opencode.prompt_async(session, "SLOW:8")
        await until(lambda: gate.held)
        await until(lambda: len(events.of("message.part.delta", session=session)) >= 3)
        assert not events.of("session.idle", session=session)
    await events.wait_for_type("session.idle", session)
    await same_history(session, ana, ben)
    part = (await ben.opencode.messages(session))[-1]["parts"][1]
    of_part = [
        each
        for each in events.of("message.part.updated", "message.part.delta", session=session)
        if part["id"] in (each.properties.get("partID"), each.properties.get("part", {}).get("id"))
    ]
    kinds = [each.type for each in of_part]
    assert kinds[0] == kinds[-1] == "message.part.updated"
    assert set(kinds[1:-1]) == {"message.part.delta"}
    assert "".join(each.properties["delta"] for each in of_part[1:-1]) == part["text"]
    events.close()


@pytest.mark.parametrize(("words", "calls"), [("plain {}", 2), ("TOOL:echo {}", 4)])
async def test_two_prompts_at_once_take_turns_ten_times_over(
    ana: Machine, ben: Machine, answering: Model, words: str, calls: int
) -> None:
    session = await ana.opencode.create_session("at once")
    await known(ben, session)
    for number in range(10):
        answering.forget()
        await asyncio.gather(
            ana.opencode.prompt(session, words.format(f"a{number}")),
            ben.opencode.prompt(session, words.format(f"b{number}")),
        )
        await same_history(session, ana, ben)
        assert len(answering.turn_requests()) == calls
    messages = await ana.opencode.messages(session)
    asked = None
    for message in messages:
        info = message["info"]
        if info["role"] == "user":
            asked = info["id"]
        else:
            assert info["parentID"] == asked, "two turns were mixed"
    assert sum(message["info"]["role"] == "user" for message in messages) == 20


async def test_a_session_is_renamed_on_either_side(ana: Machine, ben: Machine) -> None:
    session = await ana.opencode.create_session("first name")
    await known(ben, session)
    for here, there, title in ((ana, ben, "second"), (ben, ana, "third")):
        await here.opencode.request("PATCH", f"/session/{session}", {"title": title})

        async def renamed(there: Machine = there, title: str = title) -> bool:
            return bool((await there.opencode.session(session))["title"] == title)

        await until(renamed)


async def test_a_session_is_deleted_on_either_side(ana: Machine, ben: Machine) -> None:
    for here, there in ((ana, ben), (ben, ana)):
        session = await here.opencode.create_session("short")
        await known(there, session)
        await here.opencode.request("DELETE", f"/session/{session}")
        await gone(there, session)
        await gone(here, session)


async def test_a_message_is_removed_on_either_side(ana: Machine, ben: Machine) -> None:
    session = await ana.opencode.create_session("removed")
    for here, there in ((ana, ben), (ben, ana)):
        await ana.opencode.prompt(session, "hello")
        await same_history(session, ana, ben)
        message = (await here.opencode.messages(session))[0]["info"]["id"]
        await here.opencode.request("DELETE", f"/session/{session}/message/{message}")

        async def removed(there: Machine = there, message: str = message) -> bool:
            left = await there.opencode.messages(session)
            return message not in [each["info"]["id"] for each in left]

        await until(removed)
    await same_history(session, ana, ben)


async def test_a_message_without_an_answer_lets_the_next_one_go_on(
    ana: Machine, ben: Machine, answering: Model
) -> None:
    session = await ana.opencode.create_session("no reply")
    await known(ben, session)
    await ana.opencode.prompt(session, "only a note", noReply=True)
    await ben.opencode.prompt(session, "a question")
    assert len(answering.turn_requests()) == 1
    assert "only a note" in answering.turn_requests()[0].said
    await same_history(session, ana, ben)


async def test_a_fork_and_a_subagents_session_are_shared_too(ana: Machine, ben: Machine) -> None:
    session = await ana.opencode.create_session("origin")
    await ana.opencode.prompt(session, "hello")
    fork = await ana.opencode.request("POST", f"/session/{session}/fork", {})
    child = await ana.opencode.create_session("child", parentID=session)
    await known(ben, fork["id"])
    await same_history(fork["id"], ana, ben)
    children = await until(lambda: ben.opencode.request("GET", f"/session/{session}/children"))
    assert [each["id"] for each in children] == [child]


async def test_a_summary_and_a_command_of_the_shell_are_shared(
    ana: Machine, ben: Machine, answering: Model
) -> None:
    session = await ana.opencode.create_session("compacted")
    await ana.opencode.prompt(session, "hello")
    await same_history(session, ana, ben)
    shell = {"agent": "build", "command": "echo from-the-shell"}
    await ben.opencode.request("POST", f"/session/{session}/shell", shell)
    assert "from-the-shell" in await same_history(session, ana, ben)
    model = {"providerID": "mock", "modelID": MODEL}
    await ana.opencode.request("POST", f"/session/{session}/summarize", model)
    assert '"compaction"' in await same_history(session, ana, ben)
    answering.forget()
    await ben.opencode.prompt(session, "after it")
    assert len(answering.turn_requests()) == 1


async def test_a_turn_that_is_aborted_lets_the_next_one_go_on(
    ana: Machine, ben: Machine, answering: Model
) -> None:
    session = await ana.opencode.create_session("aborted")
    await known(ben, session)
    with answering.holding("SLOW:9", pieces=3) as gate:
        await ana.opencode.prompt_async(session, "SLOW:9")
        await until(lambda: gate.held)
        await ana.opencode.request("POST", f"/session/{session}/abort")
        await ben.opencode.prompt(session, "a question")
    await same_history(session, ana, ben)
    assert [role for role, _ in await ana.turns(session)] == ["user", "assistant"] * 2


async def test_a_prompt_that_waits_can_be_cancelled(
    ana: Machine, ben: Machine, answering: Model
) -> None:
    session = await ana.opencode.create_session("cancelled")
    await known(ben, session)
    events = await ben.events()
    with answering.holding("first"):
        await ana.opencode.prompt_async(session, "first")
        await until(lambda: answering.turn_requests("first"))
        await ben.opencode.prompt_async(session, "never mind")
        await events.wait_for_type("tui.toast.show")
        await ben.opencode.request("POST", f"/session/{session}/abort")
        await events.wait_for_type("session.error", session)
    await ben.opencode.prompt(session, "but this")
    await same_history(session, ana, ben)
    assert [text for role, text in await ana.turns(session) if role == "user"] == [
        "first",
        "but this",
    ]
    events.close()


async def test_a_revert_stays_where_it_was_made(ana: Machine, ben: Machine) -> None:
    session = await ana.opencode.create_session("reverted")
    await ana.opencode.prompt(session, "first")
    await ana.opencode.prompt(session, "second")
    await same_history(session, ana, ben)
    message = (await ana.opencode.messages(session))[2]["info"]["id"]
    await ana.opencode.request("POST", f"/session/{session}/revert", {"messageID": message})
    await ben.opencode.request("PATCH", f"/session/{session}", {"title": "a word from ben"})

    async def renamed() -> bool:
        return bool((await ana.opencode.session(session))["title"] == "a word from ben")

    await until(renamed)
    assert "revert" in await ana.opencode.session(session)
    assert "revert" not in await ben.opencode.session(session)
    await ana.opencode.prompt(session, "instead of it")
    await same_history(session, ana, ben)
    texts = [text for role, text in await ben.turns(session) if role == "user"]
    assert texts == ["first", "instead of it"]


async def test_a_session_deleted_while_a_turn_runs_elsewhere_is_gone(
    ana: Machine, ben: Machine, answering: Model
) -> None:
    session = await ana.opencode.create_session("deleted meanwhile")
    await known(ben, session)
    with answering.holding("SLOW:9", pieces=3) as gate:
        await ben.opencode.prompt_async(session, "SLOW:9")
        await until(lambda: gate.held)
        await ana.opencode.request("DELETE", f"/session/{session}")
        await gone(ana, session)
    await gone(ben, session)
    for machine in (ana, ben):
        assert "Traceback" not in machine.sidecar.log


async def test_a_session_works_where_its_folder_is_missing(ana: Machine, ben: Machine) -> None:
    folder = ana.project / "only" / "here"
    folder.mkdir(parents=True)
    made = await ana.opencode.request("POST", "/session", {}, directory=folder)
    session = made["id"]
    assert (await known(ben, session))["directory"] == str(ben.project)
    await ben.opencode.prompt(session, "works")
    await same_history(session, ana, ben)
    assert (await ana.opencode.session(session))["directory"] == str(folder)


async def test_a_session_that_is_no_opencodes_is_left_alone(ana: Machine, ben: Machine) -> None:
    workspace = (await ana.overview())["instances"][0]["workspace"]
    client = DaemonClient(socket=str(ana.sidecar.socket))
    try:
        new = NewSession(session_id="ses_of_a_program", workspace=workspace)
        await client.create(new)
        await client.append("ses_of_a_program", [NewMessage(role="user", content="hello")])
        other = await ben.opencode.create_session("another")  # so that everybody looks
        await known(ana, other)
        await asyncio.sleep(1.0)
        assert (await client.load("ses_of_a_program")).conversation.total_messages == 1
    finally:
        await client.close()


async def test_a_private_session_stays_where_it_is(ana: Machine, ben: Machine) -> None:
    session = await ana.opencode.create_session("private")
    await known(ben, session)
    client = DaemonClient(socket=str(ana.sidecar.socket))
    try:
        path = f"/v1/opencode/sessions/{session}/sharing"
        await client.call("PUT", path, None, body={"shared": False})
        await ana.opencode.prompt(session, "not for ben")
        await asyncio.sleep(1.0)
        assert await ben.opencode.messages(session) == []
        await client.call("PUT", path, None, body={"shared": True})
        await same_history(session, ana, ben)
        assert len(await ben.opencode.messages(session)) == 2
    finally:
        await client.close()


async def test_who_answers_is_seen_by_whom_waits(
    ana: Machine, ben: Machine, answering: Model
) -> None:
    session = await ana.opencode.create_session("waits")
    await known(ben, session)
    events = await ben.events()
    with answering.holding("first"):
        await ana.opencode.prompt_async(session, "first")
        await until(lambda: len(answering.turn_requests("first")) == 1)
        await ben.opencode.prompt_async(session, "second")
        toast = await events.wait_for_type("tui.toast.show")
        assert "ana is answering" in toast.properties["message"]
        await until(lambda: _answers(ben, session))
        assert not answering.turn_requests("second")
    await until(lambda: len(answering.turn_requests("second")) == 1)
    await same_history(session, ana, ben)
    events.close()


async def _answers(machine: Machine, session: str) -> bool:
    return any(session in each["turns"] for each in (await machine.overview())["instances"])

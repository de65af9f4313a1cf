"""The plugin inside a real opencode, with a stand-in for the sidecar."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio

import sessiond
from sessiond.opencode.protocol import OpencodeEvent
from tests.opencode.elsewhere import Elsewhere
from tests.opencode.events import Events, SeenEvent
from tests.opencode.instance import Opencode
from tests.opencode.model import Model
from tests.opencode.projects import git_project
from tests.opencode.standin import MACHINE, StandIn

PLUGIN = Path(sessiond.__file__).parent / "opencode" / "plugin" / "sessiond.js"
LINGERING = """
export const Lingering = async () => ({
  "chat.message": (_, { parts }) =>
    new Promise((done) => setTimeout(done, parts[0].text?.includes("LINGER") ? 800 : 0)),
})
"""
"""Another plugin, which has prompts marked LINGER wait between our hook and opencode."""

LIVE = ("message.part.delta", "session.status", "session.idle")
DURABLE = (
    *("session.created", "session.updated", "session.deleted"),
    *("message.updated", "message.removed", "message.part.updated", "message.part.removed"),
)

SomeEvent = TypeVar("SomeEvent", OpencodeEvent, SeenEvent)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a name so short that sockets can lie in it."""
    with tempfile.TemporaryDirectory(prefix="sessiond-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def steady_model() -> Iterator[Model]:
    model = Model()
    model.delay = 0.01
    yield model
    model.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sidecar(folder: Path) -> AsyncIterator[StandIn]:
    sidecar = StandIn(folder / "api.sock")
    await sidecar.start()
    yield sidecar
    await sidecar.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opencode(
    folder: Path, binary: Path, steady_model: Model, sidecar: StandIn
) -> AsyncIterator[Opencode]:
    """One opencode with the plugin; each test has a session of its own."""
    lingering = folder / "lingering.js"
    lingering.write_text(LINGERING, encoding="utf-8")
    opencode = Opencode(
        folder / "a",
        git_project(folder / "project"),
        binary=binary,
        model_url=steady_model.url,
        plugins=[PLUGIN, lingering],
        environ={
            "SESSIOND_SOCKET": str(sidecar.socket),
            "SESSIOND_PLUGIN_LOG": str(folder / "plugin.log"),
        },
    )
    await opencode.start()
    yield opencode
    await opencode.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def views(opencode: Opencode) -> Events:
    """What those who look at the opencode are told."""
    views = await opencode.events()
    while not views.seen:  # it says that one is connected a moment before one is
        await opencode.request("POST", "/tui/append-prompt", {"text": ""})
        await asyncio.sleep(0.02)
    return views


@pytest_asyncio.fixture(loop_scope="module")
async def session(opencode: Opencode, sidecar: StandIn, views: Events) -> str:
    await sidecar.attached()
    return await opencode.create_session()


@pytest_asyncio.fixture(loop_scope="module")
async def elsewhere(opencode: Opencode, session: str) -> Elsewhere:
    """A session that exists at another instance only."""
    return Elsewhere(await opencode.session(session))


async def test_the_attachment_tells_what_the_sidecar_needs(
    opencode: Opencode, sidecar: StandIn
) -> None:
    attachment = await sidecar.attached()
    assert attachment.pid == opencode.pid
    assert attachment.version == "1.18.33"
    assert Path(attachment.database) == opencode.database
    assert attachment.directory == attachment.worktree == str(opencode.project)
    assert attachment.project_id == (await opencode.request("GET", "/project/current"))["id"]
    assert (attachment.mode, attachment.share, attachment.live) == ("lease", True, True)


async def test_events_are_pushed_once_in_their_order_with_the_streaming_text(
    opencode: Opencode, sidecar: StandIn, views: Events, session: str
) -> None:
    await opencode.prompt(session, "SLOW:5")
    await views.wait_for_type("session.idle", session)
    await opencode.request("PATCH", f"/session/{session}", {"title": "the end"})
    end = (
        await views.wait_for(lambda e: e.properties.get("info", {}).get("title") == "the end")
    ).id
    await sidecar.until(lambda: end in [event.id for event in sidecar.of(session)])

    pushed = _until(end, sidecar.of(session))
    seen = _until(end, views.of(*DURABLE, *LIVE, session=session))
    assert [event.id for event in pushed] == [event.id for event in seen]
    logged = [row["id"] for row in opencode.history(session)]
    assert [e.id for e in pushed if e.type in DURABLE] == logged[: logged.index(end) + 1]
    deltas = "".join(e.properties["delta"] for e in pushed if e.type == "message.part.delta")
    assert deltas == "w0 w1 w2 w3 w4 "


async def test_what_comes_in_stands_in_the_api_and_moves_the_views_in_its_order(
    opencode: Opencode, sidecar: StandIn, views: Events, elsewhere: Elsewhere
) -> None:
    asked = elsewhere.question("hello")
    begun = elsewhere.begun(asked[0].properties["info"]["id"])
    empty = elsewhere.part(begun.properties["info"]["id"], "")
    deltas = [elsewhere.delta(empty, f"word{n} ") for n in range(20)]
    full = elsewhere.part(
        begun.properties["info"]["id"], "all of it", empty.properties["part"]["id"]
    )
    ended = elsewhere.ended(begun)

    first = [elsewhere.created(), *asked, begun, empty]
    assert (await sidecar.apply(elsewhere.id, first)).outcome == "applied"
    await asyncio.gather(
        *(sidecar.notify(delta) for delta in deltas), sidecar.apply(elsewhere.id, [full, ended])
    )

    assert await opencode.texts(elsewhere.id) == [("user", "hello"), ("assistant", "all of it")]
    await views.wait_for(lambda event: event.id == ended.id)
    shown = [event.id for event in views.seen if event.session == elsewhere.id]
    assert shown == [event.id for event in (*first, *deltas, full, ended)]
    assert {event.directory for event in views.seen if event.session == elsewhere.id} == {
        str(opencode.project)
    }


async def test_what_comes_in_is_never_pushed_back(
    opencode: Opencode, sidecar: StandIn, elsewhere: Elsewhere, session: str
) -> None:
    await sidecar.apply(elsewhere.id, [elsewhere.created(), *elsewhere.turn("a", "b")])
    await sidecar.notify(elsewhere.delta(elsewhere.part("msg_x", ""), "more"))
    await opencode.request("PATCH", f"/session/{session}", {"title": "afterwards"})
    await sidecar.pushed_type(session, "session.updated")
    assert sidecar.of(elsewhere.id) == []


async def test_a_batch_that_is_repeated_changes_nothing(
    opencode: Opencode, sidecar: StandIn, elsewhere: Elsewhere
) -> None:
    events = [elsewhere.created(), *elsewhere.turn("a", "b")]
    assert (await sidecar.apply(elsewhere.id, events[:3])).outcome == "applied"
    assert (await sidecar.apply(elsewhere.id, events)).outcome == "applied"
    assert (await sidecar.apply(elsewhere.id, events)).outcome == "applied"
    assert [row["id"] for row in opencode.history(elsewhere.id)] == [e.id for e in events]


async def test_a_long_batch_comes_in_whole(
    opencode: Opencode, sidecar: StandIn, elsewhere: Elsewhere
) -> None:
    [message, *_] = question = elsewhere.question("many")
    parts = [elsewhere.part(message.properties["info"]["id"], str(n)) for n in range(170)]
    report = await sidecar.apply(elsewhere.id, [elsewhere.created(), *question, *parts])
    assert report.outcome == "applied"
    [(_, text)] = await opencode.texts(elsewhere.id)
    assert text == "many" + "".join(map(str, range(170)))


async def test_a_session_that_exists_is_updated_and_one_that_does_not_is_created(
    opencode: Opencode, sidecar: StandIn, elsewhere: Elsewhere
) -> None:
    await sidecar.apply(elsewhere.id, [elsewhere.titled("first")])
    assert (await opencode.session(elsewhere.id))["title"] == "first"
    again = elsewhere.created()
    assert (await sidecar.apply(elsewhere.id, [again])).outcome == "applied"
    assert (await opencode.session(elsewhere.id))["title"] == "from elsewhere"


async def test_a_revert_stays_as_it_is_here_whatever_comes_in(
    opencode: Opencode, sidecar: StandIn, elsewhere: Elsewhere
) -> None:
    """What the sidecar knew when it sent a record may be over when it goes in."""
    question, answer, *rest = elsewhere.turn("a question", "an answer")
    await sidecar.apply(elsewhere.id, [elsewhere.created(), question, answer, *rest])
    place = {"messageID": question.properties["info"]["id"]}
    await opencode.request("POST", f"/session/{elsewhere.id}/revert", place)
    await sidecar.apply(elsewhere.id, [elsewhere.titled("while it is reverted")])
    found = await opencode.session(elsewhere.id)
    assert found["title"] == "while it is reverted"
    assert found["revert"]["messageID"] == place["messageID"]
    await opencode.request("POST", f"/session/{elsewhere.id}/unrevert")
    stale = elsewhere.titled("after it")
    stale.properties["info"] = stale.properties["info"] | {"revert": found["revert"]}
    await sidecar.apply(elsewhere.id, [stale])
    assert "revert" not in await opencode.session(elsewhere.id)


async def test_an_event_that_opencode_refuses_does_not_hold_up_the_others(
    opencode: Opencode, sidecar: StandIn, elsewhere: Elsewhere
) -> None:
    orphan = elsewhere.part("msg_nowhere", "lost")
    events = [elsewhere.created(), *elsewhere.question("a"), orphan, *elsewhere.turn("b", "c")]
    report = await sidecar.apply(elsewhere.id, events)
    assert report.outcome == "failed"
    assert orphan.id in report.error
    assert [text for _, text in await opencode.texts(elsewhere.id)] == ["a", "b", "c"]


async def test_a_message_of_a_session_that_is_not_here_is_refused(
    opencode: Opencode, sidecar: StandIn, elsewhere: Elsewhere
) -> None:
    report = await sidecar.apply(elsewhere.id, elsewhere.question("a"))
    assert (report.outcome, "not here" in report.error) == ("failed", True)
    assert opencode.history(elsewhere.id) == []


async def test_while_a_turn_runs_what_comes_in_is_shown_and_held_until_it_has_ended(
    opencode: Opencode, sidecar: StandIn, views: Events, steady_model: Model, session: str
) -> None:
    remote = Elsewhere(await opencode.session(session), session).turn("remote", "answer")
    with steady_model.holding("local turn"):
        await opencode.prompt_async(session, "local turn")
        await sidecar.pushed_type(session, "session.status")
        assert (await sidecar.apply(session, remote)).outcome == "held"
        await views.wait_for(lambda event: event.id == remote[-1].id)
        assert [text for _, text in await opencode.texts(session)] == ["local turn", ""]
    await sidecar.pushed_type(session, "session.idle")
    shown = len(views.seen)
    assert (await sidecar.apply(session, remote, announce=False)).outcome == "applied"
    assert len(await opencode.texts(session)) == 4
    assert not {event.id for event in views.seen[shown:]} & {event.id for event in remote}
    assert len(steady_model.turn_requests("local turn")) == 1


async def test_what_comes_in_wins_its_place_against_local_writers(
    folder: Path, opencode: Opencode, sidecar: StandIn, session: str
) -> None:
    elsewhere = Elsewhere(await opencode.session(session), session)
    [message, *_] = batch = elsewhere.question("?")
    log = folder / "plugin.log"
    written = 0

    async def write_locally() -> None:
        nonlocal written
        while True:
            await opencode.request("PATCH", f"/session/{session}", {"title": f"title {written}"})
            written += 1
            await asyncio.sleep(random.uniform(0.01, 0.04))  # noqa: S311 - no secret

    writers = [asyncio.create_task(write_locally()) for _ in range(2)]
    sent = 0
    while log.read_text(encoding="utf-8").count('"isRace":true') < 3:
        assert sent < 4000, "there was no race"
        assert (await sidecar.apply(session, batch)).outcome == "applied"
        sent += len(batch)
        batch = [elsewhere.part(message.properties["info"]["id"], str(n)) for n in range(20)]
    for writer in writers:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)

    history = opencode.history(session)
    assert [row["seq"] for row in history] == list(range(len(history)))
    assert len({row["id"] for row in history}) == len(history) >= written + sent


async def test_a_prompt_waits_for_the_turn_of_another_which_comes_in_first(
    opencode: Opencode, sidecar: StandIn, views: Events, steady_model: Model, session: str
) -> None:
    remote = Elsewhere(await opencode.session(session), session).turn("remote", "answer")
    sidecar.hold(session, machine="laptop")
    await opencode.prompt_async(session, "my turn")
    toast = await views.wait_for_type("tui.toast.show")
    assert toast.properties["message"] == "laptop is answering; your message waits"
    assert (await sidecar.apply(session, remote)).outcome == "applied"
    assert not steady_model.turn_requests("my turn")

    granted = round(time.time() * 1000)
    await sidecar.grant(session)
    await views.wait_for_type("session.idle", session)
    asked = (await opencode.messages(session))[2]["info"]
    assert asked["time"]["created"] >= granted
    texts = [text for _, text in await opencode.texts(session)]
    assert texts[:3] == ["remote", "answer", "my turn"]
    assert len(texts) == 4
    assert len(steady_model.turn_requests("my turn")) == 1


async def test_another_opencode_of_this_machine_is_called_so(
    opencode: Opencode, sidecar: StandIn, views: Events, session: str
) -> None:
    sidecar.hold(session, machine=MACHINE)
    await opencode.prompt_async(session, "hello")
    await views.wait_for(lambda e: "Another opencode here" in e.properties.get("message", ""))
    await sidecar.grant(session)
    await sidecar.pushed_type(session, "session.idle")


async def test_a_prompt_during_a_turn_asks_again(
    opencode: Opencode, sidecar: StandIn, steady_model: Model, session: str
) -> None:
    with steady_model.holding("one"):
        await opencode.prompt_async(session, "one")
        await sidecar.pushed_type(session, "session.status")
        await opencode.prompt_async(session, "two")
        await sidecar.until(lambda: len(sidecar.asked_of(session)) == 2)
    await sidecar.pushed_type(session, "session.idle")
    assert [text for role, text in await opencode.texts(session) if role == "user"] == [
        "one",
        "two",
    ]


async def test_a_prompt_that_was_let_through_before_a_turn_ended_is_asked_for_again(
    opencode: Opencode, sidecar: StandIn, steady_model: Model, session: str
) -> None:
    remote = Elsewhere(await opencode.session(session), session)
    with steady_model.holding("first"):
        await opencode.prompt_async(session, "first")
        await sidecar.pushed_type(session, "session.status")
        await opencode.prompt_async(session, "LINGER, then second")
        await sidecar.until(lambda: len(sidecar.asked_of(session)) == 2)
    await sidecar.until(lambda: len(sidecar.asked_of(session)) == 3)
    assert "session.idle" in [e.type for e in sidecar.of(session)]
    assert (await sidecar.apply(session, remote.question("remote"))).outcome == "held"
    await sidecar.pushed_type(session, "session.idle", times=2)
    assert len(steady_model.turn_requests("second")) == 1


async def test_the_end_of_a_turn_is_pushed_before_the_next_one_is_asked_for(
    opencode: Opencode, sidecar: StandIn, session: str
) -> None:
    for _ in range(4):
        await opencode.prompt(session, "quick")
    ends = [
        len([e for e in sidecar.of(session, before=after) if e.type == "session.idle"])
        for after in sidecar.asked_of(session)
    ]
    assert ends == [0, 1, 2, 3]


async def test_a_message_without_a_turn_gives_the_turn_back(
    opencode: Opencode, sidecar: StandIn, session: str
) -> None:
    elsewhere = Elsewhere(await opencode.session(session), session)
    await opencode.prompt(session, "only a note", noReply=True)
    assert (await sidecar.apply(session, elsewhere.question("early"))).outcome == "held"
    await sidecar.until(lambda: session in sidecar.released)
    assert (await sidecar.apply(session, elsewhere.question("late"))).outcome == "applied"


async def test_a_sidecar_that_cannot_tell_keeps_no_prompt_waiting(
    opencode: Opencode, sidecar: StandIn, session: str
) -> None:
    sidecar.is_broken = True
    try:
        begun = time.monotonic()
        await opencode.prompt(session, "hello")
        assert time.monotonic() - begun < 5
    finally:
        sidecar.is_broken = False


async def test_a_toast_is_shown(sidecar: StandIn, views: Events, session: str) -> None:
    await sidecar.toast("a word to you")
    await views.wait_for(lambda event: event.properties.get("message") == "a word to you")


async def test_a_sidecar_that_knows_nobody_is_attached_to_anew(
    opencode: Opencode, sidecar: StandIn, session: str
) -> None:
    before = len(sidecar.attachments)
    sidecar.forget()
    await opencode.request("PATCH", f"/session/{session}", {"title": "unheard of"})
    await sidecar.until(lambda: len(sidecar.attachments) > before)
    await sidecar.pushed_type(session, "session.updated")


async def test_without_a_sidecar_opencode_works_on_and_tells_it_everything_later(
    opencode: Opencode, sidecar: StandIn, steady_model: Model, session: str
) -> None:
    await opencode.prompt(session, "with")
    await sidecar.pushed_type(session, "session.idle")
    await sidecar.stop()
    try:
        seconds = [await _seconds_to_model(opencode, steady_model, session) for _ in range(3)]
    finally:
        await sidecar.start()
    assert statistics.median(seconds) < 0.5
    await sidecar.attached()
    await sidecar.until(lambda: len(opencode.history(session)) == _durable(sidecar.of(session)))
    pushed = [event.id for event in sidecar.of(session) if event.type in DURABLE]
    assert pushed == [row["id"] for row in opencode.history(session)]


async def test_a_sidecar_too_slow_for_many_events_at_once_gets_fewer(
    opencode: Opencode, sidecar: StandIn, session: str
) -> None:
    await sidecar.stop()
    for number in range(60):
        await opencode.request("PATCH", f"/session/{session}", {"title": f"title {number}"})
    sidecar.slow_from = 40
    batches = len(sidecar.batches)
    await sidecar.start()
    try:
        await sidecar.until(lambda: len(opencode.history(session)) == _durable(sidecar.of(session)))
    finally:
        sidecar.slow_from = None
    assert 20 <= max(sidecar.batches[batches:]) < 40
    pushed = [event.id for event in sidecar.of(session) if event.type in DURABLE]
    assert pushed == [row["id"] for row in opencode.history(session)]


async def test_a_new_attachment_tells_of_the_turns_that_run(
    opencode: Opencode, sidecar: StandIn, steady_model: Model, session: str
) -> None:
    with steady_model.holding("long"):
        await opencode.prompt_async(session, "long")
        await sidecar.pushed_type(session, "session.status")
        sidecar.cut()
        assert session in (await sidecar.attached()).turns
    await sidecar.pushed_type(session, "session.idle")


async def test_where_nothing_is_shared_nothing_is_pushed(
    opencode: Opencode, sidecar: StandIn, session: str
) -> None:
    sidecar.workspace = ""
    sidecar.cut()
    await sidecar.attached()
    await opencode.prompt(session, "private", noReply=True)
    sidecar.workspace = "shared"
    sidecar.cut()
    await sidecar.attached()
    await opencode.request("PATCH", f"/session/{session}", {"title": "public"})
    await sidecar.pushed_type(session, "session.updated")
    assert not [event for event in sidecar.of(session) if event.type.startswith("message")]
    assert not sidecar.asked_of(session)


async def test_a_project_that_is_loaded_anew_is_shared_once(
    opencode: Opencode, sidecar: StandIn, session: str
) -> None:
    await opencode.request("POST", "/instance/dispose", {})
    other = await opencode.create_session()
    await opencode.prompt(other, "again")
    await sidecar.pushed_type(other, "session.idle")
    ids = [event.id for event in sidecar.of(other)]
    assert len(ids) == len(set(ids))
    await sidecar.until(lambda: sidecar.listeners == 1)


async def test_a_run_of_the_command_line_ends_and_is_pushed(
    opencode: Opencode, sidecar: StandIn
) -> None:
    before = len(sidecar.pushed)
    await opencode.run("run", "from the command line", seconds=20)
    pushed = [event.type for event in sidecar.pushed[before:]]
    assert "session.created" in pushed
    assert "message.part.updated" in pushed


async def test_without_the_bus_parts_still_move_and_are_not_pushed_back(
    folder: Path, binary: Path, steady_model: Model
) -> None:
    sidecar = StandIn(folder / "other.sock")
    await sidecar.start()
    opencode = Opencode(
        folder / "b",
        git_project(folder / "clone"),
        binary=binary,
        model_url=steady_model.url,
        environ={"SESSIOND_PLUGIN_LIVE": "off"},
    )
    _install(opencode, {"socket": str(sidecar.socket), "mode": "atomic", "share_key": "ours"})
    try:
        await opencode.start()
        attachment = await sidecar.attached()
        assert (attachment.live, attachment.mode) == (False, "atomic")
        assert (attachment.share, attachment.share_key) == (True, "ours")

        session = await opencode.create_session()
        elsewhere = Elsewhere(await opencode.session(session))
        views = await opencode.events()
        turn = elsewhere.turn("a", "b")
        first, second = [elsewhere.created(), *turn[:3]], turn[3:]
        assert (await sidecar.apply(elsewhere.id, first)).outcome == "applied"
        held = await sidecar.apply(elsewhere.id, second, announce=False)  # could not be shown then
        assert held.outcome == "applied"
        for text in ("a", "b"):
            await views.wait_for(
                lambda event, text=text: event.properties.get("part", {}).get("text") == text  # type: ignore[misc]
            )
        await opencode.request("PATCH", f"/session/{session}", {"title": "afterwards"})
        await sidecar.pushed_type(session, "session.updated")
        assert sidecar.of(elsewhere.id) == []
    finally:
        await opencode.stop()
        await sidecar.stop()


def _until(end: str, events: Sequence[SomeEvent]) -> Sequence[SomeEvent]:
    """Return events up to the one with an id."""
    return events[: [event.id for event in events].index(end) + 1]


def _durable(events: list[OpencodeEvent]) -> int:
    return len([event for event in events if event.type in DURABLE])


async def _seconds_to_model(opencode: Opencode, model: Model, session: str) -> float:
    """Return how long a prompt takes until the model is asked."""
    model.forget()
    begun = time.time()
    await opencode.prompt(session, "without")
    return model.turn_requests("without")[0].at - begun


def _install(opencode: Opencode, settings: dict[str, Any]) -> None:
    """Put the plugin where opencode finds it, with a file of settings beside it."""
    folder = opencode.configuration / "plugin"
    folder.mkdir()
    shutil.copy(PLUGIN, folder)
    (folder / "sessiond.json").write_text(json.dumps(settings), encoding="utf-8")

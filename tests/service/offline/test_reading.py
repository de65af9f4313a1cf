"""Reading without Redis answers what reading with it did, and what is journaled here beside."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessiond.errors import NotFound, SessionDeleted, SessiondError, StoreUnavailable
from sessiond.model import DOCUMENTS, Context, NewSession, Session, SessionPage, SessionSummary
from sessiond.replica import Replica
from sessiond.service.clock import moment
from sessiond.service.content.sessions import Filter
from sessiond.service.offline.reading import Found
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    Create,
    Delete,
    Edit,
    PutPart,
    Remove,
    RemovePart,
)
from sessiond.service.writing import Request
from sessiond.sync.position import START, Position
from tests.service.away import Machine, machine
from tests.service.support import create, said, text
from tests.store.support import Services, StartServices, roll_back, take_copy, until

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)

_ids = itertools.count(1)

names = st.sampled_from(["m0", "m1", "m2", "m3"])
parts = st.sampled_from(["p0", "p1"])
words = st.sampled_from(["a", "é", "b c", ""])
values = st.one_of(st.none(), st.integers(-3, 3), st.floats(0, 1), words, st.lists(words))
fields = st.dictionaries(st.sampled_from(["x", "y", "z"]), values, max_size=3)
documents = st.one_of(
    st.tuples(st.just("metadata"), st.fixed_dictionaries({"title": words})),
    st.tuples(
        st.just("context"), st.fixed_dictionaries({"state": fields, "active_files": st.just(["f"])})
    ),
    st.tuples(st.just("preferences"), fields),
)
steps = st.one_of(
    st.tuples(st.just("append"), names, words),
    st.tuples(st.just("append with parts"), names, words),
    st.tuples(st.just("edit"), names, words),
    st.tuples(st.just("remove"), names, words),
    st.tuples(st.just("put part"), names, parts),
    st.tuples(st.just("remove part"), names, parts),
    st.tuples(st.just("change"), documents, st.booleans()),
)


@pytest.fixture
async def here(core: Services, tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(core, tmp_path / "replica") as running:
        yield running


@pytest.fixture
async def idle(core: Services, tmp_path: Path) -> AsyncIterator[Machine]:
    """A machine that copies nothing."""
    replica = await Replica.open(tmp_path / "idle", limit_bytes=2**28, clock=core.clock)
    yield Machine(core, replica)
    await replica.close()


async def take(core: Services, session_id: str, step: Any) -> None:
    """Do one step of a history, as far as it can be done."""
    kind, one, two = step
    try:
        match kind:
            case "append":
                await core.messages.append(session_id, [said(two, one)])
            case "append with parts":
                new = said("", one, parts=[text(two, id="p0"), text("x", id="p9")])
                new.content = msgspec.UNSET
                await core.messages.append(session_id, [new, said("beside")])
            case "edit":
                await core.records.edit(session_id, one, {"content": two, "metadata": {"n": 1}})
            case "remove":
                await core.records.remove(session_id, one)
            case "put part":
                await core.records.put_part(session_id, one, two, text(f"part {two}"))
            case "remove part":
                await core.records.remove_part(session_id, one, two)
            case "change":
                name, patch = one
                await core.documents.change(
                    session_id, name, patch, replace=two and name != "metadata"
                )
    except SessiondError:
        pass
    core.clock.ms += 7


async def answers(here: Machine, session_id: str, positions: list[Position]) -> dict[str, Any]:
    """Everything that can be read of a session."""
    reading, found = here.reading, dict[str, Any]()

    async def note(name: str, pending: Any) -> None:
        try:
            answer: Found[Any] = await pending
            value = answer.value
            value = (
                msgspec.json.decode(value)
                if isinstance(value, bytes)
                else msgspec.to_builtins(value)
            )
        except (NotFound, StoreUnavailable):
            value = None
        found[name] = value

    await note("load", reading.load(session_id))
    await note("position", reading.position(session_id))
    for document in DOCUMENTS:
        await note(document, reading.document(session_id, document))
    for message in ("m0", "m1", "m2", "m3"):
        await note(message, reading.message(session_id, message))
    for after, limit in ((0, 500), (0, 2), (2, 2), (5, 3)):
        await note(f"page {after} {limit}", reading.page(session_id, after, limit))
    for position in positions:
        await note(f"operations {position}", reading.operations(session_id, position, 3))
    return found


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(steps, max_size=12), later=st.lists(steps, max_size=4))
async def test_offline_answers_are_the_online_answers_of_the_same_position(
    here: Machine, core: Services, history: list[Any], later: list[Any]
) -> None:
    session_id = await create(core, f"ses_{next(_ids)}", title="t", context=Context(state={"x": 1}))
    for step in history:
        await take(core, session_id, step)
    await here.copied(session_id)  # and the rest is added to what was copied
    for step in later:
        await take(core, session_id, step)
    await here.copied(session_id)
    entries = await core_entries(core, session_id)
    positions = [START, *(entry.position for entry in entries), Position("", 1)]
    online = await answers(here, session_id, positions)
    here.lose_redis()
    offline = await answers(here, session_id, positions)
    here.find_redis()
    assert offline == online


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(steps, max_size=10))
async def test_what_was_written_here_is_read_though_it_was_not_copied_yet(
    idle: Machine, core: Services, history: list[Any]
) -> None:
    session_id = await create(core, f"ses_{next(_ids)}", title="t", context=Context(state={"x": 1}))
    for step in history:
        await take(core, session_id, step)
    entries = await core_entries(core, session_id)
    positions = [START, *(entry.position for entry in entries), Position("", 1)]
    online = await answers(idle, session_id, positions)
    (summary, *_) = (await listed(idle)).value.sessions
    idle.lose_redis()
    assert await answers(idle, session_id, positions) == online
    assert (await listed(idle)).value.sessions[0] == summary
    idle.find_redis()
    core.clock.ms += 1_000
    assert idle.replica.copies == {}


async def test_own_writes_are_added_to_a_copy_as_far_as_nobody_elses_come_between(
    here: Machine, start: StartServices
) -> None:
    other = await start(instance="elsewhere")
    await create(here.core, "s")
    await here.core.messages.append("s", [said("copied", "m1")])
    await here.copied("s")
    await here.copier.close()
    await here.core.messages.append("s", [said("known here", "m2")])
    await other.messages.append("s", [said("theirs", "m3")])
    await here.core.messages.append("s", [said("behind theirs", "m4")])
    await create(here.core, "only-written")
    here.lose_redis()
    assert [each.id for each in (await loaded(here, "s")).conversation.messages] == ["m1", "m2"]
    counts = {each.metadata.session_id: each.total_messages for each in await summaries(here)}
    assert counts == {"s": 2, "only-written": 0}


async def test_what_was_written_to_a_history_that_redis_lost_is_not_added_to_the_new_one(
    here: Machine, core: Services
) -> None:
    await create(core, "s")
    before = await take_copy(core, "s")
    await core.messages.append("s", [said("lost", "m1")])
    await here.copied("s")
    await here.copier.close()
    await roll_back(core, "s", before)
    await core.committer.forgive("s")
    await core.messages.append("s", [said("other", "m2"), said("last", "m3")])
    here.lose_redis()
    assert [each.id for each in (await loaded(here, "s")).conversation.messages] == ["m1"]


async def test_what_happens_while_copies_are_compared_is_not_missed(
    here: Machine, start: StartServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, asked = await start(instance="elsewhere"), here.core.store.positions
    begun = written = False

    async def old_positions(workspace: str) -> dict[str, Position]:
        nonlocal begun, written
        positions = await asked(workspace)
        if "s" in positions and not begun:
            begun = True
            await other.messages.append("s", [said("meanwhile", "m1")])
            written = True
            await asyncio.sleep(0.05)  # so that it is heard
        return positions

    monkeypatch.setattr(here.core.store, "positions", old_positions)
    await create(here.core, "s")
    await until(lambda: written)  # as after every confirmation of a subscription
    await here.copied("s")


async def core_entries(core: Services, session_id: str) -> list[Any]:
    return [entry async for page in core.store.log.pages(session_id) for entry in page.entries]


async def test_only_what_was_seen_here_is_known(here: Machine, start: StartServices) -> None:
    other = await start(instance="elsewhere")
    await create(other, "theirs")
    await create(here.core, "ours")
    await here.copied("ours")
    online = (await listed(here)).value.sessions
    assert {each.metadata.session_id for each in online} == {"ours", "theirs"}
    here.lose_redis()
    with pytest.raises(StoreUnavailable, match="was not seen here before"):
        await here.reading.load("theirs")
    assert [each.metadata.session_id for each in (await listed(here)).value.sessions] == ["ours"]
    here.find_redis()
    await here.reading.load("theirs")
    await here.copied("theirs")
    await other.messages.append("theirs", [said("later", "m1")])
    await here.copied("theirs")
    here.lose_redis()
    assert (await loaded(here, "theirs")).conversation.messages[0].content == "later"


async def test_a_deleted_session_is_known_to_be_deleted(here: Machine) -> None:
    await create(here.core, "s")
    await here.copied("s")
    await here.core.sessions.delete("s")
    await until(lambda: here.replica.copies["s"].position.offset == 2 and not here.copier.behind)
    here.lose_redis()
    with pytest.raises(SessionDeleted):
        await here.reading.load("s")
    assert (await listed(here)).value.sessions == []


async def test_after_a_rollback_the_copy_is_read_anew(
    here: Machine, core: Services, start: StartServices
) -> None:
    other = await start(instance="elsewhere")
    await create(core, "s")
    before = await take_copy(core, "s")
    await core.messages.append("s", [said("lost", "m1"), said("lost too", "m2")])
    await here.copied("s")
    await roll_back(core, "s", before)
    await other.messages.append("s", [said("other", "m3")])
    await here.copied("s")
    here.lose_redis()
    assert [each.id for each in (await loaded(here, "s")).conversation.messages] == ["m3"]


async def test_pages_of_a_listing_follow_one_another_as_with_redis(
    here: Machine, core: Services
) -> None:
    for number in range(7):
        core.clock.ms += 1000 * (number % 3)
        await create(core, f"s{number}", user_id="u" if number % 2 else "v")
    await until(lambda: len(here.replica.copies) == 7 and not here.copier.behind)
    online = await pages(here)
    here.lose_redis()
    assert await pages(here) == online
    assert await pages(here, user_id="u") == [["s5", "s3"], ["s1"]]


async def test_what_is_journaled_here_is_shown_and_named_by_its_token(
    here: Machine, core: Services
) -> None:
    await create(core, "s", context=Context(state={"a": 1}, active_files=["x"]))
    await core.messages.append("s", [said("one", "m1"), said("two", "m2"), said("three", "m3")])
    await here.copied("s")
    end = (await core.store.end("s")).position
    here.lose_redis()
    journal, asked = here.outbox.journal, Request(at_ms=core.clock.ms + 60_000)
    about: dict[str, Any] = {"session_id": "s", "request": asked}
    appended = journal(Append(messages=[said("four", "m4"), said("taken", "m1")], **about))
    edited = journal(Edit(message_id="m1", patch={"content": "edited"}, **about))
    journal(Remove(message_id="m2", **about))
    journal(PutPart(message_id="m3", part_id="p", part={"type": "text", "text": "part"}, **about))
    journal(PutPart(message_id="m3", part_id="q", part={"type": "text", "text": "gone"}, **about))
    journal(RemovePart(message_id="m3", part_id="q", **about))
    journal(Edit(message_id="m2", patch={"content": "too late"}, **about))
    journal(Edit(message_id="nobody", patch={"content": "of none"}, **about))
    journal(ChangeDocument(name="context", patch={"state": {"b": 2}}, **about))
    changed = journal(ChangeDocument(name="context", patch={"state": {"a": None}}, **about))
    refused = journal(ChangeDocument(name="context", patch={"unknown": 1}, **about))
    titled = journal(ChangeDocument(name="metadata", patch={"title": "new"}, **about))
    found = await here.reading.load("s")
    assert found.waiting == 12
    session = msgspec.json.decode(found.value, type=Session)
    messages = {each.id: each.content for each in session.conversation.messages}
    assert messages == {"m1": "edited", "m3": "three\npart", "m4": "four"}
    assert session.conversation.total_messages == 3
    assert (session.context.state, session.context.active_files) == ({"b": 2}, ["x"])
    assert session.metadata.title == "new"
    assert session.position == str(end), "to follow on from, once Redis is back"
    assert (session.versions["context"], session.versions["metadata"]) == (changed, titled)
    assert changed < refused
    assert (await here.reading.message("s", "m1")).value.version == edited
    assert (await here.reading.message("s", "m4")).value.version == appended
    with pytest.raises(NotFound):
        await here.reading.message("s", "m2")
    (summary,) = (await listed(here)).value.sessions
    assert (summary.metadata, summary.total_messages) == (session.metadata, 4)


async def test_a_session_that_is_only_journaled_is_there_until_its_deletion_is_journaled(
    here: Machine, core: Services
) -> None:
    here.lose_redis()
    journal, asked = here.outbox.journal, Request(at_ms=core.clock.ms)
    about: dict[str, Any] = {"session_id": "new", "request": asked}
    version = journal(Create(new=NewSession(title="made offline"), **about))
    journal(Append(messages=[said("first", "m1")], **about))
    session = await loaded(here, "new")
    assert (session.metadata.title, session.metadata.workspace) == ("made offline", "default")
    assert session.metadata.created_at == moment(core.clock.ms)
    assert [each.content for each in session.conversation.messages] == ["first"]
    assert (session.position, session.versions["context"]) == (str(START), version)
    (summary,) = (await listed(here)).value.sessions
    assert (summary.metadata, summary.total_messages) == (session.metadata, 1)
    here.find_redis()
    assert (await loaded(here, "new")) == session, "Redis does not have it yet"
    journal(Delete(**about))
    with pytest.raises(SessionDeleted):
        await here.reading.load("new")


async def test_what_was_shown_while_redis_was_away_stays_when_it_is_back(
    here: Machine, core: Services
) -> None:
    await create(core, "s")
    await here.copied("s")
    here.lose_redis()
    said_offline = Append(session_id="s", messages=[said("offline", "m1")], request=Request())
    here.outbox.journal(said_offline)
    here.find_redis()
    found = await here.reading.load("s")
    session = msgspec.json.decode(found.value, type=Session)
    assert [each.content for each in session.conversation.messages] == ["offline"]
    assert (found.waiting, found.stale_seconds is None) == (1, False)
    here.outbox.writes.clear()
    found = await here.reading.load("s")
    assert (found.waiting, found.stale_seconds) == (0, None)


async def test_a_read_that_fails_is_answered_from_the_copy_and_the_failure_noted(
    here: Machine, core: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(core, "s")
    await here.copied("s")

    async def fail(*_arguments: Any) -> Any:
        raise StoreUnavailable("cut")

    monkeypatch.setattr(core.store, "snapshot", fail)
    found = await here.reading.load("s")
    assert found.stale_seconds is not None
    assert here.redis.is_away
    await here.redis.close()


async def test_age_is_that_of_the_last_moment_that_it_was_known_to_be_current(
    here: Machine, core: Services
) -> None:
    await create(core, "s")
    await here.copied("s")
    here.lose_redis()
    before = (await here.reading.load("s")).stale_seconds
    core.clock.ms += 12_000
    after = (await here.reading.load("s")).stale_seconds
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(12)


async def listed(here: Machine) -> Found[SessionPage]:
    return await here.reading.list_page(Filter(), None, 50)


async def summaries(here: Machine) -> list[SessionSummary]:
    return (await listed(here)).value.sessions


async def loaded(here: Machine, session_id: str) -> Session:
    return msgspec.json.decode((await here.reading.load(session_id)).value, type=Session)


async def pages(here: Machine, **wanted: str) -> list[list[str]]:
    """The ids of all pages of two."""
    found: list[list[str]] = []
    cursor = None
    while True:
        page = (await here.reading.list_page(Filter(**wanted), cursor, 2)).value
        if page.sessions:
            found.append([each.metadata.session_id for each in page.sessions])
        cursor = page.cursor
        if cursor is None:
            return found

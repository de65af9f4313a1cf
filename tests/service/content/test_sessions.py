"""Sessions: created once, loaded at one position, listed by activity, deleted for good."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from sessiond.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    SessionDeleted,
    StoreDamaged,
    StoreUnavailable,
    VersionMismatch,
)
from sessiond.model import Context, NewSession, OperationPage, Session
from sessiond.service.content.sessions import Filter
from sessiond.service.writing import Request
from sessiond.store import sessions as sessions_module
from sessiond.sync.position import START, Position, parse_position
from tests.service.support import create, load, said
from tests.store.support import Services, StartServices, until

NOW = datetime(2026, 1, 13, 10, 30, tzinfo=UTC)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activity reaches the indexes without the usual pause."""
    monkeypatch.setattr(sessions_module, "_INDEX_PAUSE_SECONDS", 0.0)


def decoded(created: bytes) -> Session:
    return msgspec.json.decode(created, type=Session)


async def ids(core: Services, limit: int = 50, **wanted: str) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = await core.sessions.list_page(Filter(**wanted), cursor, limit)
        assert len(page.sessions) <= limit
        found += [summary.metadata.session_id for summary in page.sessions]
        cursor = page.cursor
        if cursor is None:
            return found


async def test_a_new_session_has_what_its_creator_said_and_what_follows(core: Services) -> None:
    context = Context(working_directory="/w", active_files=["a"], state={"deep": [{}, None]})
    new = NewSession(
        session_id="ses_1",
        user_id="u1",
        title="é",
        workspace="w.1",
        user_agent="opencode/1",
        environment="test",
        context=context,
        preferences={"theme": "dark", "n": 2**70},
    )
    created = await core.sessions.create(new)
    session = decoded(created.json)
    assert (created.session_id, created.duplicate) == ("ses_1", False)
    assert msgspec.to_builtins(session.metadata) == {
        "session_id": "ses_1",
        "created_at": "2026-01-13T10:30:00Z",
        "last_activity": "2026-01-13T10:30:00Z",
        "status": "active",
        "user_id": "u1",
        "title": "é",
        "workspace": "w.1",
        "user_agent": "opencode/1",
        "environment": "test",
    }
    assert session.context == context
    assert session.preferences == {"theme": "dark", "n": 2**70}
    assert session.conversation.messages == []
    assert set(session.versions.values()) == {session.position}
    assert await load(core) == session


async def test_a_session_without_any_wishes_gets_the_defaults(core: Services) -> None:
    created = await core.sessions.create(NewSession())
    session = decoded(created.json)
    assert created.session_id.startswith("ses_")
    assert session.metadata.workspace == "default"
    assert session.metadata.environment == "development"
    assert session.metadata.title is msgspec.UNSET
    assert session.context == Context()
    assert session.preferences == {}


async def test_empty_texts_are_kept_as_they_were_given(core: Services) -> None:
    await create(core, title="", environment="", user_id="")
    metadata = (await load(core)).metadata
    assert (metadata.title, metadata.environment, metadata.user_id) == ("", "", "")


async def test_the_same_creation_again_returns_what_is_there(core: Services) -> None:
    new = NewSession(session_id="ses_1", preferences={"a": 1})
    await core.sessions.create(new)
    await core.messages.append("ses_1", [said("hi")])
    core.clock.ms += 5_000
    again = await core.sessions.create(new)
    assert again.duplicate
    assert decoded(again.json).conversation.total_messages == 1
    assert decoded(again.json).metadata.created_at == NOW


async def test_a_creation_is_found_again_by_its_key(core: Services) -> None:
    first = await core.sessions.create(NewSession(title="t"), Request(key="k1"))
    again = await core.sessions.create(NewSession(title="t"), Request(key="k1"))
    other = await core.sessions.create(NewSession(title="t"), Request(key="k2"))
    assert again.session_id == first.session_id
    assert again.duplicate
    assert not other.duplicate
    with pytest.raises(AlreadyExists):
        await core.sessions.create(NewSession(title="other"), Request(key="k1"))


async def test_many_creations_of_one_session_at_once_create_it_once(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    new = NewSession(session_id="ses_1", title="t")
    created = await asyncio.gather(*(c.sessions.create(new) for c in (core, there) * 5))
    assert sum(not one.duplicate for one in created) == 1
    assert len(await core.entries("ses_1")) == 1


@pytest.mark.parametrize(
    "other", [{"title": "x"}, {"workspace": "w"}, {"preferences": {"a": 1}}, {"user_id": "u"}]
)
async def test_an_id_taken_by_another_session_is_refused_and_changes_nothing(
    core: Services, other: dict[str, Any]
) -> None:
    await create(core)
    before = await load(core)
    with pytest.raises(AlreadyExists) as refused:
        await create(core, **other)
    assert refused.value.hint
    assert await load(core) == before
    assert await ids(core, workspace="w") == []


async def test_the_id_of_a_deleted_session_is_never_used_again(core: Services) -> None:
    await create(core)
    await core.sessions.delete("ses_1")
    with pytest.raises(SessionDeleted):
        await create(core)
    for question in (core.sessions.load, core.sessions.position, core.messages.page):
        with pytest.raises(SessionDeleted):
            await question("ses_1")
    assert await ids(core) == []


async def test_a_session_that_never_was_is_not_found(core: Services) -> None:
    for question in (core.sessions.load, core.sessions.position, core.sessions.delete):
        with pytest.raises(NotFound):
            await question("ses_1")
    with pytest.raises(NotFound):
        await core.sessions.send_live("ses_1", {})
    with pytest.raises(NotFound):
        await core.sessions.operations("ses_1", START)


async def test_a_deletion_may_expect_a_position(core: Services) -> None:
    await create(core)
    first = str(await core.sessions.position("ses_1"))
    await core.messages.append("ses_1", [said("hi")])
    with pytest.raises(VersionMismatch):
        await core.sessions.delete("ses_1", Request(expected=first))
    now = str(await core.sessions.position("ses_1"))
    await core.sessions.delete("ses_1", Request(expected=now))


async def test_a_load_is_of_one_position_however_much_is_written(core: Services) -> None:
    await create(core)
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            await core.messages.append("ses_1", [said("a", f"a{number}"), said("b", f"b{number}")])
            await core.documents.change("ses_1", "preferences", {"last": f"b{number}"})
            await core.records.edit("ses_1", f"a{number}", {"content": "A"})
            number += 1

    writing = asyncio.create_task(write())
    for _ in range(20):
        session = await load(core)
        messages = session.conversation.messages
        assert len(messages) == session.conversation.total_messages
        assert len(messages) % 2 == 0
        offset = parse_position(session.position).offset
        step = (offset - 1) % 4  # after: 0 the edit, 2 the appends, 3 the preferences
        assert step in (0, 2, 3)
        assert sum(message.content == "a" for message in messages) == (1 if step else 0)
        if step in (0, 3) and messages:
            assert session.preferences["last"] == messages[-1].id
        await asyncio.sleep(0)
    stop.set()
    await writing


async def test_the_position_of_a_load_is_where_events_continue(core: Services) -> None:
    await create(core)
    await core.messages.append("ses_1", [said("hi", "m1")])
    session = await load(core)
    await core.messages.append("ses_1", [said("ho", "m2")])
    entries = await core.entries("ses_1", parse_position(session.position))
    assert [entry.id for entry in entries] == ["m2"]


async def test_a_trimmed_log_is_no_conversation_to_load(core: Services) -> None:
    await create(core)
    await core.messages.append("ses_1", [said("hi", "m1"), said("ho", "m2")])
    await core.redis.execute_command("XTRIM", core.keys.conversation("ses_1"), "MINID", "3-0")
    with pytest.raises((StoreDamaged, StoreUnavailable)):
        await core.sessions.load("ses_1")
    with pytest.raises((StoreDamaged, StoreUnavailable)):
        await core.messages.page("ses_1")


async def test_operations_are_the_log_after_a_position(core: Services) -> None:
    await create(core)
    await core.messages.append("ses_1", [said("hi", "m1"), said("ho", "m2"), said("hu", "m3")])
    entries = await core.entries("ses_1")

    async def operations(after: Position, limit: int = 500) -> OperationPage:
        page = await core.sessions.operations("ses_1", after, limit)
        return msgspec.json.decode(page, type=OperationPage)

    page = await operations(entries[0].position, limit=2)
    assert [found.id for found in page.operations] == ["m1", "m2"]
    assert page.operations[0].body["content"] == "hi"
    assert (page.position, page.reset) == (str(entries[2].position), None)
    assert [found.id for found in (await operations(parse_position(page.position))).operations] == [
        "m3"
    ]
    end = await operations(entries[3].position)
    assert (end.operations, end.position, end.reset) == ([], str(entries[3].position), None)
    other = await operations(Position("00000000000001", 2))
    assert (other.operations, other.position, other.reset) == ([], str(START), "history-changed")


async def test_sessions_are_listed_the_most_recently_active_first(
    core: Services, soon: None
) -> None:
    for number in range(5):
        core.clock.ms += 1_000
        await create(core, f"ses_{number}")
    core.clock.ms += 1_000
    await core.messages.append("ses_2", [said("hi"), said("ho")])
    await until(lambda: not core.store._touched)
    await until(lambda: core.store._indexer is None or core.store._indexer.done())
    page = await core.sessions.list_page(Filter())
    assert [s.metadata.session_id for s in page.sessions] == [
        f"ses_{number}" for number in (2, 4, 3, 1, 0)
    ]
    assert page.sessions[0].total_messages == 2
    assert page.sessions[0].position == str(await core.sessions.position("ses_2"))
    assert page.sessions[0].metadata.last_activity == NOW + timedelta(seconds=6)


async def test_a_listing_can_be_narrowed(core: Services) -> None:
    kinds = [
        {"workspace": workspace, "environment": environment, "user_id": user}
        for workspace in ("w1", "w2")
        for environment in ("test", "production")
        for user in ("u1", "u2")
    ]
    for number, kind in enumerate(kinds):
        core.clock.ms += 1
        await create(core, f"ses_{number}", **kind)
    await core.documents.change("ses_0", "metadata", {"status": "archived"})

    def expected(**wanted: str) -> list[str]:
        numbers = [n for n, kind in enumerate(kinds) if wanted.items() <= kind.items()]
        return [f"ses_{number}" for number in reversed(numbers)]

    for limit in (1, 2, 3, 50):
        assert await ids(core, limit) == expected()
        assert await ids(core, limit, workspace="w2") == expected(workspace="w2")
        assert await ids(core, limit, user_id="u1") == expected(user_id="u1")
        narrow = {"workspace": "w1", "environment": "production", "user_id": "u2"}
        assert await ids(core, limit, **narrow) == expected(**narrow)
        assert await ids(core, limit, status="archived") == ["ses_0"]
        assert await ids(core, limit, status="active") == expected()[:-1]
        assert await ids(core, limit, workspace="none") == []


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
async def test_pages_of_a_listing_show_every_session_once_also_when_equally_recent(
    core: Services, limit: int
) -> None:
    for number in range(12):
        core.clock.ms += number % 4 == 0
        await create(core, f"ses_{number:02}")
    assert sorted(await ids(core, limit)) == [f"ses_{number:02}" for number in range(12)]


async def test_sessions_that_did_not_change_are_seen_once_while_others_come_and_go(
    core: Services,
) -> None:
    for number in range(10):
        core.clock.ms += number % 3 == 0
        await create(core, f"ses_{number}")
    seen: list[str] = []
    cursor, step = None, 0
    while True:
        page = await core.sessions.list_page(Filter(), cursor, 2)
        seen += [summary.metadata.session_id for summary in page.sessions]
        cursor = page.cursor
        if cursor is None:
            break
        step += 1
        core.clock.ms += 1_000
        await create(core, f"new_{step}")
        if step == 1:
            await core.sessions.delete(seen[0])
    assert [name for name in seen if name.startswith("ses_")] == sorted(
        (name for name in seen if name.startswith("ses_")), reverse=True
    )
    assert set(seen) == {f"ses_{number}" for number in range(10)}


@pytest.mark.parametrize("cursor", ["x", "", "1.", "1e3.ses_1"])
async def test_a_cursor_that_no_listing_gave_is_refused(core: Services, cursor: str) -> None:
    with pytest.raises(InvalidInput):
        await core.sessions.list_page(Filter(), cursor)


async def test_a_damaged_session_does_not_hide_the_others(core: Services) -> None:
    for name in ("ses_1", "ses_2", "ses_3"):
        await create(core, name)
    await core.redis.hset(core.keys.metadata("ses_2"), "created_at", "yesterday")
    assert sorted(await ids(core)) == ["ses_1", "ses_3"]
    with pytest.raises(StoreDamaged):
        await core.sessions.load("ses_2")

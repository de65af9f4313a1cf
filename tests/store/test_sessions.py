"""The store of sessions: snapshots, indexes, listings, announcements."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sessiond.errors import InvalidInput, NotFound, SessionDeleted
from sessiond.store import sessions as sessions_module
from sessiond.store.draft import Draft
from sessiond.store.outcome import Committed
from sessiond.store.sessions import ListPage, RecordVersion, SessionStore
from sessiond.sync.position import Position
from tests.store.support import (
    Services,
    StartServices,
    appending,
    changing,
    creating,
    deleting,
    editing,
    heard,
    putting_part,
    removing,
    removing_part,
    until,
)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activity reaches the indexes without the usual pause."""
    monkeypatch.setattr(sessions_module, "_INDEX_PAUSE_SECONDS", 0.0)


async def create(store: SessionStore, session_id: str, at: int, workspace: str = "w1") -> None:
    await store.announce_creation(session_id, workspace, at)
    await store.commit(session_id, [creating(session_id, workspace)], at)


async def listed(store: SessionStore, workspace: str | None = None) -> list[str]:
    page = await store.list_page(workspace, None, 100)
    return [entry.snapshot.metadata["session_id"] for entry in page.sessions if entry.snapshot]


async def test_a_snapshot_holds_the_documents_of_one_moment(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1", workspace="w1"))
    await core.commit("ses_1", changing("preferences", {"theme": '"dark"'}))
    done = await core.commit("ses_1", appending("m1"))
    snapshot = await core.store.snapshot("ses_1")
    assert snapshot.metadata["workspace"] == "w1"
    assert snapshot.context == {"state": b'{"a":[]}'}
    assert snapshot.preferences == {"theme": b'"dark"'}
    assert snapshot.position == done.positions[0]
    assert (snapshot.total_messages, snapshot.amendments) == (1, 0)


@pytest.mark.parametrize("question", ["snapshot", "end", "workspace_of"])
async def test_a_session_that_is_not_there_is_told_from_one_that_was_deleted(
    core: Services, question: str
) -> None:
    ask = getattr(core.store, question)
    with pytest.raises(NotFound, match="'ses_1'"):
        await ask("ses_1")
    await core.commit("ses_1", creating("ses_1"))
    await ask("ses_1")
    await core.commit("ses_1", deleting("ses_1"))
    with pytest.raises(SessionDeleted, match="'ses_1'"):
        await ask("ses_1")


async def test_records_know_where_they_were_first_and_last_written(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1"), appending("m2"), appending("m3"))
    await core.commit("ses_1", editing("m2"))
    await core.commit("ses_1", removing("m3"))
    assert await core.store.message_versions("ses_1", ["m1", "m2", "m3", "m4"]) == [
        RecordVersion(2, 2),
        RecordVersion(3, 5),
        RecordVersion(4, 6, removed=True),
        None,
    ]


async def test_parts_are_listed_oldest_first_whatever_their_number(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1"), appending("m10"))
    names = [f"p{number * 7919 % 601}" for number in range(601)]
    for first in range(0, 601, 100):
        group = [putting_part(f"m1/{name}") for name in names[first : first + 100]]
        await core.commit("ses_1", *group, putting_part(f"m10/{names[first]}"))
    await core.commit("ses_1", removing_part(f"m1/{names[5]}"))
    versions = await core.store.part_versions("ses_1", "m1")
    assert list(versions) == names
    assert [name for name in names if versions[name].removed] == [names[5]]
    assert len(await core.store.part_versions("ses_1", "m10")) == 7


async def test_a_new_session_is_listed_at_once_and_before_it_exists(core: Services) -> None:
    store = core.store
    await store.announce_creation("ses_1", "w1", 1_000)
    page = await store.list_page(None, None, 10)
    assert [entry.snapshot for entry in page.sessions] == [None]
    await store.commit("ses_1", [creating("ses_1", "w1")], 1_000)
    assert await listed(store) == await listed(store, "w1") == ["ses_1"]
    assert await listed(store, "w2") == []


async def test_the_most_recently_active_come_first(core: Services, soon: None) -> None:
    store = core.store
    for number in range(3):
        await create(store, f"ses_{number}", 1_000 + number)
    assert await listed(store) == ["ses_2", "ses_1", "ses_0"]
    await store.commit("ses_0", [appending("m1")], 2_000)
    await until(lambda: store._touched == {})
    await _index_written(store)
    assert await listed(store) == await listed(store, "w1") == ["ses_0", "ses_2", "ses_1"]


async def test_a_late_note_of_activity_never_makes_a_session_look_older(
    core: Services, soon: None
) -> None:
    store = core.store
    await create(store, "ses_old", 5_000)
    await create(store, "ses_new", 6_000)
    await store.commit("ses_new", [appending("m1")], 1_000)
    await _index_written(store)
    assert await listed(store) == ["ses_new", "ses_old"]


async def test_a_deleted_session_leaves_the_indexes(core: Services) -> None:
    store = core.store
    await create(store, "ses_1", 1_000)
    await create(store, "ses_2", 1_001)
    await store.commit("ses_1", [deleting("ses_1")], 1_002)
    assert await listed(store) == await listed(store, "w1") == ["ses_2"]
    assert await store.count() == 1


async def test_activity_that_was_not_yet_noted_is_noted_on_closing(
    start: StartServices,
) -> None:
    here, there = await start(), await start()
    for number in range(3):
        await create(here.store, f"ses_{number}", 1_000 + number)
    await here.store.commit("ses_0", [appending("m1")], 2_000)
    await here.store.close()
    assert await listed(there.store) == ["ses_0", "ses_2", "ses_1"]


async def test_activity_that_was_just_being_noted_is_noted_on_closing(
    start: StartServices, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = await start(), await start()
    for number in range(3):
        await create(here.store, f"ses_{number}", 1_000 + number)
    await _index_written(here.store)
    under_way, go_on, index = asyncio.Event(), asyncio.Event(), here.store._index

    async def slowly(*arguments: Any, **more: Any) -> None:
        under_way.set()
        await go_on.wait()
        await index(*arguments, **more)

    monkeypatch.setattr(here.store, "_index", slowly)
    await here.store.commit("ses_0", [appending("m1")], 2_000)
    await until(under_way.is_set)
    closing = asyncio.create_task(here.store.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert await listed(there.store) == ["ses_0", "ses_2", "ses_1"]


async def test_closing_succeeds_when_activity_cannot_be_noted(core: Services) -> None:
    await create(core.store, "ses_0", 1_000)
    await core.redis.delete(core.keys.sessions)
    await core.redis.set(core.keys.sessions, "a string in the way")
    await core.store.commit("ses_0", [appending("m1")], 2_000)
    try:
        await core.store.close()
    finally:
        await core.redis.delete(core.keys.sessions)


async def test_activity_that_could_not_be_noted_is_noted_later(core: Services, soon: None) -> None:
    store = core.store
    await create(store, "ses_0", 1_000)
    await create(store, "ses_1", 1_001)
    await core.redis.set(f"{core.keys.namespace}:aside", "x")
    await core.redis.rename(core.keys.sessions, f"{core.keys.namespace}:aside")
    await core.redis.set(core.keys.sessions, "a string in the way")
    await store.commit("ses_0", [appending("m1")], 2_000)
    for _ in range(20):
        await core.redis.ping()
    await core.redis.rename(f"{core.keys.namespace}:aside", core.keys.sessions)
    await _index_written(store)
    assert await listed(store) == ["ses_0", "ses_1"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_show_every_session_once_also_when_many_are_equally_recent(
    core: Services, limit: int
) -> None:
    scores = [5_000] * 9 + [4_000] * 3 + [4_500, 6_000]
    for number, score in enumerate(scores):
        await create(core.store, f"ses_{number:02}", score)
    pages = await _all_pages(core.store, limit)
    assert all(len(page.sessions) <= limit for page in pages)
    shown = [entry.snapshot for page in pages for entry in page.sessions]
    found = [snapshot.metadata["session_id"] for snapshot in shown if snapshot]
    expected = sorted(range(14), key=lambda number: (scores[number], number), reverse=True)
    assert found == [f"ses_{number:02}" for number in expected]


async def test_a_session_that_did_not_change_is_seen_once_whatever_happens_between_pages(
    core: Services,
) -> None:
    store = core.store
    for number in range(12):
        await create(store, f"ses_{number:02}", 5_000 + number // 4)
    seen: list[str] = []
    cursor = None
    for step in range(20):
        page = await store.list_page(None, cursor, 3)
        seen += [e.snapshot.metadata["session_id"] for e in page.sessions if e.snapshot]
        if page.last:
            break
        cursor = page.sessions[-1].cursor
        await create(store, f"ses_new{step}", 9_000 + step)
        if step == 0:
            await store.commit("ses_11", [deleting("ses_11")], 9_000)
            await store.announce_creation("ses_10", "w1", 9_500)
    assert seen == [f"ses_{number:02}" for number in reversed(range(12))]


@pytest.mark.parametrize(
    "cursor",
    ["", ".", "1", "1.", ".ses_1", "-1.ses_1", "1e3.ses_1", "+inf.x", "٣.ses_1", "1" * 16 + ".x"],
)
async def test_what_is_no_cursor_is_refused(core: Services, cursor: str) -> None:
    with pytest.raises(InvalidInput):
        await core.store.list_page(None, cursor, 10)


async def test_positions_of_a_workspace_are_those_of_its_living_sessions(core: Services) -> None:
    store = core.store
    for name, workspace in (("ses_1", "w1"), ("ses_2", "w1"), ("ses_3", "w2"), ("ses_4", "w1")):
        await create(store, name, 1_000, workspace)
    await store.announce_creation("ses_5", "w1", 1_000)
    await core.commit("ses_4", deleting("ses_4"))
    done = await store.commit("ses_1", [appending("m1")], 1_000)
    ends = {name: (await store.end(name)).position for name in ("ses_1", "ses_2")}
    assert await store.positions("w1") == ends
    assert ends["ses_1"] == done.positions[0]
    assert await store.positions("nothing") == {}


async def test_a_commit_is_announced_once_to_the_session_and_to_its_workspace(
    core: Services,
) -> None:
    await core.commit("ses_1", creating("ses_1", workspace="w1"))
    channels = core.keys.events("ses_1"), core.keys.workspace_events("w1")
    async with heard(core, channels[0]) as session, heard(core, channels[1]) as workspace:
        done = await core.commit("ses_1", appending("m1"), appending("m2"))
        deleted = await core.commit("ses_1", deleting("ses_1"))
        await until(lambda: len(session) == len(workspace) == 2)
    assert session == workspace
    assert [_decoded(message) for message in session] == [
        {
            "session_id": "ses_1",
            "position": str(done.positions[-1]),
            "operations": 2,
            "last": "message.append m2",
        },
        {
            "session_id": "ses_1",
            "position": str(deleted.positions[0]),
            "operations": 1,
            "last": "session.delete ses_1",
        },
    ]


async def test_what_was_refused_or_written_before_is_not_announced(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1"))
    async with heard(core, core.keys.events("ses_1")) as messages:
        for draft in (appending("m1"), editing("m9"), creating("ses_1")):
            with pytest.raises(Exception, match=r"m9|^\d"):
                await core.commit("ses_1", draft)
        await core.commit("ses_1", appending("m2"))
        await until(lambda: messages != [])
    assert [_decoded(message)["last"] for message in messages] == ["message.append m2"]


async def test_every_announcement_is_json_whatever_the_ids(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1"))
    async with heard(core, core.keys.events("ses_1")) as messages:
        for name in ('m1/a"b', "m1/a\\b", "m1/a\nb", "m1/é", "m1/%s"):
            await core.commit("ses_1", putting_part(name))
        await until(lambda: len(messages) == 5)
    assert [_decoded(message)["operations"] for message in messages] == [1] * 5


async def test_what_is_published_reaches_both_channels_and_is_not_stored(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1", workspace="w1"))
    channels = core.keys.events("ses_1"), core.keys.workspace_events("w1")
    async with heard(core, channels[0]) as session, heard(core, channels[1]) as workspace:
        await core.store.publish("ses_1", "w1", b"\x00live")
        await until(lambda: session == workspace == [b"\x00live"])
    assert len(await core.entries("ses_1")) == 1


async def test_daemons_are_alive_while_they_are_heard_of(core: Services) -> None:
    store = core.store
    await store.beat("one", 10_000, 500)
    await store.beat("two", 10_400, 500)
    assert await store.instances() == {"one": 10_000, "two": 10_400}
    await store.beat("two", 10_600, 500)
    assert await store.instances() == {"two": 10_600}
    await store.leave("two")
    assert await store.instances() == {}


async def test_every_write_is_told_to_who_watches_commits(core: Services) -> None:
    told: list[tuple[str, list[Draft], Committed]] = []
    core.store.on_commit.append(lambda *about: told.append(about))
    group = [creating("ses_1")]
    done = await core.store.commit("ses_1", group, 1_000)
    with pytest.raises(NotFound):
        await core.store.commit("ses_1", [editing("m1")], 1_000)
    assert told == [("ses_1", group, done)]
    assert done.positions[0] == (await core.store.end("ses_1")).position
    assert isinstance(done.positions[0], Position)


async def _index_written(store: SessionStore) -> None:
    await until(lambda: store._indexer is None or store._indexer.done())


async def _all_pages(store: SessionStore, limit: int) -> list[ListPage]:
    pages = [await store.list_page(None, None, limit)]
    while not pages[-1].last:
        assert len(pages) < 100
        cursor = pages[-1].sessions[-1].cursor
        pages.append(await store.list_page(None, cursor, limit))
    return pages


def _decoded(message: bytes | None) -> Any:
    assert message is not None
    return msgspec.json.decode(message)

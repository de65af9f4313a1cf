"""Presence as programs see it: who is at a session, and events when that changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sessiond.errors import NotFound, SessionDeleted, StoreUnavailable
from sessiond.model import Presence, SessionPresence
from sessiond.service.content.presence import Presences
from sessiond.service.live.feed import Event
from sessiond.store.leases import LeaseStore
from sessiond.store.presence import PresenceState, PresenceStore
from tests.service.support import body, create, live_from_now, watching_workspace
from tests.store.support import Services
from tests.store.travel import later

LIFE_MS = 20_000


def presences(core: Services, machine: str = "laptop") -> Presences:
    store = PresenceStore(core.redis, core.keys, LIFE_MS)
    return Presences(store, core.store, machine=machine)


@pytest.fixture
async def here(core: Services) -> Presences:
    """Presence, and a session `ses_1` to be at."""
    await create(core)
    return presences(core)


@pytest.fixture
async def there(core: Services) -> Presences:
    return presences(core, "desktop")


def names(found: SessionPresence) -> list[str]:
    return [who.instance for who in found.present]


def told(event: Event) -> tuple[str, str]:
    change: dict[str, Any] = body(event)["body"]["presence"]
    return change["change"], change["who"]["instance"]


async def test_who_announces_itself_sees_who_is_there_and_what_both_have_open(
    here: Presences, there: Presences
) -> None:
    await here.announce("ses_1", "ann", ["a.py", "b.py"], client="editor")
    found = await there.announce("ses_1", "bob", ["b.py"])
    assert found == await here.present("ses_1")
    assert found.session_id == "ses_1"
    assert [(who.instance, who.machine, who.client) for who in found.present] == [
        ("ann", "laptop", "editor"),
        ("bob", "desktop", ""),
    ]
    assert found.shared_files == {"b.py": ["ann", "bob"]}
    assert found.valid_seconds == here.valid_seconds == LIFE_MS / 1000


async def test_who_holds_the_turn_is_said_to(core: Services, here: Presences) -> None:
    await here.announce("ses_1", "ann")
    await LeaseStore(core.redis, core.keys, 60_000).ask("acquire", "ses_1", "ann", "laptop")
    assert [who.has_turn for who in (await here.present("ses_1")).present] == [True]


async def test_who_crashed_is_there_until_the_end_of_its_time_and_not_longer(
    core: Services, here: Presences, there: Presences
) -> None:
    await here.announce("ses_1", "ann")
    await later(core, LIFE_MS - 5_000, "ses_1")
    assert names(await there.present("ses_1")) == ["ann"]
    await later(core, 5_000, "ses_1")
    assert names(await there.present("ses_1")) == []


async def test_changes_are_told_to_who_listens_and_repetitions_are_not(
    core: Services, here: Presences, there: Presences
) -> None:
    async with live_from_now(core) as subscriber, watching_workspace(core) as workspace:
        await here.announce("ses_1", "ann", ["a.py"])
        for _ in range(3):
            await here.announce("ses_1", "ann", ["a.py"])
        await there.announce("ses_1", "bob")
        await here.announce("ses_1", "ann", ["b.py"])
        await there.leave("ses_1", "bob")
        await there.leave("ses_1", "bob")
        await here.leave("ses_1", "ann")
        await core.sessions.send_live("ses_1", "end")
        *events, _ = await subscriber.told(6)
        await workspace.told(7)
    assert {event.name for event in events} == {"live"}
    assert [told(event) for event in events] == [
        ("came", "ann"),
        ("came", "bob"),
        ("changed", "ann"),
        ("left", "bob"),
        ("left", "ann"),
    ]
    live = body(events[2])
    assert (live["session_id"], live["origin"]) == ("ses_1", core.store.writer)
    assert live["body"]["presence"]["who"]["active_files"] == ["b.py"]
    assert live["body"]["presence"]["who"]["machine"] == "laptop"
    assert [event.data for event in workspace.events[1:-1]] == [event.data for event in events]


@pytest.mark.parametrize("asking", ["announce", "leave", "present", "everywhere", "sweep"])
async def test_one_who_crashed_is_told_of_once_by_whoever_notices(
    core: Services, here: Presences, there: Presences, asking: str
) -> None:
    await here.announce("ses_1", "ann", ["a.py"])
    await later(core, LIFE_MS, "ses_1")
    async with live_from_now(core) as subscriber:
        for each in (there, here):
            match asking:
                case "announce":
                    await each.announce("ses_1", "bob")
                case "leave":
                    await each.leave("ses_1", "bob")
                case "present":
                    await each.present("ses_1")
                case "everywhere":
                    assert await each.everywhere(10) == []
                case "sweep":
                    await each.sweep()
        await core.sessions.send_live("ses_1", "end")
        await subscriber.until(
            lambda: "end" in [body(event)["body"] for event in subscriber.events]
        )
    *events, _ = subscriber.events
    assert told(events[0]) == ("lost", "ann")
    assert body(events[0])["body"]["presence"]["who"]["active_files"] == ["a.py"]
    assert "lost" not in [told(event)[0] for event in events[1:]]


async def test_sweeping_leaves_who_is_there_and_forgets_where_nobody_is(
    core: Services, here: Presences
) -> None:
    await create(core, "ses_2")
    await here.announce("ses_1", "ann")
    await here.announce("ses_2", "ann")
    await later(core, LIFE_MS, "ses_2")
    await here.sweep()
    await here.sweep()
    assert await core.redis.zrange(core.keys.present, 0, -1) == [b"ses_1"]
    assert names(await here.present("ses_1")) == ["ann"]


async def test_sessions_where_somebody_is_are_found_and_no_others(
    core: Services, here: Presences
) -> None:
    for name in ("ses_2", "ses_3", "ses_4", "ses_5"):
        await create(core, name)
        await here.announce(name, "ann")
    await here.leave("ses_3", "ann")
    await core.sessions.delete("ses_4")
    await core.redis.set(core.keys.presence("ses_5"), "none of ours")
    found = await here.everywhere(10)
    assert [each.session_id for each in found] == ["ses_2"]
    assert found[0] == await here.present("ses_2")


async def test_of_many_sessions_a_few_are_asked_for_at_once(
    core: Services, here: Presences, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    names = [f"ses_{number}" for number in range(20)]

    async def look(session_id: str) -> PresenceState:
        asked.append(asked[-1] + 1 if asked else 1)
        await asyncio.sleep(0)
        asked.append(asked[-1] - 1)
        who = Presence(
            instance=session_id,
            machine="m",
            client="",
            active_files=[],
            since_ms=0,
            seen_ms=0,
            until_ms=0,
            has_turn=False,
        )
        return PresenceState("default", [who], [])

    async def sessions(limit: int) -> list[str]:
        return names[:limit]

    monkeypatch.setattr(here._store, "look", look)
    monkeypatch.setattr(here._store, "sessions", sessions)
    assert [each.session_id for each in await here.everywhere(20)] == names
    assert 1 < max(asked) <= 8


async def test_sessions_that_are_not_there_have_nobody(core: Services, here: Presences) -> None:
    await create(core, "ses_gone")
    await core.sessions.delete("ses_gone")
    for session_id, refused in (("ses_none", NotFound), ("ses_gone", SessionDeleted)):
        with pytest.raises(refused):
            await here.announce(session_id, "ann")
        with pytest.raises(refused):
            await here.leave(session_id, "ann")
        with pytest.raises(refused):
            await here.present(session_id)


async def test_what_cannot_be_told_was_announced_all_the_same(
    core: Services, here: Presences, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(core.store, "publish", away)
    assert names(await here.announce("ses_1", "ann")) == ["ann"]

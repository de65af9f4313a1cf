"""What arrives is taken in the log's order, never into a running turn, and never twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from sessiond.opencode.mapping import FIELD, replayed_id
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.service.live.feed import LIVE, Event, operation_event
from sessiond.service.opencode.lane import Lane
from sessiond.sync.position import START, Position
from tests.opencode.simulated import NOW
from tests.service.opencode.support import SESSION, Site, local_texts, texts
from tests.service.support import said
from tests.store.support import Services, roll_back, take_copy, until

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)


@pytest.fixture
def site(core: Services) -> Iterator[Site]:
    site = Site(core)
    yield site
    site.close()


@pytest.fixture
def there(core: Services) -> Iterator[Site]:
    """The machine from which things come."""
    site = Site(core, "oc-there", "/there")
    site.opencode.create(SESSION)
    yield site
    site.close()


async def both(site: Site, there: Site) -> None:
    """Let both machines have the session."""
    await there.outbox.flush(SESSION)
    await site.catch_up()


async def tell(site: Site, first: int = 0, last: int | None = None) -> None:
    """Let a lane hear what the log has, from one offset on, up to another."""
    for entry in await site.core.entries(SESSION):
        if first < entry.offset <= (last or entry.offset):
            site.lane.hear(operation_event(SESSION, entry))
    await settled(site)


async def settled(site: Site) -> None:
    """Return when nothing is left to do."""
    await until(lambda: site.lane._worker is None or site.lane._worker.done())


def live(body: Any, origin: str = "oc-there@d") -> Event:
    return Event(LIVE, msgspec.json.encode({"session_id": SESSION, "origin": origin, "body": body}))


def typing(text: str) -> dict[str, Any]:
    properties = {"sessionID": SESSION, "delta": text}
    return {FIELD: [{"type": "message.part.delta", "properties": properties}]}


def brought(site: Site) -> list[str]:
    """The types of what a machine was brought, in its order."""
    return [event.type for batch in site.batches for event in batch]


async def test_what_is_heard_is_taken_in_the_order_of_the_log(site: Site, there: Site) -> None:
    there.opencode.message(SESSION, "m1", text="in ${WORKTREE} /there/a")
    there.opencode.part(SESSION, "m1", "p1", "one")
    there.opencode.part(SESSION, "m1", "p1", "two")
    there.opencode.message(SESSION, "m2", text="b")
    there.opencode.remove_message(SESSION, "m2")
    await there.outbox.flush(SESSION)
    await tell(site)
    assert local_texts(site) == await texts(site.core)
    assert site.opencode.records(SESSION)["m1"]["text"] == "in ${WORKTREE} /here/a"
    end = await site.core.store.end(SESSION)
    assert site.position == site.lane.position == end.position
    assert site.refused == []


async def test_a_session_appears_with_the_folders_of_this_machine(site: Site, there: Site) -> None:
    await both(site, there)
    info = site.opencode.database.info(SESSION)
    assert info == there.opencode.info(SESSION) | {"directory": "/here"}


async def test_own_operations_are_passed_over(site: Site) -> None:
    site.opencode.create(SESSION)
    site.opencode.message(SESSION, "m1", text="mine")
    await site.outbox.flush(SESSION)
    await tell(site)
    assert site.batches == []
    assert site.position == (await site.core.store.end(SESSION)).position


async def test_what_was_heard_twice_is_taken_once(site: Site, there: Site) -> None:
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    for _ in range(3):
        await tell(site)
    assert len(brought(site)) == 2


async def test_where_something_was_missed_the_log_is_read(site: Site, there: Site) -> None:
    await both(site, there)
    for number in range(5):
        there.opencode.message(SESSION, f"m{number}", text="a")
    await there.outbox.flush(SESSION)
    await tell(site, first=4)
    assert len(site.opencode.records(SESSION)) == 5
    assert site.reconciled == 0


async def test_a_new_lane_goes_on_from_its_position(site: Site, there: Site) -> None:
    await both(site, there)
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    site.batches.clear()
    site.restart()
    await site.catch_up()
    assert brought(site) == ["message.updated"]


async def test_another_history_is_reconciled(core: Services, site: Site, there: Site) -> None:
    await both(site, there)
    copy = await take_copy(core, SESSION)
    there.opencode.message(SESSION, "m1", text="lost")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    await roll_back(core, SESSION, copy)
    there.opencode.message(SESSION, "m2", text="later")
    there.restart()
    there.position = START
    await there.outbox.flush(SESSION)
    await site.catch_up()
    assert site.reconciled >= 1
    assert local_texts(site) == await texts(core)
    assert sorted(local_texts(site)) == ["m1", "m2"]


async def test_what_only_this_machine_still_has_goes_back_into_a_history_that_lost_it(
    core: Services, site: Site, there: Site
) -> None:
    await both(site, there)
    copy = await take_copy(core, SESSION)
    there.opencode.message(SESSION, "m1", text="lost by redis")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    await roll_back(core, SESSION, copy)  # and its author is off for ever
    await site.catch_up()
    await site.lane.ask("reconcile")
    assert await texts(core) == {"m1": "lost by redis"}


# Turns


@pytest.mark.parametrize("who", ["the sidecar knows of", "only the plugin knows of"])
async def test_during_a_turn_nothing_is_written_and_afterwards_all_of_it_once(
    site: Site, there: Site, who: str
) -> None:
    await both(site, there)
    position, batches = site.position, len(site.batches)
    site.busy, site.holding = who == "the sidecar knows of", who != "the sidecar knows of"
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    there.opencode.message(SESSION, "m2", text="b")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    assert local_texts(site) == {}
    assert site.position == position
    assert site.lane.waiting == 2
    assert [e.properties["info"]["id"] for e in site.shown[-2:]] == ["m1", "m2"]
    await site.lane.ask("release")  # it is not over yet
    assert local_texts(site) == {}
    site.busy = site.holding = False
    shown = len(site.shown)
    await site.lane.ask("release")
    await site.lane.ask("release")
    assert local_texts(site) == await texts(site.core)
    assert len(brought(site)) - batches >= 2
    assert len(site.shown) == shown  # they were told when it came
    assert len({event.id for batch in site.batches for event in batch}) == len(brought(site))
    assert site.position == (await site.core.store.end(SESSION)).position


async def test_what_comes_after_something_held_does_not_overtake_it(
    site: Site, there: Site
) -> None:
    await both(site, there)
    site.holding = True
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    site.holding = False
    there.opencode.message(SESSION, "m1", text="b")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    await site.lane.ask("release")
    assert local_texts(site) == {"m1": "b"}


async def test_a_restart_during_a_turn_loses_nothing(site: Site, there: Site) -> None:
    await both(site, there)
    site.busy = True
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    site.restart()
    site.busy = False
    await site.catch_up()
    assert local_texts(site) == {"m1": "a"}


async def test_more_than_one_batch_is_held_and_applied_whole(site: Site, there: Site) -> None:
    await both(site, there)
    site.busy = True
    for number in range(130):
        there.opencode.message(SESSION, f"m{number}", text="a")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    site.busy = False
    site.failures = 2
    await site.lane.ask("release")
    assert len(site.opencode.records(SESSION)) == 130
    assert len(brought(site)) == 131


# Live events


async def test_live_events_keep_their_place_between_operations(site: Site, there: Site) -> None:
    await both(site, there)
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    there.opencode.part(SESSION, "m1", "p1", "")
    await there.outbox.flush(SESSION)
    first, second = (await site.core.entries(SESSION))[-2:]
    site.shown.clear()
    for event in (
        operation_event(SESSION, first),
        live(typing("1")),
        live(typing("2")),
        operation_event(SESSION, second),
        live(typing("3 in ${WORKTREE}")),
    ):
        site.lane.hear(event)
    await settled(site)
    assert [event.properties.get("delta") or event.type for event in site.shown] == [
        *("message.updated", "1", "2", "message.part.updated", "3 in /here")
    ]


async def test_live_events_are_shown_during_a_turn_and_own_ones_never(site: Site) -> None:
    site.busy = True
    site.lane.hear(live(typing("theirs")))
    site.lane.hear(live(typing("mine"), origin="oc-here@d"))
    await settled(site)
    assert [event.properties["delta"] for event in site.shown] == ["theirs"]


@pytest.mark.parametrize(
    "body",
    [
        *(None, "typing", 5, [], [1], {}, {"turn": "ended"}, {FIELD: None}, {FIELD: {}}),
        *({FIELD: [1]}, {FIELD: [{}]}, {FIELD: [{"type": "x"}]}, {FIELD: [{"properties": {}}]}),
    ],
)
async def test_live_words_of_other_programs_pass_by(site: Site, there: Site, body: Any) -> None:
    await both(site, there)
    site.lane.hear(live(body))
    site.lane.hear(live(typing("after")))
    await settled(site)
    assert [event.properties["delta"] for event in site.shown[-1:]] == ["after"]


# Operations of other programs


@pytest.mark.parametrize(
    "patch",
    [{"title": "given through the API"}, {"environment": "staging"}],
    ids=str,
)
async def test_a_title_given_through_the_api_is_the_sessions_title_here(
    site: Site, there: Site, patch: dict[str, Any]
) -> None:
    await both(site, there)
    await site.core.documents.change(SESSION, "metadata", patch)
    await site.catch_up()
    info = site.opencode.database.info(SESSION)
    assert info is not None
    assert info["title"] == patch.get("title", "A title")


async def test_messages_of_other_programs_stay_out_and_hold_nothing_up(
    site: Site, there: Site
) -> None:
    await both(site, there)
    new = [said("hi", "x1"), said("hi", "x2", metadata={FIELD: "odd"})]
    await site.core.messages.append(SESSION, new)
    await site.core.records.put_part(SESSION, "x1", "p1", {"type": "text", "text": "a"})
    there.opencode.message(SESSION, "m1", text="after")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    assert local_texts(site) == {"m1": "after"}


async def test_a_deleted_session_goes_here_too(site: Site, there: Site) -> None:
    await both(site, there)
    await there.outbox.deleted(SESSION)
    entry = (await site.core.entries(SESSION))[-1]
    site.lane.hear(operation_event(SESSION, entry))
    await settled(site)
    assert site.opencode.database.state(SESSION) is None
    (deleted,) = [e for batch in site.batches for e in batch if e.type == "session.deleted"]
    assert deleted.properties["info"]["id"] == SESSION


async def test_a_deletion_during_a_turn_is_the_last_that_comes_of_a_session(
    site: Site, there: Site
) -> None:
    await both(site, there)
    site.busy = True
    there.opencode.update(SESSION, title="theirs")
    await there.outbox.flush(SESSION)
    site.opencode.update(SESSION, title="ours")
    await site.outbox.flush(SESSION)
    await site.lane.ask("catch-up")  # theirs is held back, ours is to be told once more
    await there.outbox.deleted(SESSION)
    entry = (await site.core.entries(SESSION))[-1]
    site.lane.hear(operation_event(SESSION, entry))
    await settled(site)
    site.busy = False
    await site.lane.ask("release")
    assert site.opencode.database.state(SESSION) is None


# Both sides at once


async def collide(site: Site, there: Site, write: str = "message") -> None:
    """Both write one record: it is ours that the log has last, and theirs that is here last."""
    await both(site, there)
    match write:
        case "message":
            there.opencode.message(SESSION, "m1", text="theirs")
            site.opencode.message(SESSION, "m1", text="ours")
        case "part":
            for one in (site, there):
                one.opencode.message(SESSION, "m1", text="both")
            there.opencode.part(SESSION, "m1", "p1", "theirs")
            site.opencode.part(SESSION, "m1", "p1", "ours")
        case "session":
            there.opencode.update(SESSION, title="theirs")
            site.opencode.update(SESSION, title="ours")
    await there.outbox.flush(SESSION)


async def in_agreement(*sites: Site) -> None:
    expected = await texts(sites[0].core)
    for one in sites:
        await one.catch_up()
        await one.lane.ask("release")
        assert local_texts(one) == expected, one.replica
    titles = {(one.opencode.database.info(SESSION) or {}).get("title") for one in sites}
    assert len(titles) == 1


@pytest.mark.parametrize("write", ["message", "part", "session"])
async def test_the_log_decides_when_theirs_was_taken_before_ours_was_sent(
    site: Site, there: Site, write: str
) -> None:
    await collide(site, there, write)
    await site.catch_up()  # theirs goes over ours here
    await site.outbox.flush(SESSION)
    await in_agreement(site, there)


@pytest.mark.parametrize("write", ["message", "part", "session"])
async def test_the_log_decides_when_both_are_heard_at_once(
    site: Site, there: Site, write: str
) -> None:
    await collide(site, there, write)
    await site.outbox.flush(SESSION)
    await in_agreement(site, there)


@pytest.mark.parametrize("write", ["message", "part", "session"])
async def test_the_log_decides_when_ours_was_sent_first(
    site: Site, there: Site, write: str
) -> None:
    await both(site, there)
    await site.outbox.flush(SESSION)
    await collide(there, site, write)
    await in_agreement(site, there)


@pytest.mark.parametrize("write", ["message", "part", "session"])
async def test_the_log_decides_when_theirs_was_held_back_during_a_turn(
    site: Site, there: Site, write: str
) -> None:
    site.busy = False
    await both(site, there)
    site.busy = True
    await collide(site, there, write)
    await site.catch_up()
    await site.outbox.flush(SESSION)
    await site.catch_up()
    site.busy = False
    await in_agreement(site, there)


@pytest.mark.parametrize("write", ["message", "part", "session"])
async def test_the_log_decides_when_the_sidecar_was_restarted_between_theirs_and_ours(
    site: Site, there: Site, write: str
) -> None:
    await collide(site, there, write)
    await site.catch_up()
    site.restart()
    await site.outbox.flush(SESSION)
    await in_agreement(site, there)


@pytest.mark.parametrize("write", ["message", "part", "session"])
async def test_the_log_decides_when_the_plugin_goes_away_in_between(
    site: Site, there: Site, write: str
) -> None:
    await both(site, there)
    site.busy = True
    await collide(site, there, write)
    await site.catch_up()
    await site.outbox.flush(SESSION)
    await site.catch_up()
    site.busy = False
    site.failures = 2
    await site.lane.ask("release")
    await in_agreement(site, there)


async def test_the_log_decides_about_a_removal_too(site: Site, there: Site) -> None:
    there.opencode.message(SESSION, "m1", text="a")
    there.opencode.part(SESSION, "m1", "p1", "a")
    await both(site, there)
    there.opencode.part(SESSION, "m1", "p1", "theirs")
    site.opencode.remove_part(SESSION, "m1", "p1")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    await site.outbox.flush(SESSION)
    await in_agreement(site, there)
    assert "m1/p1" not in local_texts(site)


async def test_what_was_brought_again_is_not_sent_again(site: Site, there: Site) -> None:
    await collide(site, there)
    await site.catch_up()
    await site.outbox.flush(SESSION)
    await in_agreement(site, there)
    before = len(await site.core.entries(SESSION))
    for one in (site, there):
        await one.outbox.flush(SESSION)
    assert len(await site.core.entries(SESSION)) == before


# Errors


async def test_what_could_not_be_written_is_tried_again_and_written_once(
    site: Site, there: Site
) -> None:
    for number in range(120):
        there.opencode.message(SESSION, f"m{number}", text="a")
    await there.outbox.flush(SESSION)
    site.failures = 2
    await site.catch_up()
    assert len(site.opencode.records(SESSION)) == 120
    log = [event_id for event_id, _ in site.opencode.events(SESSION)]
    assert len(log) == len(set(log)) == 121


async def test_an_error_after_the_first_batch_repeats_nothing(
    site: Site, there: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(120):
        there.opencode.message(SESSION, f"m{number}", text="a")
    await there.outbox.flush(SESSION)
    apply, calls = site.apply, 0

    async def failing(session_id: str, events: Any, *, announce: bool) -> bool:
        nonlocal calls
        calls += 1
        site.failures = 1 if calls == 2 else 0
        return await apply(session_id, events, announce=announce)

    monkeypatch.setattr(site, "apply", failing)
    await site.catch_up()
    assert len(site.opencode.events(SESSION)) == 121
    assert site.position == (await site.core.store.end(SESSION)).position


async def test_who_asks_is_answered_when_all_before_was_done(site: Site, there: Site) -> None:
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    site.failures = 1
    for entry in await site.core.entries(SESSION):
        site.lane.hear(operation_event(SESSION, entry))
    await site.lane.ask("release")
    assert local_texts(site) == {"m1": "a"}


async def test_who_gave_up_asking_holds_nothing_up(site: Site, there: Site) -> None:
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    asking = asyncio.create_task(site.lane.ask("catch-up"))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    await site.catch_up()
    assert local_texts(site) == {"m1": "a"}


async def test_a_closed_lane_stops(site: Site, there: Site) -> None:
    site.failures = 10**6
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    for entry in await site.core.entries(SESSION):
        site.lane.hear(operation_event(SESSION, entry))
    await asyncio.sleep(0.01)
    site.lane.close()
    await settled(site)
    assert local_texts(site) == {}


async def test_events_brought_carry_ids_that_name_their_operation(site: Site, there: Site) -> None:
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    entries = await site.core.entries(SESSION)
    ids = [event.id for batch in site.batches for event in batch]
    assert ids == [replayed_id(entry.epoch, entry.offset) for entry in entries]


async def test_nothing_comes_in_dated_later_than_now(site: Site, there: Site) -> None:
    ahead = site.core.clock() + 300
    there.opencode.message(SESSION, "m1", text="a", time={"created": ahead})
    await there.outbox.flush(SESSION)
    await site.catch_up()
    assert site.opencode.records(SESSION)["m1"]["time"]["created"] == site.core.clock() >= NOW


async def test_a_position_of_another_life_is_no_harm(site: Site, there: Site) -> None:
    there.opencode.message(SESSION, "m1", text="a")
    await there.outbox.flush(SESSION)
    site.lane = Lane(SESSION, site, Position("f" * 14, 99))
    await site.catch_up()
    assert local_texts(site) == {"m1": "a"}
    assert isinstance(site.shown[0], OpencodeEvent)

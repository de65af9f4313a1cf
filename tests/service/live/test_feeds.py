"""A session's feed: every operation once and in order, whatever happens on the way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sessiond.errors import NotFound, SlowSubscriberCut, StoreUnavailable
from sessiond.sync.position import START, Position
from tests.service.support import (
    Subscriber,
    body,
    create,
    cut,
    live_from_now,
    offset,
    operation,
    said,
    watching,
)
from tests.store.support import (
    PATIENCE_SECONDS,
    Line,
    Services,
    StartServices,
    appending,
    committer_on,
    deleting,
    roll_back,
    take_copy,
    until,
)

pytestmark = pytest.mark.usefixtures("session")


@pytest.fixture
async def session(core: Services) -> str:
    return await create(core)


async def append(core: Services, *names: str) -> None:
    for name in names:
        await core.messages.append("ses_1", [said("hi", name)])


def assert_each_once(subscriber: Subscriber, first: int, last: int) -> None:
    assert [offset(event) for event in subscriber.events] == list(range(first, last + 1))


async def test_a_subscriber_is_told_the_past_and_then_what_happens(core: Services) -> None:
    await append(core, "m1", "m2")
    async with watching(core) as subscriber:
        await subscriber.told(3)
        await append(core, "m3")
        await subscriber.told(4)
    assert subscriber.ids == ["ses_1", "m1", "m2", "m3"]
    assert subscriber.names == ["session.create", *["message.append"] * 3]


async def test_an_event_is_the_operation_of_the_log(core: Services) -> None:
    await append(core, "m1")
    async with watching(core) as subscriber:
        told = [operation(event) for event in await subscriber.told(2)]
    entries = await core.entries("ses_1")
    assert [(o.op, o.id, o.position, o.origin) for o in told] == [
        (e.op, e.id, str(e.position), e.origin) for e in entries
    ]
    assert [event.id for event in subscriber.events] == [str(e.position) for e in entries]
    assert told[1].body["content"] == "hi"


async def test_a_subscriber_resumes_after_the_position_it_has(core: Services) -> None:
    await append(core, "m1", "m2", "m3")
    entries = await core.entries("ses_1")
    async with watching(core, after=entries[1].position) as subscriber:
        await subscriber.told(2)
        await append(core, "m4")
        await subscriber.told(3)
    assert subscriber.ids == ["m2", "m3", "m4"]


async def test_a_subscriber_that_still_reads_waits_for_a_redis_that_goes_away(
    core: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(core, "m1", "m2")
    fetch, failures = core.store.log._fetch, iter(range(3))

    async def failing(*arguments: Any) -> Any:
        if next(failures, None) is not None:
            raise StoreUnavailable("cut")
        return await fetch(*arguments)

    monkeypatch.setattr(core.store.log, "_fetch", failing)
    async with watching(core) as subscriber:
        await subscriber.told(3)
    assert subscriber.ids == ["ses_1", "m1", "m2"]


async def test_subscribers_joining_while_500_appends_run_are_told_each_once_in_order(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")

    async def write(services: Services, name: str) -> None:
        for number in range(25):
            await asyncio.gather(*(append(services, f"{name}-{number}-{n}") for n in range(10)))

    async def join(moment: int) -> Subscriber:
        await until(lambda: len(seen.events) > moment)
        async with watching(core) as subscriber:
            await subscriber.told(501)
        return subscriber

    async with watching(there) as seen:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write(core, "here"))
            tasks.create_task(write(there, "there"))
            joining = [tasks.create_task(join(moment)) for moment in range(0, 500, 60)]
        await seen.told(501)
        for subscriber in [seen, *(task.result() for task in joining)]:
            assert_each_once(subscriber, 1, 501)


async def test_nothing_is_missed_or_doubled_when_the_bus_is_cut_while_others_write(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    async with live_from_now(core) as subscriber:
        for number in range(10):
            await cut(core)
            await asyncio.gather(*(append(there, f"m-{number}-{n}") for n in range(10)))
        await subscriber.told(100)
        await cut(core)
        await append(there, "last")
        await subscriber.told(101)
    assert_each_once(subscriber, 2, 102)


async def test_all_subscribers_of_a_session_share_one_subscription(core: Services) -> None:
    channel = core.keys.events("ses_1")
    async with live_from_now(core) as one, live_from_now(core) as other:
        assert core.feeds.subscribers == 2
        assert dict(await core.redis.pubsub_numsub(channel)) == {channel.encode(): 1}
        await append(core, "m1")
        await one.told(1)
        await other.told(1)
        assert one.events == other.events
    assert core.feeds.subscribers == 0
    await until(lambda: core.feeds.lag == 0)
    assert core.bus._listeners == {}


async def test_a_position_of_another_history_is_reset_and_told_everything(
    core: Services,
) -> None:
    await append(core, "m1")
    for position in (Position("00000000000001", 1), Position("00000000000001", 99)):
        async with watching(core, after=position) as subscriber:
            await subscriber.told(3)
            await append(core, f"more{position.offset}")
            await subscriber.until(lambda s=subscriber: s.ids[-1].startswith("more"))  # type: ignore[misc]
        assert body(subscriber.events[0])["session_id"] == "ses_1"
        assert subscriber.names.count("reset") == 1
        assert_each_once_after_reset(subscriber)


def assert_each_once_after_reset(subscriber: Subscriber) -> None:
    """From the last reset on, the log from its beginning without a gap."""
    last = len(subscriber.names) - 1 - subscriber.names[::-1].index("reset")
    offsets = [offset(event) for event in subscriber.events[last + 1 :]]
    assert offsets == list(range(1, len(offsets) + 1))


async def test_a_rollback_resets_subscribers_and_tells_them_what_is_left_at_once(
    core: Services,
) -> None:
    await append(core, "m1")
    kept = await take_copy(core, "ses_1")
    async with live_from_now(core) as subscriber:
        await append(core, "lost1", "lost2")
        await subscriber.told(2)
        await roll_back(core, "ses_1", kept)
        await cut(core)
        await subscriber.until(lambda: subscriber.names.count("reset") >= 1)
        await subscriber.until(lambda: subscriber.ids[-2:] == ["ses_1", "m1"])
    assert subscriber.ids == ["lost1", "lost2", "ses_1", "m1"]
    assert_each_once_after_reset(subscriber)


async def test_a_rollback_that_was_written_over_resets_subscribers(core: Services) -> None:
    await append(core, "m1")
    kept = await take_copy(core, "ses_1")
    async with live_from_now(core) as subscriber:
        await append(core, "lost1")
        await subscriber.told(1)
        await roll_back(core, "ses_1", kept)
        await append(core, "other1", "other2", "other3")
        await subscriber.until(lambda: subscriber.ids[-1] == "other3")
        await append(core, "other4")
        await subscriber.until(lambda: subscriber.ids[-1] == "other4")
    assert "reset" in subscriber.names
    assert_each_once_after_reset(subscriber)
    assert subscriber.ids[-6:] == ["ses_1", "m1", "other1", "other2", "other3", "other4"]


async def test_what_a_writer_inserts_again_after_a_rollback_is_told_again(
    core: Services,
) -> None:
    """The same operations get the same positions: no reason to keep them back."""
    kept = await take_copy(core, "ses_1")

    async def insert() -> None:
        journal = committer_on(core, Line(core.redis.execute_command))
        await journal.commit("ses_1", [appending("m1", b'{"a":1}')])
        await journal.commit("ses_1", [appending("m2", b'{"a":2}')])

    async with live_from_now(core) as subscriber:
        await insert()
        await subscriber.told(2)
        positions = [event.id for event in subscriber.events]
        await roll_back(core, "ses_1", kept)
        await cut(core)
        await subscriber.until(lambda: subscriber.ids[-1] == "ses_1")
        await insert()
        await subscriber.until(lambda: subscriber.ids[-1] == "m2")
    assert subscriber.ids == ["m1", "m2", "ses_1", "m1", "m2"]
    assert [event.id for event in subscriber.events[-2:]] == positions


async def test_a_trimmed_log_resets_once_and_goes_on_with_what_is_left(core: Services) -> None:
    await append(core, "m1", "m2", "m3")
    conversation = core.keys.conversation("ses_1")
    await core.redis.execute_command("XTRIM", conversation, "MINID", "3-0")
    async with core.feeds.session("ses_1", START) as events:
        told: list[str] = []
        async with asyncio.timeout(10):
            async for batch in events:
                told += [event.name for event in batch]
                if len(told) > 20 or "message.append" in told:
                    break
    assert told == ["reset", "message.append", "message.append"]


async def test_joining_a_log_that_was_rolled_back_unnoticed_does_not_read_it_for_ever(
    core: Services,
) -> None:
    kept = await take_copy(core, "ses_1")
    async with live_from_now(core) as waiting:
        await append(core, "lost1", "lost2")
        await waiting.told(2)
        await roll_back(core, "ses_1", kept)  # and nothing tells the feed of it
        async with watching(core) as subscriber:
            await subscriber.told(1)
            reads = 0
            fetch = core.store.log._fetch

            async def counted(*arguments: object) -> object:
                nonlocal reads
                reads += 1
                return await fetch(*arguments)  # type: ignore[arg-type]

            core.store.log._fetch = counted  # type: ignore[method-assign,assignment]
            for _ in range(50):
                await core.redis.ping()
            assert reads < 10


async def test_a_subscriber_that_takes_nothing_is_cut_and_resumes_without_a_loss(
    start: StartServices,
) -> None:
    core = await start(buffer_bytes=65_536)
    end = (await core.store.end("ses_1")).position
    async with live_from_now(core) as quick, core.feeds.session("ses_1", end) as slow:
        taking = asyncio.ensure_future(anext(slow))
        await until(lambda: core.feeds.subscribers == 2)
        await append(core, "m0")
        first = await taking
        for number in range(1, 21):
            await core.messages.append("ses_1", [said("x" * 10_000, f"m{number}")])
            await quick.told(number + 1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(SlowSubscriberCut):
                await anext(slow)
        assert_each_once(quick, 2, 22)
    async with watching(core, after=first[-1].position or START) as resumed:
        await resumed.told(20)
        assert_each_once(resumed, 3, 22)


async def test_live_events_never_overtake_the_operations_announced_before_them(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    async with live_from_now(there) as subscriber:
        for number in range(60):
            await append(core, f"m{number}")
            await core.sessions.send_live("ses_1", {"after": f"m{number}"})
        await subscriber.told(120)
    seen: set[str] = set()
    live: list[str] = []
    for event in subscriber.events:
        if event.name == "live":
            live.append(body(event)["body"]["after"])
            assert live[-1] in seen
        else:
            seen.add(operation(event).id)
    assert live == [f"m{number}" for number in range(60)]


class HeldReply:
    """Holds the reply to the next read of a log, so that others can be faster."""

    def __init__(self, core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
        self._fetch = core.store.log._fetch
        self._came, self._go_on = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(core.store.log, "_fetch", self._fetch_slowly)

    async def came(self) -> None:
        await until(self._came.is_set)

    def let_go(self) -> None:
        self._go_on.set()

    async def _fetch_slowly(self, *arguments: Any) -> Any:
        first = not self._came.is_set()
        self._came.set()
        reply = await self._fetch(*arguments)
        if first:
            await self._go_on.wait()
        return reply


async def test_what_was_told_while_a_subscriber_still_read_reaches_it_without_another_write(
    core: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live_from_now(core) as quick:
        held = HeldReply(core, monkeypatch)
        async with watching(core) as late:
            await held.came()
            await append(core, "m1")
            await quick.told(1)
            held.let_go()
            await late.told(2)
    assert late.ids == ["ses_1", "m1"]


async def test_a_subscriber_that_read_ahead_of_the_feed_loses_no_live_event_to_that(
    core: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live_from_now(core) as quick:
        held = HeldReply(core, monkeypatch)
        await append(core, "m1")
        await held.came()
        async with watching(core) as ahead:
            await ahead.told(2)
            await until(lambda: core.feeds.subscribers == 2)
            await core.sessions.send_live("ses_1", {"typing": True})
            held.let_go()
            await ahead.told(3)
        await quick.told(2)
    assert ahead.names == ["session.create", "message.append", "live"]


async def test_a_live_event_tells_who_sent_what_and_is_not_part_of_the_log(
    core: Services,
) -> None:
    async with live_from_now(core) as subscriber:
        await core.sessions.send_live("ses_1", {"typing": [None, "é"]})
        (event,) = await subscriber.told(1)
    assert body(event) == {
        "session_id": "ses_1",
        "origin": core.committer.writer,
        "body": {"typing": [None, "é"]},
    }
    assert event.id == ""
    assert len(await core.entries("ses_1")) == 1


async def test_live_events_go_to_who_listens_now_and_to_nobody_later(core: Services) -> None:
    await core.sessions.send_live("ses_1", 1)
    async with live_from_now(core) as subscriber:
        await core.sessions.send_live("ses_1", 2)
        await subscriber.told(1)
    assert [body(event)["body"] for event in subscriber.events] == [2]


async def test_a_deletion_is_the_last_event(core: Services) -> None:
    async with live_from_now(core) as live, watching(core) as past:
        await append(core, "m1")
        await past.told(2)
        await live.told(1)  # a deletion takes with it what was not told yet
        await core.sessions.delete("ses_1")
        await live.end()
        await past.end()
    assert live.names == ["message.append", "session.delete"]
    assert past.names[-1] == "session.delete"


async def test_who_comes_after_the_deletion_is_told_of_it_wherever_it_stood(
    core: Services,
) -> None:
    await append(core, "m1")
    positions = [entry.position for entry in await core.entries("ses_1")]
    await core.commit("ses_1", deleting("ses_1"))
    for position in (START, *positions):
        async with watching(core, after=position) as subscriber:
            await subscriber.end()
        assert subscriber.names == ["session.delete"]


async def test_a_session_that_is_not_there_has_no_feed(core: Services) -> None:
    with pytest.raises(NotFound):
        async with watching(core, "ses_none"):
            pass
    assert core.bus._listeners == {}


async def test_what_strangers_publish_on_our_channels_is_passed_over(core: Services) -> None:
    channel = core.keys.events("ses_1")
    async with live_from_now(core) as subscriber:
        for message in ("hello", "{}", '{"position":1}', '{"live":{}}', b"\xff", "[" * 10_000):
            await core.redis.publish(channel, message)
        await core.redis.publish(
            channel, '{"session_id":"ses_1","position":"00000000000001:999","operations":1}'
        )
        await append(core, "m1")
        await subscriber.told(1)
    assert subscriber.ids == ["m1"]


async def test_a_feed_can_be_opened_and_closed_many_times(core: Services) -> None:
    for number in range(20):
        async with live_from_now(core) as subscriber:
            await append(core, f"m{number}")
            await subscriber.told(1)
            assert subscriber.ids == [f"m{number}"]
    assert core.feeds.subscribers == 0

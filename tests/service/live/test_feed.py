"""Notices, and the bounded queue between a feed and one subscriber."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from sessiond.errors import SlowSubscriberCut
from sessiond.service.live.feed import Event, Subscription, read_notice


def test_a_notice_of_operations_names_session_and_position() -> None:
    notice = read_notice(
        b'{"session_id":"s","position":"00f3a9c1d2e4b7:12","operations":2,"last":"x"}'
    )
    assert notice is not None
    assert (notice.session_id, notice.position, notice.live) == ("s", "00f3a9c1d2e4b7:12", UNSET)


def test_a_live_notice_keeps_its_body_as_it_is() -> None:
    body = b'{"session_id":"s","origin":"o","body":{ "n":1.0 }}'
    notice = read_notice(b'{"live":%b}' % body)
    assert notice is not None
    assert notice.session_id == "s"
    assert isinstance(notice.live, Raw)
    assert bytes(notice.live) == body


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"hello",
        b"[]",
        b'"x"',
        b"\xff",
        b'{"session_id":1}',
        b'{"live":1}',
        b'{"live":{}}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_ours_is_no_notice(message: bytes) -> None:
    assert read_notice(message) is None


@given(st.one_of(st.binary(max_size=40), st.text(max_size=20).map(msgspec.json.encode)))
def test_no_message_makes_reading_notices_fail(message: bytes) -> None:
    read_notice(message)


def event(name: str, size: int = 0) -> Event:
    return Event(name, b"x" * size)


async def test_a_subscription_gives_all_that_waits_in_order() -> None:
    subscription = Subscription(1000)
    given_events = [event("a"), event("b")]
    for each in given_events:
        subscription.offer(each)
    assert await subscription.take() == given_events
    taking = asyncio.create_task(subscription.take())
    await asyncio.sleep(0)
    assert not taking.done()
    subscription.offer(event("c"))
    assert [taken.name for taken in await taking] == ["c"]


async def test_what_was_taken_does_not_count_against_the_limit() -> None:
    subscription = Subscription(100)
    for _ in range(5):
        subscription.offer(event("a", 100))
        assert len(await subscription.take()) == 1


async def test_an_event_longer_than_all_that_may_wait_cuts_only_who_is_behind() -> None:
    for behind in (False, True):
        subscription = Subscription(100)
        if behind:
            subscription.offer(event("a"))
        subscription.offer(event("long", 200))
        if behind:
            with pytest.raises(SlowSubscriberCut):
                await subscription.take()
        else:
            assert [taken.name for taken in await subscription.take()] == ["long"]


async def test_one_byte_too_much_cuts_the_subscriber_and_frees_what_waited() -> None:
    subscription = Subscription(100)
    subscription.offer(event("a", 100))
    subscription.offer(event("b", 1))
    subscription.offer(event("c", 1))
    assert not subscription._events
    for _ in range(2):
        with pytest.raises(SlowSubscriberCut) as cut:
            await subscription.take()
        assert cut.value.temporary
        assert cut.value.hint

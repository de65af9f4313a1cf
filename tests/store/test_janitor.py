"""The right to clean up, in Redis: one janitor at a time, and when it was done last."""

from __future__ import annotations

import asyncio

import pytest

from sessiond.errors import StoreDamaged
from sessiond.store.janitor import JanitorStore
from tests.store.support import Services, until_awaited

SOON_MS = 40
HOUR_MS = 3_600_000


@pytest.fixture
def janitor(core: Services) -> JanitorStore:
    """A right that lasts longer than any test."""
    return JanitorStore(core.redis, core.keys, 60_000)


@pytest.fixture
def fleeting(core: Services) -> JanitorStore:
    """A right that ends soon."""
    return JanitorStore(core.redis, core.keys, SOON_MS)


async def test_one_of_many_who_begin_at_once_is_the_janitor(janitor: JanitorStore) -> None:
    states = await asyncio.gather(*(janitor.begin(f"d{number}") for number in range(20)))
    (winner,) = [state for state in states if state.granted]
    assert {(state.instance, state.token) for state in states} == {(winner.instance, 1)}
    assert 0 < winner.until_ms - winner.now_ms <= 60_000


async def test_a_daemon_does_not_clean_up_twice_at_once(janitor: JanitorStore) -> None:
    assert (await janitor.begin("same")).granted
    assert not (await janitor.begin("same")).granted


async def test_it_is_renewed_as_long_as_it_is_held(
    janitor: JanitorStore, fleeting: JanitorStore
) -> None:
    state = await fleeting.begin("one")
    renewed = await janitor.renew(state.token)
    assert renewed.granted
    assert renewed.until_ms > state.until_ms
    assert not (await janitor.renew(state.token + 1)).granted


async def test_who_did_not_renew_is_replaced_and_its_token_is_of_no_use(
    janitor: JanitorStore, fleeting: JanitorStore
) -> None:
    old = await fleeting.begin("one")

    async def is_over() -> bool:
        return not (await janitor.look()).instance

    await until_awaited(is_over)
    assert not (await fleeting.renew(old.token)).granted, "it ended, so it is not renewed"
    new = await janitor.begin("two")
    assert (new.granted, new.token) == (True, old.token + 1)
    assert not (await janitor.finish(old.token, b"{}")).granted
    assert (await janitor.look()).finished_ms is None
    assert (await janitor.renew(new.token)).granted


async def test_when_it_was_done_and_what_is_kept_and_early_ones_are_refused(
    janitor: JanitorStore,
) -> None:
    state = await janitor.begin("one", HOUR_MS)
    assert state.granted, "it was never done before"
    assert (await janitor.finish(state.token, b'{"archived":1}')).granted
    found = await janitor.look()
    assert (found.instance, found.report) == ("", b'{"archived":1}')
    assert found.finished_ms is not None
    assert state.now_ms <= found.finished_ms <= found.now_ms
    assert not (await janitor.begin("two", HOUR_MS)).granted
    assert (await janitor.begin("two")).granted, "somebody wants it now"


async def test_a_time_from_the_future_is_that_of_a_clock_that_was_set(
    core: Services, janitor: JanitorStore
) -> None:
    await core.redis.hset(core.keys.janitor, "finished_ms", "99999999999999")
    assert (await janitor.begin("one", HOUR_MS)).granted


async def test_looking_changes_nothing(core: Services, janitor: JanitorStore) -> None:
    await janitor.look()
    assert not await core.redis.exists(core.keys.janitor)


async def test_something_foreign_is_damage(core: Services, janitor: JanitorStore) -> None:
    await core.redis.zadd(core.keys.janitor, {"x": 1})
    with pytest.raises(StoreDamaged):
        await janitor.begin("one")

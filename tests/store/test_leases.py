"""The turn lease in Redis: one holder at a time, and tokens that tell holders apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sessiond.errors import StoreDamaged, StoreUnavailable
from sessiond.store.connection import connect
from sessiond.store.keys import Keys
from sessiond.store.leases import LeaseState, LeaseStore
from tests.store.support import PATIENCE_SECONDS, Services

SOON_MS = 40
NOBODY = ("", "")


@pytest.fixture
def leases(core: Services) -> LeaseStore:
    """Leases that last longer than any test."""
    return LeaseStore(core.redis, core.keys, 60_000)


@pytest.fixture
def fleeting(core: Services) -> LeaseStore:
    """Leases that end soon."""
    return LeaseStore(core.redis, core.keys, SOON_MS)


def holder(state: LeaseState) -> tuple[str, str]:
    return state.instance, state.machine


async def granted(ask: Callable[[], Awaitable[LeaseState]]) -> LeaseState:
    """Ask until it is granted."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (state := await ask()).granted:  # noqa: ASYNC110 - time passes in the server
            await asyncio.sleep(0.005)
    return state


async def test_one_of_many_who_ask_at_once_gets_the_lease(leases: LeaseStore) -> None:
    names = [f"oc-{number}" for number in range(20)]
    states = await asyncio.gather(*(leases.ask("acquire", "s", name, "m") for name in names))
    (winner,) = [state for state in states if state.granted]
    assert {holder(state) for state in states} == {holder(winner)}
    assert {state.token for state in states} == {1}


async def test_sessions_have_leases_of_their_own(leases: LeaseStore) -> None:
    for name in ("s1", "s2"):
        assert (await leases.ask("acquire", name, f"of {name}", "m")).granted


async def test_who_is_refused_is_told_who_has_it_where_and_since_when(leases: LeaseStore) -> None:
    mine = await leases.ask("acquire", "s", "oc-1", "büro")
    theirs = await leases.ask("acquire", "s", "oc-2", "home")
    assert not theirs.granted
    assert (holder(theirs), theirs.token) == (("oc-1", "büro"), mine.token)
    assert theirs.since_ms == mine.since_ms > 1_700_000_000_000


async def test_a_holder_is_granted_its_lease_again_with_the_same_token(leases: LeaseStore) -> None:
    first = await leases.ask("acquire", "s", "oc-1", "m")
    assert await leases.ask("acquire", "s", "oc-1", "m") == first


async def test_the_token_grows_with_every_holder_and_survives_a_release(
    leases: LeaseStore,
) -> None:
    tokens = []
    for name in ("oc-1", "oc-2", "oc-1"):
        state = await leases.ask("acquire", "s", name, "m")
        tokens.append(state.token)
        assert (await leases.ask("release", "s", name, "m", state.token)).granted
    assert tokens == [1, 2, 3]


async def test_a_release_frees_the_lease_and_names_nobody(leases: LeaseStore) -> None:
    state = await leases.ask("acquire", "s", "oc-1", "m")
    released = await leases.ask("release", "s", "oc-1", "m", state.token)
    assert released.granted
    assert holder(released) == NOBODY
    assert (await leases.ask("acquire", "s", "oc-2", "m")).granted


async def test_what_nobody_held_is_neither_renewed_nor_released(leases: LeaseStore) -> None:
    for verb in ("renew", "release"):
        state = await leases.ask(verb, "s", "oc-1", "m", 1)
        assert not state.granted
        assert (holder(state), state.token) == (NOBODY, 0)


async def test_an_old_token_neither_renews_nor_releases(leases: LeaseStore) -> None:
    old = await leases.ask("acquire", "s", "oc-1", "m")
    await leases.ask("release", "s", "oc-1", "m", old.token)
    new = await leases.ask("acquire", "s", "oc-1", "m")
    for verb in ("renew", "release"):
        state = await leases.ask(verb, "s", "oc-1", "m", old.token)
        assert not state.granted
        assert (state.instance, state.token) == ("oc-1", new.token)
    assert not (await leases.ask("acquire", "s", "oc-2", "m")).granted


async def test_a_token_of_somebody_else_does_nothing(leases: LeaseStore) -> None:
    mine = await leases.ask("acquire", "s", "oc-1", "m")
    for verb in ("renew", "release"):
        assert not (await leases.ask(verb, "s", "oc-2", "m", mine.token)).granted
    assert (await leases.ask("renew", "s", "oc-1", "m", mine.token)).granted


async def test_a_released_lease_is_not_renewed(leases: LeaseStore) -> None:
    state = await leases.ask("acquire", "s", "oc-1", "m")
    await leases.ask("release", "s", "oc-1", "m", state.token)
    assert not (await leases.ask("renew", "s", "oc-1", "m", state.token)).granted
    assert (await leases.ask("acquire", "s", "oc-2", "m")).granted


async def test_a_lease_that_nobody_renews_goes_to_the_next_with_a_higher_token(
    fleeting: LeaseStore,
) -> None:
    mine = await fleeting.ask("acquire", "s", "oc-1", "m")
    theirs = await granted(lambda: fleeting.ask("acquire", "s", "oc-2", "m"))
    assert theirs.token == mine.token + 1
    assert theirs.since_ms >= mine.since_ms + SOON_MS
    assert not (await fleeting.ask("renew", "s", "oc-1", "m", mine.token)).granted
    assert not (await fleeting.ask("release", "s", "oc-1", "m", mine.token)).granted


async def test_who_comes_back_after_the_end_of_its_lease_gets_a_new_token(
    fleeting: LeaseStore,
) -> None:
    first = await fleeting.ask("acquire", "s", "oc-1", "m")
    await asyncio.sleep(2 * SOON_MS / 1000)
    again = await fleeting.ask("acquire", "s", "oc-1", "m")
    assert again.token == first.token + 1
    assert again.since_ms > first.since_ms


async def test_a_lease_that_ended_is_renewed_as_long_as_nobody_took_it(
    fleeting: LeaseStore, leases: LeaseStore
) -> None:
    mine = await fleeting.ask("acquire", "s", "oc-1", "m")
    await asyncio.sleep(2 * SOON_MS / 1000)
    assert (await leases.ask("renew", "s", "oc-1", "m", mine.token)).granted
    assert not (await leases.ask("acquire", "s", "oc-2", "m")).granted


async def test_a_renewal_keeps_others_out_for_a_whole_life(
    fleeting: LeaseStore, leases: LeaseStore
) -> None:
    mine = await fleeting.ask("acquire", "s", "oc-1", "m")
    renewed = await leases.ask("renew", "s", "oc-1", "m", mine.token)
    assert renewed == mine
    await asyncio.sleep(2 * SOON_MS / 1000)
    assert not (await leases.ask("acquire", "s", "oc-2", "m")).granted


async def test_what_is_left_of_a_lease_goes_by_itself_after_days(
    core: Services, leases: LeaseStore
) -> None:
    await leases.ask("acquire", "s", "oc-1", "m")
    left_ms = await core.redis.pttl(core.keys.lease("s"))
    assert 6 * 86_400_000 < left_ms <= 7 * 86_400_000


@pytest.mark.parametrize(
    "damage",
    [
        ("SET", "text"),
        ("HSET", "instance", "oc-9", "until_ms", "soon"),
        ("HSET", "instance", "oc-9", "until_ms", "99999999999999", "since_ms", "late"),
        ("HSET", "instance", b"\xff", "until_ms", "99999999999999", "token", "1"),
    ],
)
async def test_a_damaged_lease_is_called_so(
    core: Services, leases: LeaseStore, damage: tuple[str, ...]
) -> None:
    command, *values = damage
    await core.redis.execute_command(command, core.keys.lease("s"), *values)
    with pytest.raises(StoreDamaged):
        await leases.ask("acquire", "s", "oc-1", "m")


async def test_without_redis_the_caller_is_told() -> None:
    redis = connect("redis://127.0.0.1:1/0", timeout_seconds=1, max_connections=1)
    with pytest.raises(StoreUnavailable):
        await LeaseStore(redis, Keys("t"), 1000).ask("acquire", "s", "oc-1", "m")
    await redis.aclose()

"""Waiting for a turn's lease, keeping it, losing it, giving it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sessiond.errors import StoreUnavailable
from sessiond.service.content.leases import Leases
from sessiond.store.leases import LeaseState, LeaseStore, Verb
from tests.store.support import Services, until

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)

LIFE_MS = 60_000


class Way(LeaseStore):
    """The way to the leases, which a test can cut, and where it sees what was asked."""

    def __init__(self, core: Services, ttl_ms: int = LIFE_MS) -> None:
        super().__init__(core.redis, core.keys, ttl_ms)
        self.asked: list[tuple[Verb, str, str]] = []
        self.is_cut = False

    async def ask(
        self, verb: Verb, session_id: str, instance: str, machine: str, token: int = 0
    ) -> LeaseState:
        self.asked.append((verb, session_id, instance))
        if self.is_cut:
            raise StoreUnavailable("cut")
        return await super().ask(verb, session_id, instance, machine, token)

    def count(self, verb: Verb) -> int:
        return sum(asked[0] == verb for asked in self.asked)


class Pauses:
    """Pauses that end when the test says so."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self._ends: list[asyncio.Event] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        self._ends.append(asyncio.Event())
        await self._ends[-1].wait()

    async def end(self) -> None:
        """End the pause that is on, and return when the next one begins or none will."""
        before = len(self.taken)
        self._ends[-1].set()
        for _ in range(200):
            if len(self.taken) > before:
                return
            await asyncio.sleep(0.001)


@pytest.fixture
def way(core: Services) -> Way:
    return Way(core)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
async def here(way: Way, pauses: Pauses) -> AsyncIterator[Leases]:
    leases = Leases(way, "here", pauses)
    yield leases
    leases.close()


@pytest.fixture
async def there(core: Services, pauses: Pauses) -> AsyncIterator[Leases]:
    leases = Leases(Way(core), "there", Pauses())
    yield leases
    leases.close()


async def test_a_free_lease_is_had_at_once_and_known_to_be_held(here: Leases) -> None:
    assert (await here.acquire("s", "oc-1", 0.0)).granted
    assert here.held("s", "oc-1")
    assert not here.held("s", "oc-2")
    assert here.sessions_of("oc-1") == ["s"]
    assert here.sessions_of("oc-2") == []


async def test_who_does_not_want_to_wait_is_told_at_once_who_has_it(
    here: Leases, there: Leases, way: Way
) -> None:
    await there.acquire("s", "oc-2", 0.0)
    state = await here.acquire("s", "oc-1", 0.0)
    assert (state.granted, state.instance, state.machine) == (False, "oc-2", "there")
    assert way.count("acquire") == 1
    assert not here.held("s", "oc-1")


async def test_who_waits_in_vain_is_told_when_the_time_is_up(here: Leases, there: Leases) -> None:
    await there.acquire("s", "oc-2", 0.0)
    async with asyncio.timeout(5):
        state = await here.acquire("s", "oc-1", 0.05)
    assert not state.granted


async def test_a_waiter_gets_the_lease_as_soon_as_it_hears_of_the_release(
    here: Leases, there: Leases, way: Way
) -> None:
    await there.acquire("s", "oc-2", 0.0)
    waiting = asyncio.create_task(here.acquire("s", "oc-1", 60.0))
    await until(lambda: way.count("acquire") == 1)
    assert await there.release("s", "oc-2")
    here.heard_release("s")
    async with asyncio.timeout(0.5):  # less than it would take without hearing
        assert (await waiting).granted


async def test_a_release_heard_while_the_question_is_on_its_way_is_not_missed(
    here: Leases, there: Leases, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    await there.acquire("s", "oc-2", 0.0)
    ask = way.ask

    async def slow(*arguments: Any) -> LeaseState:
        state = await ask(*arguments)
        if way.count("acquire") == 1:
            await there.release("s", "oc-2")
            here.heard_release("s")
        return state

    monkeypatch.setattr(way, "ask", slow)
    async with asyncio.timeout(0.5):
        assert (await here.acquire("s", "oc-1", 60.0)).granted


async def test_of_many_waiters_each_gets_its_turn(here: Leases, there: Leases) -> None:
    await there.acquire("s", "oc-0", 0.0)
    order: list[str] = []

    async def take(name: str) -> None:
        assert (await here.acquire("s", name, 60.0)).granted
        order.append(name)
        await here.release("s", name)
        here.heard_release("s")

    names = [f"oc-{number}" for number in range(1, 6)]
    waiting = [asyncio.create_task(take(name)) for name in names]
    await asyncio.sleep(0)
    await there.release("s", "oc-0")
    here.heard_release("s")
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    assert sorted(order) == names


async def test_a_waiter_finds_out_by_itself_that_a_holder_died(
    core: Services, here: Leases
) -> None:
    await LeaseStore(core.redis, core.keys, 50).ask("acquire", "s", "oc-dead", "there")
    async with asyncio.timeout(5):
        assert (await here.acquire("s", "oc-1", 60.0)).granted


async def test_a_release_of_another_session_wakes_nobody_in_vain(
    here: Leases, there: Leases, way: Way
) -> None:
    await there.acquire("s", "oc-2", 0.0)
    waiting = asyncio.create_task(here.acquire("s", "oc-1", 0.2))
    await until(lambda: way.count("acquire") == 1)
    here.heard_release("other")
    assert not (await waiting).granted
    assert way.count("acquire") == 2  # at the beginning, and when the time was up


async def test_a_holder_may_ask_again_and_one_release_is_enough(
    here: Leases, there: Leases
) -> None:
    first = await here.acquire("s", "oc-1", 0.0)
    assert (await here.acquire("s", "oc-1", 0.0)).token == first.token
    assert await here.release("s", "oc-1")
    assert not await here.release("s", "oc-1")
    assert (await there.acquire("s", "oc-2", 0.0)).granted


async def test_releasing_what_is_not_held_asks_nobody(here: Leases, way: Way) -> None:
    assert not await here.release("s", "oc-1")
    assert way.asked == []


async def test_a_lease_is_renewed_three_times_in_its_life(
    here: Leases, way: Way, pauses: Pauses
) -> None:
    await here.acquire("s", "oc-1", 0.0)
    await until(lambda: len(pauses.taken) == 1)
    await pauses.end()
    await pauses.end()
    assert pauses.taken == [LIFE_MS / 3000] * 3
    assert way.count("renew") == 2


async def test_nothing_is_renewed_any_more_when_nothing_is_held(
    here: Leases, way: Way, pauses: Pauses
) -> None:
    await here.acquire("s", "oc-1", 0.0)
    await until(lambda: len(pauses.taken) == 1)
    await here.release("s", "oc-1")
    await pauses.end()
    assert len(pauses.taken) == 1
    assert way.count("renew") == 0
    await here.acquire("s", "oc-1", 0.0)
    await until(lambda: len(pauses.taken) == 2)  # and begins again with the next one


async def test_a_lease_that_was_lost_is_held_no_more(
    core: Services, here: Leases, way: Way, pauses: Pauses
) -> None:
    await here.acquire("s", "oc-1", 0.0)
    await here.acquire("kept", "oc-1", 0.0)
    await until(lambda: len(pauses.taken) == 1)
    await core.redis.delete(core.keys.lease("s"))
    await pauses.end()
    assert here.sessions_of("oc-1") == ["kept"]
    assert not await here.release("s", "oc-1")


async def test_a_late_renewal_does_not_take_away_what_was_acquired_anew(
    here: Leases, way: Way, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.acquire("s", "oc-1", 0.0)
    await until(lambda: len(pauses.taken) == 1)
    ask = way.ask

    async def slow(verb: Verb, *arguments: Any) -> LeaseState:
        if verb == "renew":
            await here.release("s", "oc-1")
            await here.acquire("s", "oc-1", 0.0)
        return await ask(verb, *arguments)

    monkeypatch.setattr(way, "ask", slow)
    await pauses.end()
    assert here.held("s", "oc-1")
    assert await here.release("s", "oc-1")


async def test_while_redis_is_away_a_lease_is_kept_and_renewed_when_it_is_back(
    here: Leases, there: Leases, way: Way, pauses: Pauses
) -> None:
    await here.acquire("s", "oc-1", 0.0)
    await until(lambda: len(pauses.taken) == 1)
    way.is_cut = True
    await pauses.end()
    assert here.held("s", "oc-1")
    way.is_cut = False
    await pauses.end()
    assert way.count("renew") == 2
    assert not (await there.acquire("s", "oc-2", 0.0)).granted


async def test_one_lease_that_cannot_be_renewed_does_not_hold_up_the_others(
    here: Leases, way: Way, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("slow", "other"):
        await here.acquire(name, "oc-1", 0.0)
    await until(lambda: len(pauses.taken) == 1)
    ask, never = way.ask, asyncio.Event()

    async def hanging(verb: Verb, session_id: str, *more: Any) -> LeaseState:
        if (verb, session_id) == ("renew", "slow"):
            await never.wait()
        return await ask(verb, session_id, *more)

    monkeypatch.setattr(way, "ask", hanging)
    await pauses.end()
    assert ("renew", "other", "oc-1") in way.asked
    never.set()


async def test_without_redis_nobody_waits_for_a_lease(here: Leases, way: Way) -> None:
    way.is_cut = True
    with pytest.raises(StoreUnavailable):
        await here.acquire("s", "oc-1", 60.0)
    assert not here.held("s", "oc-1")


async def test_a_release_that_redis_did_not_hear_is_not_renewed_either(
    here: Leases, way: Way, pauses: Pauses
) -> None:
    await here.acquire("s", "oc-1", 0.0)
    await until(lambda: len(pauses.taken) == 1)
    way.is_cut = True
    with pytest.raises(StoreUnavailable):
        await here.release("s", "oc-1")
    way.is_cut = False
    assert not here.held("s", "oc-1")
    await pauses.end()
    assert way.count("renew") == 0


async def test_closing_stops_the_renewals(here: Leases, way: Way, pauses: Pauses) -> None:
    await here.acquire("s", "oc-1", 0.0)
    await until(lambda: len(pauses.taken) == 1)
    here.close()
    await pauses.end()
    assert way.count("renew") == 0


async def test_a_lease_that_is_really_short_is_kept_as_long_as_it_is_held(core: Services) -> None:
    short = Leases(Way(core, ttl_ms=150), "here")
    other = Leases(Way(core, ttl_ms=150), "there", Pauses())
    await short.acquire("s", "oc-1", 0.0)
    assert not (await other.acquire("s", "oc-2", 0.5)).granted
    short.close()
    async with asyncio.timeout(5):
        assert (await other.acquire("s", "oc-2", 5.0)).granted
    other.close()


async def test_nothing_is_remembered_of_sessions_that_nobody_waits_for(here: Leases) -> None:
    for number in range(10):
        await here.acquire(f"s{number}", "oc-1", 0.0)
        await here.release(f"s{number}", "oc-1")
    assert here._waiting == {}

"""What Redis lost is done again, before what came since."""

from __future__ import annotations

import asyncio

import pytest

from sessiond.errors import StoreUnavailable, StoreWentBack
from sessiond.service.durable.performing import Performed
from sessiond.service.durable.waiting import Journaled
from sessiond.service.writes import (
    ChangeDocument,
)
from sessiond.service.writing import Request
from sessiond.store.outcome import SessionMissing
from sessiond.sync.position import Position
from tests.journal.support import entries_of
from tests.service.durable.played import (
    EPOCH,
    Machine,
    PlayedRedis,
    append,
    change,
    look,
    name_of,
    until,
)


async def test_what_redis_lost_is_done_again_in_order_before_what_came_since(
    machine: Machine, redis: PlayedRedis
) -> None:
    for name in "abcd":
        await machine.outbox.submit(append(name))
    assert await look(machine) == 0
    redis.log[2:] = []
    redis.gate.clear()
    assert await look(machine) == 2
    await machine.outbox.submit(append("e"))
    redis.gate.set()
    await machine.settled()
    assert redis.log == ["a", "b", "c", "d", "e"]
    assert await look(machine) == 0


async def test_a_crash_before_all_that_was_lost_is_done_again_loses_none_of_it(
    machine: Machine, redis: PlayedRedis
) -> None:
    """The newest that Redis has says nothing of what was before it, then."""
    for name in "abcd":
        await machine.outbox.submit(append(name))
    redis.roll_back_to(1)
    redis.refusals["c"] = StoreUnavailable("not yet")
    assert await look(machine) == 3
    await until(lambda: "b" in redis.log)
    redis.log.append("d")  # another machine puts back what this one wrote
    redis.epochs.append(EPOCH)
    await machine.crash()
    del redis.refusals["c"]
    await look(machine)
    await machine.settled()
    assert set(redis.log) == set("abcd")


async def test_nothing_is_done_while_what_redis_lost_is_looked_for(
    machine: Machine, redis: PlayedRedis
) -> None:
    """It would come before what was lost, or be refused for want of it."""
    for name in "abc":
        await machine.outbox.submit(append(name))
    redis.roll_back_to(1)
    redis.lookup_gate.clear()
    looking = asyncio.create_task(look(machine))
    await until(lambda: machine.outbox.confirmed.lives)
    assert isinstance(await machine.outbox.submit(append("d")), Journaled)
    redis.lookup_gate.set()
    assert await looking == 2
    await machine.settled()
    assert redis.log == ["a", "b", "c", "d"]


async def test_after_a_loss_redis_is_known_to_have_what_is_left_and_no_more(
    machine: Machine, redis: PlayedRedis
) -> None:
    """Should it go back again while what was lost is written, that must be noticed."""
    for name in "abcd":
        await machine.outbox.submit(append(name))
    redis.gate.clear()
    redis.roll_back_to(2)
    assert await look(machine) == 2
    assert machine.outbox.confirmed.known("s") == Position(EPOCH, 2)
    redis.roll_back_to(0)
    assert await look(machine) == 2  # beside those that wait already
    assert machine.outbox.confirmed.known("s") is None


async def test_what_was_confirmed_a_moment_ago_is_relied_on_before_anybody_looked(
    machine: Machine,
) -> None:
    """It may be from an earlier life: then the committer remembers nothing of the session."""
    await machine.outbox.submit(append("a"))
    await look(machine, unchanged=True)
    await machine.outbox.submit(append("b"))
    assert machine.outbox.confirmed.known("s") == Position(EPOCH, 2)
    await look(machine, unchanged=True)
    assert machine.outbox.confirmed.known("s") == Position(EPOCH, 2)


async def test_a_retry_of_what_redis_has_just_lost_is_no_refusal(
    machine: Machine, redis: PlayedRedis
) -> None:
    """Its session is missing since a moment ago, and nobody looked yet."""
    write = append("a", key="k")
    await machine.outbox.submit(write)
    redis.roll_back_to(0)
    redis.refusals["a"] = SessionMissing("s")
    assert isinstance(await machine.outbox.submit(write), Journaled)
    redis.refusals.clear()
    await look(machine)
    await machine.settled()
    assert redis.log == ["a"]


async def test_a_retry_that_is_refused_takes_nothing_back_of_what_was_acknowledged(
    machine: Machine, redis: PlayedRedis
) -> None:
    """Redis lost what it had; another machine has yet to create the session once more."""
    write = append("a", key="k")
    await machine.outbox.submit(write)
    redis.roll_back_to(0)
    machine.outbox.confirmed.doubt("s")
    retry = asyncio.create_task(machine.outbox.submit(write, wait_seconds=5))
    await until(lambda: machine.outbox.waiting("s"))
    redis.refusals["a"] = SessionMissing("s")
    redis.is_missing = True
    async with asyncio.timeout(5):
        while not (await machine.outbox.status()).held:
            await look(machine)
            await asyncio.sleep(0.001)
    redis.is_missing = False
    redis.refusals.clear()
    await look(machine)
    await retry
    assert redis.log == ["a"]
    assert [entry.session_id for entry in await entries_of(machine.journal)] == ["s"]


@pytest.mark.parametrize("waits", [False, True])
async def test_an_answer_from_before_redis_went_back_is_asked_for_again(
    machine: Machine, redis: PlayedRedis, *, waits: bool
) -> None:
    """Else what is written next would stand before it: it is missed only a second later."""
    await machine.outbox.submit(append("a"))
    redis.answers_gate.clear()
    if waits:
        await machine.outbox.submit(append("b"), 0)
    else:
        submitted = asyncio.create_task(machine.outbox.submit(append("b"), 5))
    await until(lambda: redis.log == ["a", "b"])
    redis.roll_back_to(1)
    assert await look(machine) == 0
    redis.answers_gate.set()
    if not waits:
        answer = await submitted
        assert isinstance(answer, Performed)
        assert answer.position == Position(f"{1:014x}", 2)
    await machine.settled()
    await machine.outbox.submit(append("c"))
    assert redis.log == ["a", "b", "c"]


@pytest.mark.parametrize("looks_before", [0, 1, 2])
async def test_what_was_lost_is_found_though_others_were_written_in_its_place(
    machine: Machine, redis: PlayedRedis, looks_before: int
) -> None:
    """A position that Redis has says nothing of those from another history."""
    for name in "abc":
        await machine.outbox.submit(append(name))
    for _ in range(looks_before):
        await look(machine, unchanged=True)
    redis.roll_back_to(1)
    for name in "def":
        await machine.outbox.submit(append(name))
    assert await look(machine) == 2
    await machine.settled()
    assert redis.log == ["a", "d", "e", "f", "b", "c"]


async def test_what_was_lost_keeps_its_order_even_where_a_part_of_it_waits_again(
    machine: Machine, redis: PlayedRedis
) -> None:
    for name in "ab":
        await machine.outbox.submit(append(name, key=name))
    redis.roll_back_to(0)
    redis.gate.clear()
    await machine.outbox.submit(append("c"))
    again = asyncio.create_task(machine.outbox.submit(append("a", key="a"), 5))
    await until(lambda: len(machine.outbox.waiting("s")) == 2)
    assert await look(machine) == 1
    names = [name_of(waiting.write) for waiting in machine.outbox.waiting("s")]
    assert names == ["a", "b", "c"]
    redis.gate.set()
    await again
    await machine.settled()


async def test_a_redis_that_went_back_takes_nothing_before_what_it_lost(
    machine: Machine, redis: PlayedRedis
) -> None:
    """So each writer's own order is kept."""
    doubts: list[bool] = []
    machine.outbox.confirmed.call_in_doubt(lambda: doubts.append(True))
    for name in "abc":
        await machine.outbox.submit(append(name))
    redis.roll_back_to(1)
    redis.refusals["d"] = StoreWentBack("it lacks c")
    assert isinstance(await machine.outbox.submit(append("d")), Journaled)
    assert doubts == [True]
    assert machine.outbox.confirmed.is_in_doubt
    assert isinstance(await machine.outbox.submit(append("e")), Journaled)
    redis.refusals.clear()
    assert await look(machine) == 2
    assert redis.forgiven == ["s"]
    await machine.settled()
    assert redis.log == ["a", "b", "c", "d", "e"]


async def test_a_strict_change_that_was_lost_is_merged(
    machine: Machine, redis: PlayedRedis
) -> None:
    strict = change(1)
    await machine.outbox.submit(
        ChangeDocument(
            session_id="s", name="context", patch=strict.patch, request=Request(expected="7")
        )
    )
    redis.log.clear()
    await look(machine)
    await machine.settled()
    first, again = redis.done
    assert (first.request.expected, first.request.base) == ("7", "")
    assert (again.request.expected, again.request.base) == ("", "7")

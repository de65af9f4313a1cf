"""Lanes: what waits is done in order, refused, held, brought back."""

from __future__ import annotations

import asyncio

import pytest

from sessiond.errors import (
    AlreadyExists,
    Contended,
    NotFound,
    SessiondError,
    StoreFull,
)
from sessiond.service.durable.performing import Performed
from sessiond.service.durable.tries import Refused
from sessiond.service.durable.waiting import Journaled
from sessiond.service.writes import (
    PutPart,
)
from sessiond.store.outcome import SessionMissing
from sessiond.sync.position import Position
from tests.journal.support import entries_of
from tests.service.durable.played import (
    EPOCH,
    Machine,
    PlayedRedis,
    append,
    change,
    held_by,
    look,
    name_of,
    until,
)


async def test_a_refusal_is_the_callers_and_leaves_nothing_behind(
    machine: Machine, redis: PlayedRedis
) -> None:
    redis.refusals["a"] = AlreadyExists("taken")
    refused: list[Refused] = []
    machine.outbox.on_refused.append(refused.append)
    with pytest.raises(AlreadyExists):
        await machine.outbox.submit(append("a"))
    redis.gate.clear()
    await machine.outbox.submit(append("b"))
    waiting = asyncio.create_task(machine.outbox.submit(append("a"), 5))
    await until(lambda: len(machine.outbox.waiting("s")) == 2)
    redis.gate.set()
    with pytest.raises(AlreadyExists):
        await waiting
    await machine.settled()
    assert redis.kept == []
    assert [(each.error.code, each.is_kept) for each in refused] == 2 * [("already-exists", False)]
    assert [entry.position for entry in await entries_of(machine.journal)] == [Position(EPOCH, 1)]


async def test_a_refusal_that_nobody_hears_is_kept(machine: Machine, redis: PlayedRedis) -> None:
    redis.refusals["a"] = AlreadyExists("taken")
    refused: list[Refused] = []
    machine.outbox.on_refused.append(refused.append)
    redis.is_away = True
    for name in "ab":
        await machine.outbox.submit(append(name))
    redis.is_away = False
    await machine.settled()
    ((write, error),) = redis.kept
    assert (name_of(write), error.code) == ("a", "already-exists")
    assert refused == [Refused(write, error, is_kept=True)]
    assert redis.log == ["b", "conflict a"]


async def test_a_refusal_whose_conflict_redis_loses_is_tried_again(
    machine: Machine, redis: PlayedRedis
) -> None:
    redis.refusals["a"] = NotFound("its message is not there")
    await machine.outbox.submit(append("a"), 0)
    await machine.settled()
    assert redis.log == ["conflict a"]
    redis.roll_back_to(0)
    redis.refusals.clear()
    assert await look(machine) == 1
    await machine.settled()
    assert redis.log == ["a"]


async def test_what_is_refused_for_want_of_its_session_is_tried_again_when_that_is_there(
    machine: Machine, redis: PlayedRedis
) -> None:
    """Another machine may have created it since the refusal."""
    redis.refusals["a"] = SessionMissing("s")
    await machine.outbox.submit(append("a"), 0)
    assert await held_by(machine.outbox)
    redis.refusals.clear()
    await machine.settled()
    assert redis.log == ["a"]
    assert redis.kept == []


async def test_writes_to_a_session_that_is_not_there_yet_are_held_and_say_so(
    machine: Machine, redis: PlayedRedis
) -> None:
    """Another machine may have it in its journal."""
    redis.refusals |= dict.fromkeys("ab", SessionMissing("s"))
    redis.is_missing = redis.is_away = True
    for name in "ab":
        await machine.outbox.submit(append(name))
    redis.is_away = False
    assert await held_by(machine.outbox) == {"s": "not-found: there is no session 's'"}
    assert redis.log == []
    redis.refusals.clear()
    await machine.settled()
    assert redis.log == ["a", "b"]
    assert (await machine.outbox.status()).held == {}


async def test_a_full_redis_is_not_away_keeps_nobody_waiting_and_is_tried_until_there_is_room(
    machine: Machine, redis: PlayedRedis
) -> None:
    await machine.stop()
    await machine.start(wait_seconds=60)
    redis.refusals |= dict.fromkeys("abc", StoreFull("out of memory"))
    async with asyncio.timeout(5):
        for name, session_id in (("a", "s"), ("b", "s"), ("c", "t")):
            assert isinstance(await machine.outbox.submit(append(name, session_id)), Journaled)
    assert set((await machine.outbox.status()).held.values()) <= {"store-full: out of memory"}
    assert await held_by(machine.outbox)
    assert not machine.reachability.is_away
    redis.refusals.clear()
    await machine.settled()
    await until(lambda: not machine.outbox.waiting("t"))
    assert sorted(redis.log) == ["a", "b", "c"]
    assert redis.log.index("a") < redis.log.index("b")
    assert isinstance(await machine.outbox.submit(append("d")), Performed)


async def test_a_session_that_stays_missing_is_revived_and_then_written_to(
    machine: Machine, redis: PlayedRedis
) -> None:
    revived = list[str]()

    async def revive(session_id: str, /, *, is_known: bool = True) -> bool:
        assert is_known
        if not revived:
            revived.append(session_id)
            raise StoreFull("not now")
        revived.append(session_id)
        redis.refusals.clear()
        return True

    await machine.stop()
    await machine.start(revive_seconds=0.05)
    machine.outbox.revive_with(revive)
    redis.refusals |= dict.fromkeys("ab", SessionMissing("s"))
    redis.is_missing = redis.is_away = True
    for name in "ab":
        await machine.outbox.submit(append(name))
    redis.is_away = False
    await held_by(machine.outbox)
    assert revived == [], "another machine may have it"
    await machine.settled()
    assert revived == ["s", "s"]
    assert redis.log == ["a", "b"]


async def test_losing_races_is_tried_again(machine: Machine, redis: PlayedRedis) -> None:
    redis.refusals["{'state': {'n': 1}}"] = Contended("others were faster")
    assert isinstance(await machine.outbox.submit(change(1)), Journaled)
    assert not machine.reachability.is_away
    redis.refusals.clear()
    await machine.settled()
    assert redis.log == ["{'state': {'n': 1}}"]


async def test_an_unexpected_failure_neither_loses_a_write_nor_goes_unseen(
    machine: Machine, redis: PlayedRedis
) -> None:
    redis.is_away = True
    await machine.outbox.submit(append("a"))
    failure: SessiondError = ZeroDivisionError("a fault of ours")  # type: ignore[assignment]
    redis.refusals["a"] = failure
    redis.is_away = False
    assert await held_by(machine.outbox) == {"s": "ZeroDivisionError: a fault of ours"}
    redis.refusals.clear()
    await machine.settled()
    assert redis.log == ["a"]


async def test_what_need_not_be_read_first_goes_together_and_each_record_once(
    machine: Machine, redis: PlayedRedis
) -> None:
    first, second = (
        PutPart(session_id="s", message_id="m", part_id="p", part={"type": "text", "text": text})
        for text in ("1", "2")
    )
    redis.is_away = True
    for write in (append("a"), first, append("b"), second, append("c")):
        await machine.outbox.submit(write)
    redis.gate.clear()
    asked, redis.is_away = redis.asked, False
    await until(lambda: redis.asked > asked)
    assert redis.asked == asked + 3
    redis.gate.set()
    await machine.settled()
    assert [name_of(write) for write in redis.done] == ["a", "m/p 1", "b", "m/p 2", "c"]

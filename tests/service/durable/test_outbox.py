"""The outbox on a real journal, before a Redis that is played."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from sessiond.errors import (
    JournalFull,
    JournalUnavailable,
)
from sessiond.model import Choice, NewSession
from sessiond.service.durable.performing import Performed
from sessiond.service.durable.waiting import Journaled
from sessiond.service.writes import (
    Create,
    Edit,
    PutPart,
    Resolve,
    Write,
    decode,
    encode,
)
from sessiond.service.writing import Made, Request
from sessiond.sync.position import Position
from tests.journal.support import entries_of
from tests.service.durable.played import (
    EPOCH,
    Machine,
    PlayedRedis,
    append,
    change,
    name_of,
    until,
)


async def test_a_write_is_done_and_durable_when_it_is_answered(
    machine: Machine, redis: PlayedRedis
) -> None:
    answer = await machine.outbox.submit(append("a"))
    assert isinstance(answer, Performed)
    (entry,) = await entries_of(machine.journal)
    assert decode(entry.operations[0]) == redis.done[0]
    assert entry.position == Position(EPOCH, 1)
    assert redis.done[0].request.at_ms == 1_000


async def test_what_redis_has_and_the_disk_not_yet_is_not_answered(
    machine: Machine, redis: PlayedRedis
) -> None:
    machine.connections[-1].fault = (("INSERT", "BEGIN"), sqlite3.SQLITE_FULL)
    with pytest.raises(JournalUnavailable):
        await machine.outbox.submit(append("a"))
    assert redis.asked == 1
    with pytest.raises(JournalUnavailable):  # known by now: so it is not sent at all
        await machine.outbox.submit(append("b"))
    assert redis.asked == 1
    machine.connections[-1].fault = None
    for name in ("b", "c"):
        assert isinstance(await machine.outbox.submit(append(name)), Performed)
    assert redis.log == ["a", "b", "c"]


async def test_a_full_journal_refuses_and_takes_again_when_redis_has_taken(
    machine: Machine, redis: PlayedRedis
) -> None:
    await machine.stop()
    await machine.start(limit_bytes=4_000)
    redis.is_away = True
    written = 0
    refused = False
    while not refused:
        try:
            await machine.outbox.submit(append(f"{written}"))
            written += 1
        except JournalFull:
            refused = True
    assert written > 5
    redis.is_away = False
    await machine.settled()
    assert redis.log == [f"{number}" for number in range(written)]
    assert isinstance(await machine.outbox.submit(append("more")), Performed)


async def test_later_writes_of_a_session_do_not_overtake_those_that_wait(
    machine: Machine, redis: PlayedRedis
) -> None:
    redis.gate.clear()
    first = await machine.outbox.submit(append("first"))
    second = asyncio.create_task(machine.outbox.submit(append("second"), 5))
    other = asyncio.create_task(machine.outbox.submit(append("other", "t"), 5))
    await until(lambda: redis.asked == 3)
    redis.gate.set()
    assert isinstance(first, Journaled)
    assert isinstance(await second, Performed)
    assert isinstance(await other, Performed)
    assert [name for name in redis.log if name != "other"] == ["first", "second"]


async def test_whoever_asks_waits_for_what_is_on_its_way(
    machine: Machine, redis: PlayedRedis
) -> None:
    drained = machine.outbox.drained
    assert await drained("s", 0)
    redis.gate.clear()
    await machine.outbox.submit(append("a"), 0)
    assert not await drained("s", 0.01)
    asked = asyncio.create_task(drained("s", 5))
    redis.gate.set()
    assert await asked
    redis.is_away = True
    await machine.outbox.submit(append("b"))
    async with asyncio.timeout(1):
        assert not await drained("s", 30), "it is known to be away"


async def test_nobody_waits_for_a_redis_that_is_known_to_be_away(
    machine: Machine, redis: PlayedRedis
) -> None:
    await machine.stop()
    await machine.start(wait_seconds=30)
    redis.is_away = True
    async with asyncio.timeout(2):
        for name in "abc":
            assert isinstance(await machine.outbox.submit(append(name)), Journaled)
    assert [name_of(each.write) for each in machine.outbox.waiting("s")] == ["a", "b", "c"]
    redis.is_away = False
    await machine.settled()
    assert redis.log == ["a", "b", "c"]


async def test_what_was_journaled_is_done_by_the_next_life_once(
    machine: Machine, redis: PlayedRedis
) -> None:
    redis.is_away = True
    for name in "abc":
        await machine.outbox.submit(append(name))
    created = Create(session_id="new", new=NewSession(title="x"))
    await machine.outbox.submit(created)
    await machine.crash()
    assert list(machine.outbox.waiting_sessions()) == ["s", "new"]
    redis.is_away = False
    await machine.settled()
    await until(lambda: not machine.outbox.waiting_sessions())
    assert redis.log[:3] == ["a", "b", "c"]
    await machine.crash()  # what was not noted as confirmed is done once more, which is once
    await machine.settled()
    assert len(redis.log) == 4


async def test_a_caller_who_goes_away_changes_nothing(machine: Machine, redis: PlayedRedis) -> None:
    redis.gate.clear()
    caller = asyncio.create_task(machine.outbox.submit(append("a"), 5))
    await until(lambda: redis.asked)
    caller.cancel()
    await asyncio.wait([caller])
    redis.gate.set()
    await until(lambda: redis.log == ["a"])
    await machine.settled()


async def test_a_caller_who_goes_away_before_the_disk_has_it_changes_nothing_either(
    machine: Machine, redis: PlayedRedis
) -> None:
    redis.is_away = True
    await machine.outbox.submit(append("a"))
    caller = asyncio.create_task(machine.outbox.submit(append("b"), 5))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    redis.is_away = False
    await until(lambda: redis.log == ["a", "b"])
    await machine.settled()


async def test_a_retry_by_key_is_the_same_entry(machine: Machine, redis: PlayedRedis) -> None:
    redis.is_away = True
    first = await machine.outbox.submit(append("a", key="k"))
    again = await machine.outbox.submit(append("a", key="k"))
    assert first == again
    assert len(await entries_of(machine.journal)) == 1
    await machine.outbox.submit(append("another", key="k"))
    assert len(await entries_of(machine.journal)) == 2
    redis.is_away = False
    await machine.settled()


@pytest.mark.parametrize(
    "write",
    [
        Create(session_id="s", new=NewSession(title="t", preferences={"a": 1})),
        append("a", key="k"),
        change(1, "5"),
        PutPart(session_id="s", message_id="m", part_id="p", part={"id": "p", "type": "text"}),
        Resolve(session_id="s", number="3", choice=Choice(take="ours")),
        Edit(
            session_id="s",
            message_id="m",
            patch={"content": None},
            request=Request(made=[Made({"a": 1}), Made({"b": 2}, replace=True)], at_ms=5),
        ),
    ],
)
def test_a_write_comes_out_of_the_journal_as_it_went_in(write: Write) -> None:
    assert decode(encode(write)) == write

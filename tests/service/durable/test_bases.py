"""What a change is based on that waits itself."""

from __future__ import annotations

from functools import partial

from sessiond.service.durable.performing import Performed
from sessiond.service.durable.waiting import Journaled
from sessiond.service.writes import (
    Edit,
)
from sessiond.service.writing import Made, Request
from tests.service.durable.played import (
    EPOCH,
    Machine,
    PlayedRedis,
    append,
    change,
)


async def test_a_change_on_one_that_waits_says_what_its_maker_had_seen(
    machine: Machine, redis: PlayedRedis
) -> None:
    root = f"{EPOCH}:9"
    redis.gate.clear()
    base = root
    for value in (1, 2, 3):
        answer = await machine.outbox.submit(change(value, base))
        assert isinstance(answer, Journaled)
        base = answer.version
    redis.gate.set()
    await machine.settled()
    late = await machine.outbox.submit(change(4, base))
    assert isinstance(late, Performed)
    assert {write.request.base for write in redis.done} == {root}
    made = [[step.change["state"]["n"] for step in write.request.made] for write in redis.done]
    assert made == [[], [1], [1, 2], [1, 2, 3]]


async def test_an_edit_of_a_message_that_waits_is_based_on_it(
    machine: Machine, redis: PlayedRedis
) -> None:
    redis.gate.clear()
    appended = await machine.outbox.submit(append("a"))
    assert isinstance(appended, Journaled)
    edit = Edit(
        session_id="s",
        message_id="m",
        patch={"content": "b"},
        request=Request(base=appended.version),
    )
    await machine.outbox.submit(edit)
    redis.gate.set()
    await machine.settled()
    assert redis.done[1].request.base == f"{EPOCH}:1"


async def test_a_change_on_a_document_that_was_shown_is_compared_with_just_that(
    machine: Machine, redis: PlayedRedis
) -> None:
    redis.is_away = True
    told = await machine.outbox.submit(change(1, "base:5"))
    assert isinstance(told, Journaled)
    with_others = {"state": {"n": 1, "others": 2}}
    shown = partial(machine.outbox.shown, "s", "context", told.version)
    assert shown("newer:7", with_others) == with_others
    assert shown("newer:8", {"state": {}}) == with_others
    going_on = await machine.outbox.submit(change(3, told.version))
    assert isinstance(going_on, Journaled)
    assert going_on.write.request.base == "newer:7"
    assert going_on.write.request.made == [Made(with_others, replace=True)]

"""Group commit: few calls, the callers' order, and everybody hears how it went."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from sessiond.errors import (
    NotFound,
    SessiondError,
    StoreDamaged,
    StoreRefusesUser,
    StoreUnavailable,
    StoreWentBack,
)
from sessiond.store.committer import Committer
from sessiond.store.keys import Keys
from sessiond.store.outcome import Committed
from sessiond.sync.entry import Entry
from sessiond.sync.position import START, Position
from tests.store.support import (
    Line,
    Services,
    appending,
    assert_contract,
    committer_on,
    contents,
    creating,
    editing,
    real_servers,
    roll_back,
    take_copy,
    until,
)

MIB = 1024 * 1024


@pytest.fixture
def line(core: Services) -> Line:
    return Line(core.redis.execute_command)


@pytest.fixture
async def committer(core: Services, line: Line) -> Committer:
    """A committer behind the line, in an empty session."""
    await core.commit("ses_1", creating("ses_1"))
    return committer_on(core, line)


def operations_in(call: tuple[Any, ...]) -> list[str]:
    """The message ids that a call of the commit script carries."""
    return [text for text in call if isinstance(text, str) and text.startswith("m-")]


async def test_many_concurrent_commits_become_few_calls_in_the_order_they_came(
    core: Services, line: Line, committer: Committer
) -> None:
    names = [f"m-{number}" for number in range(300)]
    done = await asyncio.gather(*(committer.commit("ses_1", [appending(n)]) for n in names))
    assert len(line.calls) == 3  # of at most 128 operations each
    assert [committed.positions[0].offset for committed in done] == list(range(2, 302))
    entries = await core.entries("ses_1")
    assert [entry.id for entry in entries[1:]] == names
    assert_contract(entries)


async def test_a_lone_commit_leaves_at_once(line: Line, committer: Committer) -> None:
    line.open.clear()
    first = asyncio.create_task(committer.commit("ses_1", [appending("m-1")]))
    await until(lambda: len(line.calls) == 1)
    assert operations_in(line.calls[0]) == ["m-1"]
    line.open.set()
    await first


async def test_what_comes_while_a_call_is_under_way_waits_and_leaves_together(
    line: Line, committer: Committer
) -> None:
    line.open.clear()
    tasks = [asyncio.create_task(committer.commit("ses_1", [appending("m-0")]))]
    await until(lambda: len(line.calls) == 1)
    tasks += [
        asyncio.create_task(committer.commit("ses_1", [appending(f"m-{number}")]))
        for number in range(1, 6)
    ]
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(line.calls) == 1
    line.open.set()
    await asyncio.gather(*tasks)
    assert [operations_in(call) for call in line.calls] == [
        ["m-0"],
        ["m-1", "m-2", "m-3", "m-4", "m-5"],
    ]


async def test_sessions_do_not_wait_for_one_another(
    core: Services, line: Line, committer: Committer
) -> None:
    await core.commit("ses_2", creating("ses_2"))
    line.open.clear()
    tasks = [
        asyncio.create_task(committer.commit(session, [appending("m-1")]))
        for session in ("ses_1", "ses_2")
    ]
    await until(lambda: len(line.calls) == 2)
    line.open.set()
    await asyncio.gather(*tasks)


async def test_a_call_carries_no_more_operations_than_configured_but_whole_groups(
    core: Services, line: Line
) -> None:
    await core.commit("ses_1", creating("ses_1"))
    committer = committer_on(core, line, batch_operations=4)
    sizes = [1, 2, 1, 2, 9, 1, 4]
    groups = [
        [appending(f"m-{index}-{number}") for number in range(size)]
        for index, size in enumerate(sizes)
    ]
    await asyncio.gather(*(committer.commit("ses_1", group) for group in groups))
    assert [len(operations_in(call)) for call in line.calls] == [4, 2, 9, 1, 4]


async def test_a_call_carries_about_4_mib_at_most(
    core: Services, line: Line, committer: Committer
) -> None:
    body = b'"' + b"x" * (MIB - 2) + b'"'
    names = [f"m-{number}" for number in range(10)]
    await asyncio.gather(*(committer.commit("ses_1", [appending(n, body)]) for n in names))
    assert [len(operations_in(call)) for call in line.calls] == [4, 4, 2]
    assert len(await core.entries("ses_1")) == 11


class Hours:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


async def test_unanswered_calls_are_repeated_at_growing_pauses_until_the_time_is_up(
    core: Services, line: Line
) -> None:
    await core.commit("ses_1", creating("ses_1"))
    hours = Hours()
    committer = committer_on(
        core, line, retry_seconds=5.0, now=lambda: hours.now, sleep=hours.sleep
    )
    line.lose_requests = 1000
    with pytest.raises(StoreUnavailable) as unavailable:
        await committer.commit("ses_1", [appending("m-1")])
    assert unavailable.value.temporary
    assert hours.pauses[:5] == [0.02, 0.04, 0.08, 0.16, 0.32]
    assert max(hours.pauses) == 0.5
    assert 4.5 < hours.now <= 5.0
    assert len({call[2:] for call in line.calls}) == 1


async def test_everybody_in_a_call_that_failed_hears_of_it_and_later_ones_are_written(
    core: Services, line: Line
) -> None:
    await core.commit("ses_1", creating("ses_1"))
    committer = committer_on(core, line, retry_seconds=0)
    line.lose_requests = 1
    lost = await asyncio.gather(
        *(committer.commit("ses_1", [appending(f"m-{n}")]) for n in range(3)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in lost] == [StoreUnavailable] * 3
    done = await committer.commit("ses_1", [appending("m-9")])
    assert done.positions[0].offset == 2
    assert_contract(await core.entries("ses_1"))


@pytest.mark.parametrize(
    "passing",
    [
        RedisTimeoutError("slow"),
        ReadOnlyError("READONLY You can't write against a read only replica."),
        OutOfMemoryError("OOM command not allowed"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_pass_by_itself_is_tried_again(core: Services, passing: RedisError) -> None:
    await core.commit("ses_1", creating("ses_1"))
    errors: list[RedisError] = [passing]

    async def execute(*arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return await core.redis.execute_command(*arguments)

    committer = committer_on(core, Line(execute))
    assert (await committer.commit("ses_1", [appending("m-1")])).positions[0].offset == 2


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (AuthenticationError("WRONGPASS"), StoreRefusesUser),
        (NoPermissionError("NOPERM"), StoreRefusesUser),
        (ResponseError("WRONGTYPE"), StoreDamaged),
        (ValueError("a bug"), StoreDamaged),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_what_will_not_pass_is_told_at_once(
    error: Exception, meaning: type[SessiondError]
) -> None:
    calls = 0

    async def execute(*_: Any) -> Any:
        nonlocal calls
        calls += 1
        raise error

    committer = Committer(execute, Keys(), writer="w.1", retry_seconds=0.1)
    with pytest.raises(meaning):
        await committer.commit("ses_1", [appending("m-1")])
    assert calls == 1


@pytest.mark.parametrize(
    "reply",
    [None, [], [b""], [b"", b"ok"], [b"", b"error", b"new-code", b""], b"OK"],
)
async def test_a_reply_that_is_not_understood_is_damage_and_nobody_waits_for_ever(
    reply: Any,
) -> None:
    async def execute(*_: Any) -> Any:
        return reply

    committer = Committer(execute, Keys(), writer="w.1")
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(
            *(committer.commit("ses_1", [appending(f"m-{n}")]) for n in range(2)),
            return_exceptions=True,
        )
    assert [type(outcome) for outcome in outcomes] == [StoreDamaged] * 2


async def test_a_cancelled_caller_stops_waiting_but_its_write_keeps_its_place(
    core: Services, line: Line, committer: Committer
) -> None:
    line.open.clear()
    tasks = []
    for number in range(4):
        tasks.append(asyncio.create_task(committer.commit("ses_1", [appending(f"m-{number}")])))
        await until(lambda: len(line.calls) == 1)
        await asyncio.sleep(0)  # let the task hand over its group
    for cancelled in (tasks[0], tasks[2]):
        cancelled.cancel()
    await asyncio.wait([tasks[0], tasks[2]])
    line.open.set()
    done = [(await tasks[1]).positions[0].offset, (await tasks[3]).positions[0].offset]
    assert done == [3, 5]
    assert [entry.id for entry in await core.entries("ses_1")][1:] == ["m-0", "m-1", "m-2", "m-3"]


async def test_over_64_mib_waiting_more_is_refused_until_there_is_room(
    core: Services, line: Line, committer: Committer
) -> None:
    line.open.clear()
    body = b'"' + b"x" * (8 * MIB - 2) + b'"'
    tasks = [
        asyncio.create_task(committer.commit("ses_1", [appending(f"m-{number}", body)]))
        for number in range(8)
    ]
    await until(lambda: len(line.calls) == 1)
    with pytest.raises(StoreUnavailable) as refused:
        await committer.commit("ses_1", [appending("m-9", b"{}")])
    assert refused.value.temporary
    with pytest.raises(StoreUnavailable):
        await committer.commit("ses_2", [appending("m-9", b"{}")])
    line.lose_requests = 0
    line.open.set()
    await asyncio.gather(*tasks)
    done = await committer.commit("ses_1", [appending("m-9", body)])
    assert done.positions[0].offset == 10


async def test_room_comes_back_when_calls_fail(core: Services, line: Line) -> None:
    committer = committer_on(core, line, retry_seconds=0)
    body = b"x" * 40 * MIB
    for number in range(3):
        line.lose_requests = 1
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await committer.commit("ses_1", [appending(f"m-{number}", body)])


async def test_drain_returns_when_everything_handed_over_is_decided(
    core: Services, line: Line, committer: Committer
) -> None:
    await core.commit("ses_2", creating("ses_2"))
    line.open.clear()
    tasks = [
        asyncio.create_task(committer.commit(session, [appending(f"m-{number}")]))
        for number in range(5)
        for session in ("ses_1", "ses_2", "ses_none")
    ]
    await until(lambda: len(line.calls) == 3)
    draining = asyncio.create_task(committer.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    line.open.set()
    await draining
    await asyncio.sleep(0)
    assert all(task.done() for task in tasks)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 10
    assert sum(isinstance(outcome, NotFound) for outcome in outcomes) == 5
    await committer.drain()


async def test_nothing_is_remembered_of_sessions_that_are_idle(
    line: Line, committer: Committer
) -> None:
    await committer.commit("ses_1", [appending("m-1")])
    await committer.drain()
    assert committer._lanes == {}
    assert committer._waiting_bytes == 0


async def test_a_server_that_forgot_the_scripts_gets_them_again(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    for number in range(3):
        await core.redis.execute_command("SCRIPT", "FLUSH")
        await core.commit("ses_1", appending(f"m-{number}"))
        await core.redis.execute_command("SCRIPT", "FLUSH")
        await core.store.snapshot("ses_1")
    assert len(await core.entries("ses_1")) == 4


@real_servers
async def test_a_server_without_memory_takes_nothing_and_nothing_in_part(
    core: Services, line: Line
) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m-1"))
    before = await contents(core)
    committer = committer_on(core, line, retry_seconds=0)
    await core.redis.config_set("maxmemory", "1")
    try:
        for draft in (appending("m-2"), editing("m-1")):
            with pytest.raises(StoreUnavailable, match="out of memory"):
                await committer.commit("ses_1", [draft])
        assert await contents(core) == before
    finally:
        await core.redis.config_set("maxmemory", "0")
    assert (await committer.commit("ses_1", [appending("m-3")])).positions[0].offset == 3


async def entries_of(core: Services) -> list[Entry]:
    return (await core.store.log.page("ses_1", START)).entries


async def test_a_redis_that_went_back_takes_nothing_until_that_is_forgiven(
    core: Services, committer: Committer
) -> None:
    """Nothing may come before what it lost."""
    committer.is_guarded = True
    await committer.commit("ses_1", [appending("a")])
    copy = await take_copy(core, "ses_1")
    await committer.commit("ses_1", [appending("b")])
    await roll_back(core, "ses_1", copy)
    for _ in range(2):
        with pytest.raises(StoreWentBack):
            await committer.commit("ses_1", [appending("c")])
    given_up = asyncio.create_task(committer.commit("ses_1", [appending("d")]))
    await asyncio.sleep(0)
    await committer.forgive("ses_1")
    with pytest.raises(StoreWentBack):
        await given_up
    for name in ("b", "c"):
        await committer.commit("ses_1", [appending(name)])
    assert [entry.id for entry in await entries_of(core)] == ["ses_1", "a", "b", "c"]


async def test_what_an_earlier_life_wrote_must_be_there_before_the_first_call_is_taken(
    core: Services, committer: Committer, line: Line
) -> None:
    """Else nothing tells of a Redis that goes back between the start and the first write."""
    await committer.commit("ses_1", [appending("a")])
    copy = await take_copy(core, "ses_1")
    last = (await committer.commit("ses_1", [appending("b")])).positions[0]
    reborn = Committer(line.execute, core.keys, writer="test.reborn")
    reborn.is_guarded = True
    known = {"ses_1": last, "ses_2": Position("", 0)}
    reborn.recall = known.get
    await reborn.commit("ses_2", [creating("ses_2")])
    await roll_back(core, "ses_1", copy)
    await core.commit("ses_1", appending("elsewhere"))  # another one stands there now
    with pytest.raises(StoreWentBack):
        await reborn.commit("ses_1", [appending("c")])
    del known["ses_1"]
    await reborn.forgive("ses_1")
    for name in ("b", "c"):
        await reborn.commit("ses_1", [appending(name)])
    assert [entry.id for entry in await entries_of(core)] == ["ses_1", "a", "elsewhere", "b", "c"]


@pytest.mark.parametrize("is_epoch_known", [True, False])
async def test_a_session_that_has_what_an_earlier_life_wrote_is_written_on(
    core: Services, committer: Committer, line: Line, *, is_epoch_known: bool
) -> None:
    last = (await committer.commit("ses_1", [appending("a")])).positions[0]
    reborn = Committer(line.execute, core.keys, writer="test.reborn")
    reborn.is_guarded = True
    reborn.recall = {"ses_1": last if is_epoch_known else Position("", last.offset)}.get
    for name in ("b", "c"):
        await reborn.commit("ses_1", [appending(name)])
    assert [entry.id for entry in await entries_of(core)] == ["ses_1", "a", "b", "c"]


async def test_a_session_that_was_not_written_to_for_long_is_guarded_as_the_others(
    core: Services, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory for sessions is bounded: what is forgotten is recalled."""
    monkeypatch.setattr("sessiond.store.committer._SESSIONS_REMEMBERED", 2)
    committer.is_guarded = True
    copy = await take_copy(core, "ses_1")
    known = {"ses_1": (await committer.commit("ses_1", [appending("a")])).positions[0]}
    committer.recall = known.get
    for name in ("ses_2", "ses_3", "ses_4"):
        await committer.commit(name, [creating(name)])
    await roll_back(core, "ses_1", copy)
    with pytest.raises(StoreWentBack):
        await committer.commit("ses_1", [appending("b")])

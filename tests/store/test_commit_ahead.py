"""Two calls under way: whatever becomes of them, the order stays and nothing is written twice."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import Any

import pytest
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    NoScriptError,
    OutOfMemoryError,
    ResponseError,
)

from sessiond.errors import AlreadyExists, NotFound, StoreDamaged, StoreUnavailable
from sessiond.store.committer import Committer
from sessiond.store.connection import OrderedConnections
from sessiond.store.outcome import Committed
from sessiond.store.scripts import Execute
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
    until,
)

AFTER = 2 + 1 + 9 + 5
"""Where a call names what must come before it: EVALSHA, digest, number of keys, keys, ARGV 6."""


@pytest.fixture
def line(core: Services) -> Line:
    return Line(core.redis.execute_command)


@pytest.fixture
async def committer(core: Services, line: Line) -> Committer:
    """A committer behind the line, in an empty session."""
    await core.commit("ses_1", creating("ses_1"))
    return committer_on(core, line)


def names(count: int, first: int = 0) -> list[str]:
    return [f"m-{number:03d}" for number in range(first, first + count)]


def handed_over(committer: Committer, ids: list[str]) -> list[asyncio.Task[Committed]]:
    return [asyncio.create_task(committer.commit("ses_1", [appending(name)])) for name in ids]


def ids_in(call: tuple[Any, ...]) -> list[str]:
    return [text for text in call if isinstance(text, str) and text.startswith("m-")]


async def written(core: Services) -> list[str]:
    """The ids of the session's messages, in the log's order."""
    entries = await core.entries("ses_1")
    assert_contract(entries)
    return [entry.id for entry in entries[1:]]


class Fates:
    """A way to the server on which each call meets its fate once two are under way.

    Later calls arrive unharmed. The fates: `lost` before the server saw it; `unheard`, its reply
    lost; `stale`, lost but delivered when everything is over; `refused` by the server without
    running; `unknown` script; `overtaken` by the next call.
    """

    def __init__(self, execute: Execute, *fates: str) -> None:
        self._execute = execute
        self._fates = list(fates)
        self._answered = 0
        self.stale: list[tuple[Any, ...]] = []
        self.calls: list[tuple[Any, ...]] = []

    async def execute(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        fate = self._fates.pop(0) if self._fates else "well"
        await until(lambda: len(self.calls) > 1)
        try:
            return await self._meet(fate, arguments)
        finally:
            self._answered += 1

    async def _meet(self, fate: str, arguments: tuple[Any, ...]) -> Any:
        if fate == "lost":
            raise RedisConnectionError("cut before it was sent")
        if fate == "stale":
            self.stale.append(arguments)
            raise RedisConnectionError("cut, but on its way")
        if fate == "refused":
            raise OutOfMemoryError("OOM command not allowed")
        if fate == "unknown":
            raise NoScriptError("NOSCRIPT No matching script")
        if fate == "overtaken":
            await until(lambda: self._answered > 0)
        reply = await self._execute(*arguments)
        if fate == "unheard":
            raise RedisConnectionError("cut before the reply came")
        return reply


async def test_of_much_that_waits_one_half_leaves_and_the_other_follows_at_once(
    core: Services, line: Line, committer: Committer
) -> None:
    line.open.clear()
    tasks = handed_over(committer, names(64))
    await until(lambda: len(line.calls) == 2)
    assert [ids_in(call) for call in line.calls] == [names(32), names(32, first=32)]
    assert [call[AFTER] for call in line.calls] == [0, 1]  # the second says: after sequence 1
    line.open.set()
    done = await asyncio.gather(*tasks)
    assert [committed.positions[0].offset for committed in done] == list(range(2, 66))
    assert await written(core) == names(64)


async def test_sixteen_that_gather_behind_a_call_do_not_wait_for_it(
    core: Services, line: Line, committer: Committer
) -> None:
    line.open.clear()
    tasks = handed_over(committer, names(1))
    await until(lambda: len(line.calls) == 1)
    tasks += handed_over(committer, names(15, first=1))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(line.calls) == 1
    tasks += handed_over(committer, names(4, first=16))
    await until(lambda: len(line.calls) == 2)
    assert ids_in(line.calls[1]) == names(19, first=1)
    line.open.set()
    await asyncio.gather(*tasks)
    assert await written(core) == names(20)


async def test_no_more_than_two_calls_are_under_way(
    core: Services, line: Line, committer: Committer
) -> None:
    line.open.clear()
    tasks = handed_over(committer, names(500))
    await until(lambda: len(line.calls) == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(line.calls) == 2
    line.open.set()
    await asyncio.gather(*tasks)
    assert await written(core) == names(500)
    await committer.drain()
    assert committer._lanes == {}
    assert committer._waiting_bytes == 0


FATES = ("well", "lost", "unheard", "stale", "refused", "unknown")


@pytest.mark.parametrize(
    "fates",
    [*product((*FATES, "overtaken"), FATES), ("unheard",) * 4, ("stale",) * 4],
    ids="-".join,
)
async def test_whatever_two_calls_meet_every_write_is_there_once_and_in_order(
    core: Services, fates: tuple[str, ...]
) -> None:
    await core.commit("ses_1", creating("ses_1"))
    way = Fates(core.redis.execute_command, *fates)
    committer = committer_on(core, way)
    done = await asyncio.gather(*handed_over(committer, names(64)))
    assert [committed.positions[0].offset for committed in done] == list(range(2, 66))
    assert await written(core) == names(64)

    before = await contents(core)
    for arguments in way.stale:  # what was on its way arrives after all
        try:
            await core.redis.execute_command("EVALSHA", *arguments[1:])
        except ResponseError as error:
            assert "OUTOFORDER" in str(error) or isinstance(error, NoScriptError)  # noqa: PT017
    assert await contents(core) == before


async def test_a_call_that_was_sent_ahead_has_no_effect_before_the_one_in_front_of_it(
    core: Services, line: Line, committer: Committer
) -> None:
    line.open.clear()
    tasks = handed_over(committer, names(64))
    await until(lambda: len(line.calls) == 2)
    await core.commit("ses_1", appending("m-of-another"))  # it makes the server know the script
    before = await contents(core)
    with pytest.raises(ResponseError, match="OUTOFORDER"):
        await core.redis.execute_command(*line.calls[1])
    assert await contents(core) == before
    line.open.set()
    await asyncio.gather(*tasks)
    assert await written(core) == ["m-of-another", *names(64)]


async def test_when_nothing_of_a_call_is_written_the_one_behind_it_is_all_the_same(
    core: Services, line: Line, committer: Committer
) -> None:
    for name in names(32):
        await core.commit("ses_1", appending(name))
    outcomes = await asyncio.gather(*handed_over(committer, names(64)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [AlreadyExists] * 32 + [Committed] * 32
    assert await written(core) == names(64)
    assert [call[AFTER] for call in line.calls] == [0, 1, 0]


async def test_a_refused_group_takes_nothing_else_of_the_two_calls_with_it(
    core: Services, committer: Committer
) -> None:
    drafts = [appending(name) for name in names(64)]
    drafts[10], drafts[50] = editing("m-none"), editing("m-none")
    outcomes = await asyncio.gather(
        *(committer.commit("ses_1", [draft]) for draft in drafts), return_exceptions=True
    )
    refused = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, NotFound)]
    assert refused == [10, 50]
    assert await written(core) == [
        name for index, name in enumerate(names(64)) if index not in refused
    ]


async def test_callers_that_went_away_leave_both_calls_as_they_are(
    core: Services, line: Line, committer: Committer
) -> None:
    line.open.clear()
    tasks = handed_over(committer, names(64))
    await until(lambda: len(line.calls) == 2)
    for task in tasks[::2]:
        task.cancel()
    line.open.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, Committed) for outcome in outcomes[1::2])
    await committer.drain()
    assert await written(core) == names(64)


async def test_a_call_that_is_given_up_takes_the_one_sent_ahead_along(core: Services) -> None:
    """It must not come before the other one, which its writers may try once more."""
    await core.commit("ses_1", creating("ses_1"))
    way = Fates(core.redis.execute_command, "lost", "well")
    committer = committer_on(core, way, retry_seconds=0)
    outcomes = await asyncio.gather(*handed_over(committer, names(64)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 64
    assert await written(core) == []
    await asyncio.gather(*handed_over(committer, names(64)))
    assert await written(core) == names(64)


async def test_what_cannot_be_sent_is_told_and_what_comes_behind_is_written(
    core: Services, committer: Committer
) -> None:
    drafts = [appending(name) for name in names(64)]
    drafts[40] = appending("m-\ud800")
    outcomes: list[Committed | BaseException] = await asyncio.gather(
        *(committer.commit("ses_1", [draft]) for draft in drafts), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [Committed] * 32 + [StoreDamaged] * 32
    done = await committer.commit("ses_1", [appending("m-999")])
    assert done.positions[0].offset == 34
    assert await written(core) == [*names(32), "m-999"]


@real_servers
async def test_scripts_forgotten_and_connections_killed_under_load_cost_nothing(
    core: Services,
) -> None:
    """On the connections that daemons use, not a line of the tests."""
    connections = OrderedConnections(core.redis, size=2, timeout_seconds=5)
    await core.commit("ses_1", creating("ses_1"))
    committer = committer_on(core, connections)
    ids = iter(names(4_000))
    done = 0

    async def write() -> None:
        nonlocal done
        for name in ids:
            await committer.commit("ses_1", [appending(name)])
            done += 1

    async def disturb() -> None:
        while done < 3_500:
            await core.redis.execute_command("SCRIPT", "FLUSH")
            await core.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.005)

    await asyncio.gather(*(write() for _ in range(64)), disturb())
    assert sorted(await written(core)) == sorted(names(4_000))
    await connections.close()

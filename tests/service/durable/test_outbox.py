"""The outbox on a real journal, before a Redis that is played."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from sessiond.errors import (
    AlreadyExists,
    Contended,
    JournalFull,
    JournalUnavailable,
    NotFound,
    SessiondError,
    StoreFull,
    StoreUnavailable,
    StoreWentBack,
)
from sessiond.journal import Journal, JournalOptions
from sessiond.model import Choice, NewMessage, NewSession
from sessiond.service.durable.confirmed import Lookup
from sessiond.service.durable.outbox import Outbox
from sessiond.service.durable.performing import Performed
from sessiond.service.durable.tries import Refused, Surroundings
from sessiond.service.durable.waiting import Journaled
from sessiond.service.offline.reachability import Reachability
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    Create,
    Edit,
    PutPart,
    Resolve,
    Write,
    decode,
    encode,
)
from sessiond.service.writing import Made, Request
from sessiond.store.outcome import SessionMissing
from sessiond.sync.position import Position
from tests.journal.support import as_killed, entries_of
from tests.journal.test_disk_full import FailingConnection

EPOCH = "0" * 14


class PlayedRedis:
    """Performs writes by noting them; is away, slow or refuses as it is told."""

    def __init__(self) -> None:
        self.done: list[Write] = []
        self.asked = 0
        self.refusals: dict[str, SessiondError] = {}
        self.kept: list[tuple[Write, SessiondError]] = []
        self.is_away = False
        self.is_missing = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.answers_gate = asyncio.Event()
        self.answers_gate.set()
        self.lookup_gate = asyncio.Event()
        self.lookup_gate.set()
        self.log: list[str] = []
        self.epochs: list[str] = []
        self.lives = 0
        self.forgiven: list[str] = []

    async def perform(self, write: Write) -> Performed:
        self.asked += 1
        await self.gate.wait()
        self.answer_or_fail()
        name = name_of(write)
        if refusal := self.refusals.get(name):
            raise refusal
        if name not in self.log:
            self._take(name)
            self.done.append(write)
        place = self.log.index(name)
        performed = Performed(write, Position(self.epochs[place], place + 1))
        await self.answers_gate.wait()
        return performed

    def roll_back_to(self, length: int) -> None:
        self.log[length:] = []
        self.lives += 1

    async def keep_refused(self, write: Write, error: SessiondError) -> Position:
        self.answer_or_fail()
        if self.is_missing:
            raise SessionMissing("s")
        self.kept.append((write, error))
        self._take(f"conflict {name_of(write)}")
        return Position(self.epochs[len(self.log) - 1], len(self.log))

    async def are_there(self, _: str, positions: list[Position]) -> list[bool]:
        await self.lookup_gate.wait()
        self.answer_or_fail()
        return [
            at.offset <= len(self.log) and at.epoch == self.epochs[at.offset - 1]
            for at in positions
        ]

    async def forgive(self, session_id: str) -> None:
        self.forgiven.append(session_id)

    async def answers(self) -> None:
        self.answer_or_fail()

    def _take(self, name: str) -> None:
        self.log.append(name)
        self.epochs[len(self.log) - 1 :] = [f"{self.lives:014x}"]

    def answer_or_fail(self) -> None:
        if self.is_away:
            raise StoreUnavailable("away")


def name_of(write: Write) -> str:
    match write:
        case Append():
            return str(write.messages[0].content)
        case ChangeDocument() | Edit():
            return str(write.patch)
        case PutPart():
            return f"{write.message_id}/{write.part_id} {write.part['text']}"
        case _:
            return type(write).__name__


def append(content: str, session_id: str = "s", key: str = "") -> Append:
    message = NewMessage(role="user", content=content)
    return Append(session_id=session_id, messages=[message], request=Request(key=key))


def change(value: int, base: str = "", session_id: str = "s") -> ChangeDocument:
    request = Request(base=base)
    return ChangeDocument(
        session_id=session_id, name="context", patch={"state": {"n": value}}, request=request
    )


class Machine:
    """An outbox with its journal; `again` is its next life."""

    def __init__(self, folder: Path, redis: PlayedRedis) -> None:
        self.folder = folder
        self.redis = redis
        self.connections: list[FailingConnection] = []
        self._ids = itertools.count(1)

    async def start(
        self,
        *,
        wait_seconds: float = 0.05,
        limit_bytes: int = 2**20,
        revive_seconds: float = 60.0,
    ) -> None:
        def connect(path: Path) -> FailingConnection:
            self.connections.append(FailingConnection(path))
            return self.connections[-1]

        options = JournalOptions(connect=connect, limit_bytes=limit_bytes)
        self.journal = await Journal.open(self.folder, options)
        self.reachability = Reachability(self.redis.answers)
        around = Surroundings(
            journal=self.journal,
            perform=self.redis.perform,
            keep_refused=self.redis.keep_refused,
            lookup=Lookup(are_there=self.redis.are_there, forgive=self.redis.forgive),
            redis=self.reachability,
            clock=lambda: 1_000,
            entropy=lambda count: next(self._ids).to_bytes(count, "big"),
            sleep=lambda _: asyncio.sleep(0.001),
        )
        self.outbox = Outbox(around, wait_seconds=wait_seconds, revive_seconds=revive_seconds)
        await self.outbox.start()
        self.outbox.confirmed.begin_look()
        self.outbox.confirmed.end_look()

    async def stop(self) -> None:
        await self.reachability.close()
        await self.outbox.close()

    async def crash(self) -> None:
        """Go on from what lies on the disk now."""
        copy = as_killed(self.folder, self.folder.with_name(f"{self.folder.name}-"))
        await self.stop()
        self.folder = copy
        await self.start()

    async def settled(self) -> None:
        await until(lambda: not self.outbox.waiting("s"))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


async def held_by(outbox: Outbox) -> dict[str, str]:
    """Wait until a session is held; return which, and why."""
    async with asyncio.timeout(5):
        while not (held := (await outbox.status()).held):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
    return held


@pytest.fixture
def redis() -> PlayedRedis:
    return PlayedRedis()


@pytest.fixture
async def machine(tmp_path: Path, redis: PlayedRedis) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path / "j", redis)
    await machine.start()
    yield machine
    await machine.stop()


Submit = Callable[[Write], Awaitable[Performed | Journaled]]


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

    async def revive(session_id: str) -> bool:
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


async def look(machine: Machine, *, unchanged: bool = False) -> int:
    """What the watch does: whether Redis is the same is found out between the two calls."""
    machine.outbox.confirmed.begin_look()
    if unchanged:
        machine.outbox.confirmed.end_look()
        return 0
    return await machine.outbox.confirmed.recheck()


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

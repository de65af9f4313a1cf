"""An outbox of its own journal, on a Redis that is played."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

from sessiond.errors import (
    SessiondError,
    StoreUnavailable,
)
from sessiond.journal import Journal, JournalOptions
from sessiond.model import NewMessage
from sessiond.service.durable.confirmed import Lookup
from sessiond.service.durable.outbox import Outbox
from sessiond.service.durable.performing import Performed
from sessiond.service.durable.tries import Surroundings
from sessiond.service.offline.reachability import Reachability
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    Edit,
    PutPart,
    Write,
)
from sessiond.service.writing import Request
from sessiond.store.outcome import SessionMissing
from sessiond.sync.position import Position
from tests.journal.support import as_killed
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


async def look(machine: Machine, *, unchanged: bool = False) -> int:
    """What the watch does: whether Redis is the same is found out between the two calls."""
    machine.outbox.confirmed.begin_look()
    if unchanged:
        machine.outbox.confirmed.end_look()
        return 0
    return await machine.outbox.confirmed.recheck()

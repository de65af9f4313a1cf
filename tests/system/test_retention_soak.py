"""Sessions created, used and left alone for months of an injected clock, and cleaned up each day.

What stays is compared with a model each day; memory and file handles must not grow with the
sessions that went.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import pytest
from msgspec import Struct

from sessiond.config.options import Configuration
from sessiond.core import Core
from sessiond.model import NewMessage, NewSession
from sessiond.policy.retention import DAY_MS, HOUR_MS, Limits
from sessiond.service.retention.cleanup import Cleanup, Stores
from sessiond.service.writing import Request
from sessiond.store.janitor import JanitorStore
from tests.api.servers import durable_server
from tests.store.support import TurnedClock

LIMITS = Limits(max_sessions=60, max_age_days=10, delete_archived_days=15)
WORKSPACES = ("one", "two", "three")
MEMORY_GROWTH_MIB = 16
HANDLES_GROWTH = 4


class Modelled(Struct):
    """A session as the model has it; `last_ms`: when it was used, or archived."""

    workspace: str
    last_ms: int
    status: str = "active"


class StatusArchiver:
    """Archives by the session's status alone."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def archive(self, session_id: str, request: Request) -> None:
        change = {"status": "archived"}
        by = Request(client=request.client)
        await self._core.documents.change(session_id, "metadata", change, by)


class Life:
    """Months of sessions on one Redis, beside a model of what must become of them."""

    def __init__(self, core: Core, clock: TurnedClock, seed: int) -> None:
        self._core = core
        self._clock = clock
        self._random = Random(seed)  # noqa: S311 - a course of events, no secret
        self._cleanup = self._cleanup_of(core)
        self.model: dict[str, Modelled] = {}
        self.created = 0
        self.deleted = 0

    async def day(self, new: int) -> None:
        """Create and use sessions at four times of a day, then clean up and compare."""
        for _ in range(4):
            self._clock.ms += DAY_MS // 4
            await asyncio.gather(*(self._create() for _ in range(new // 4)))
            await asyncio.gather(*(self._use(name) for name in self._some_active()))
        self._clock.ms += self._random.choice([1, HOUR_MS + 1])
        await self._core.use.settle()
        report = await self._cleanup.run()
        assert not report.damaged
        assert not [found for found in report.found if found.outcome == "failed"]
        self._expect()
        assert await self._statuses() == {name: known.status for name, known in self.model.items()}

    def _cleanup_of(self, core: Core) -> Cleanup:
        stores = Stores(
            around=core.around,
            conflicts=core.conflicts,
            use=core.use,
            janitor=JanitorStore(core.redis, core.keys, 60_000),
            has_waiting=lambda _: False,
            archiver=StatusArchiver(core),
        )
        return Cleanup(stores, LIMITS, interval_ms=DAY_MS, instance="soak")

    async def _create(self) -> None:
        name, workspace = f"s{self.created}", self._random.choice(WORKSPACES)
        self.created += 1
        await self._core.sessions.create(NewSession(session_id=name, workspace=workspace))
        self.model[name] = Modelled(workspace, self._clock.ms)

    def _some_active(self) -> list[str]:
        active = [name for name, known in self.model.items() if known.status == "active"]
        return self._random.sample(active, len(active) // 8)

    async def _use(self, name: str) -> None:
        self.model[name].last_ms = self._clock.ms
        if self._random.random() < 0.5:
            await self._core.sessions.load(name)
            self._core.note_read(name)
        else:
            await self._core.messages.append(name, [NewMessage(role="user", content="x" * 200)])

    def _expect(self) -> None:
        """Do in the model what a clean-up has to do."""
        now = self._clock.ms
        for name, known in list(self.model.items()):
            is_due = now - known.last_ms >= LIMITS.delete_archived_days * DAY_MS
            if known.status == "archived" and is_due:
                del self.model[name]
                self.deleted += 1
        for workspace in WORKSPACES:
            active = [
                (known.last_ms, name)
                for name, known in self.model.items()
                if (known.workspace, known.status) == (workspace, "active")
            ]
            for place, (last_ms, name) in enumerate(sorted(active, reverse=True)):
                is_old = now - last_ms >= LIMITS.max_age_days * DAY_MS
                is_quiet = now - last_ms >= HOUR_MS
                if is_old or (place >= LIMITS.max_sessions and is_quiet):
                    self.model[name] = Modelled(workspace, now, "archived")

    async def _statuses(self) -> dict[str, str]:
        ids = await self._core.use.sessions()
        async with self._core.redis.pipeline(transaction=False) as pipeline:
            for name in ids:
                pipeline.hget(self._core.keys.metadata(name), "status")
            found = await pipeline.execute()
        return {name: value.decode() for name, value in zip(ids, found, strict=True)}


def memory_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
async def core(clock: TurnedClock) -> AsyncIterator[Core]:
    with durable_server() as server:
        core = Core(server.url, Configuration(), instance="soak", clock=clock)
        yield core
        await core.close()


@pytest.mark.parametrize(
    ("days", "new"),
    [
        pytest.param(40, 16, id="640 sessions"),
        pytest.param(
            100, 100, id="10,000 sessions", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]
        ),
    ],
)
async def test_months_of_sessions_are_kept_as_the_limits_say_in_bounded_memory(
    core: Core,
    clock: TurnedClock,
    days: int,
    new: int,
    record_property: Callable[[str, object], None],
) -> None:
    life = Life(core, clock, seed=days)
    for _ in range(days // 2):
        await life.day(new)
    half_memory, half_handles = memory_mib(), handles()
    for _ in range(days - days // 2):
        await life.day(new)
    grown, opened = memory_mib() - half_memory, handles() - half_handles
    record_property("memory_growth_mib", round(grown, 1))
    record_property("handles_growth", opened)
    assert life.created == days * (new // 4) * 4
    assert life.deleted > life.created / 4
    assert grown < MEMORY_GROWTH_MIB, f"{grown:.1f} MiB more than at half-time"
    assert opened <= HANDLES_GROWTH

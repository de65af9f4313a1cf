"""Two processes that compete as janitors: one at a time, and who was stopped does nothing more."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sessiond.config.options import Configuration
from sessiond.core import Core
from sessiond.model import NewSession
from sessiond.service.clock import system_clock
from sessiond.store.janitor import JanitorStore
from tests.api.servers import DurableServer, durable_server
from tests.daemons import wait_for
from tests.store.support import until_awaited
from tests.system.janitor import cleanup_of

COUNT = 600
WEEK_MS = 7 * 24 * 3600 * 1000
LIFE_MS = 1000


@pytest.fixture
def server() -> Iterator[DurableServer]:
    with durable_server() as server:
        yield server


@pytest.fixture
async def core(server: DurableServer) -> AsyncIterator[Core]:
    """Services on a Redis with many sessions that were archived a week ago."""
    old = Core(server.url, Configuration(), instance="old", clock=lambda: system_clock() - WEEK_MS)
    for first in range(0, COUNT, 100):
        names = [f"s{number}" for number in range(first, first + 100)]
        await asyncio.gather(*(old.sessions.create(NewSession(session_id=name)) for name in names))
        archived = {"status": "archived"}
        await asyncio.gather(*(old.documents.change(name, "metadata", archived) for name in names))
    await old.close()
    core = Core(server.url, Configuration(), instance="test")
    yield core
    await core.close()


class Janitor:
    """A janitor process, ready to begin."""

    def __init__(self, url: str, instance: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.janitor", url, instance, str(LIFE_MS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._line() == "ready"

    def begin(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """Stop it where it is, as a machine that is suspended."""
        self.process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{self.process.pid}/stat")
        wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def told(self) -> str:
        """Wait until it is done, and return what it says."""
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@contextmanager
def janitors(url: str, *instances: str) -> Iterator[list[Janitor]]:
    started = [Janitor(url, instance) for instance in instances]
    try:
        yield started
    finally:
        for janitor in started:
            janitor.process.kill()
            janitor.process.wait()


async def deleted_by(core: Core) -> Counter[str]:
    """How many sessions each process deleted."""
    found: Counter[str] = Counter()
    for number in range(COUNT):
        key = core.keys.metadata(f"s{number}")
        by: Any = await core.redis.hget(key, "deleted_by")
        if by:
            found[by.decode().removeprefix("janitor@").partition(".")[0]] += 1
    return found


async def test_of_two_that_begin_at_once_one_does_it_all(server: DurableServer, core: Core) -> None:
    with janitors(server.url, "one", "two") as started:
        for janitor in started:
            janitor.begin()
        told = [await asyncio.to_thread(janitor.told) for janitor in started]
    assert sorted(told) == [str(COUNT), "cleanup-held"]
    assert set((await deleted_by(core)).values()) == {COUNT}


async def test_a_janitor_that_was_stopped_amid_its_work_does_nothing_after_it_is_replaced(
    server: DurableServer, core: Core
) -> None:
    office = JanitorStore(core.redis, core.keys, 60_000)
    with janitors(server.url, "one") as (janitor,):
        janitor.begin()

        async def has_begun() -> bool:
            return len(await core.use.sessions()) < COUNT

        await until_awaited(has_begun)
        janitor.stop()
        before = await deleted_by(core)
        assert 0 < before["one"] < COUNT, "it was stopped too early or too late to show anything"

        async def is_replaced() -> bool:
            return (await office.begin("two")).granted

        await until_awaited(is_replaced)
        janitor.go_on()
        assert await asyncio.to_thread(janitor.told) == "cleanup-held"
    assert await deleted_by(core) == before
    state = await office.look()
    assert (state.instance, state.finished_ms) == ("two", None)
    await office.finish(state.token, b"{}")
    await cleanup_of(core, "two", LIFE_MS).run()
    assert await deleted_by(core) == before + Counter({"test": COUNT - before["one"]})

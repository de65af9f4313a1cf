"""A turn that ended does not keep others waiting, whatever was away at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from sessiond.errors import StoreUnavailable
from sessiond.opencode.protocol import Attachment
from sessiond.service.content.leases import Leases
from sessiond.service.opencode import turns as module
from sessiond.service.opencode.instance import Instance
from sessiond.service.opencode.turns import Turns
from sessiond.store.leases import LeaseStore
from tests.opencode.waiting import until
from tests.service.opencode.support import SESSION
from tests.store.support import Services

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)

_ALWAYS = 1000


class Machine:
    """A machine whose turns begin and end; `failures` is how often writing fails."""

    def __init__(self, core: Services, name: str) -> None:
        self.failures = 0
        self.leases = Leases(LeaseStore(core.redis, core.keys, 600), name)
        self.instance = Instance(f"oc-{name}", _attachment(), 1_000_000)
        self._tasks: set[asyncio.Task[None]] = set()
        self.turns = Turns(
            self.leases,
            catch_up=self._nothing,
            flush=self._flush,
            ended=lambda _: None,
            given_back=self._nothing,
            spawn=self._spawn,
        )

    async def _nothing(self, session_id: str) -> None:
        pass

    async def _flush(self, session_id: str) -> None:  # noqa: ARG002 - there is one
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _attachment() -> Attachment:
    return Attachment(
        version="1.18.33",
        plugin="0",
        pid=1,
        database="/none",
        project_id="p",
        directory="/here",
        worktree="/here",
    )


@pytest.fixture
async def here(core: Services, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    monkeypatch.setattr(module, "_RECLAIM_SECONDS", 0.05)
    here = Machine(core, "here")
    yield here
    here.leases.close()


@pytest.fixture
async def there(core: Services) -> AsyncIterator[Machine]:
    there = Machine(core, "there")
    yield there
    there.leases.close()


@pytest.mark.parametrize("failures", [0, 2, _ALWAYS])
async def test_the_next_one_may_begin_though_the_end_could_not_be_written(
    here: Machine, there: Machine, failures: int
) -> None:
    assert (await here.turns.begin(here.instance, SESSION, 0.0)).granted
    here.failures = failures
    here.turns.end(here.instance.name, SESSION)
    await until(lambda: here.leases.sessions_of(here.instance.name) == [])
    assert here.failures in (0, _ALWAYS - 5), "it was not tried again"
    assert (await there.turns.begin(there.instance, SESSION, 2.0)).granted


async def test_a_turn_that_began_meanwhile_keeps_the_right_to_it(
    here: Machine, there: Machine
) -> None:
    assert (await here.turns.begin(here.instance, SESSION, 0.0)).granted
    here.failures = 2
    here.turns.end(here.instance.name, SESSION)
    await until(lambda: here.failures == 1)
    assert (await here.turns.begin(here.instance, SESSION, 0.0)).granted
    await asyncio.sleep(0.3)
    assert not (await there.turns.begin(there.instance, SESSION, 0.0)).granted

"""Redis went back to an older state: what opencode logged since is written again, unasked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sessiond.store.opencode import OpencodeStore
from tests.opencode.simulated import SimulatedOpencode
from tests.opencode.waiting import until
from tests.service.opencode.sharing import Sharer
from tests.service.opencode.support import SESSION
from tests.store.support import Services, roll_back, take_copy

pytestmark = pytest.mark.parametrize("kind", ["fakeredis", "redis"], indirect=True)

_PATIENCE_SECONDS = 10


@pytest.fixture
async def here(core: Services, tmp_path: Path) -> AsyncIterator[Sharer]:
    core.committer.is_guarded = True  # as in a daemon
    here = Sharer(core, tmp_path / "here", "here")
    yield here
    here.close()


def say(opencode: SimulatedOpencode, message: str) -> None:
    opencode.message(SESSION, message, text=message)


async def written(core: Services, here: Sharer) -> int | None:
    store = OpencodeStore(core.redis, core.keys, core.store.recall)
    return await store.written_up_to(SESSION, here.saved.replica)


async def operations(core: Services) -> list[tuple[str, str]]:
    return [(entry.op, entry.id) for entry in await core.entries(SESSION)]


async def has_all(core: Services, here: Sharer) -> None:
    async def is_done() -> bool:
        return await written(core, here) == here.opencode.database.seq(SESSION)

    await until(is_done, _PATIENCE_SECONDS)


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_what_redis_lost_is_written_again_without_a_new_event(
    core: Services, here: Sharer, *, is_restarted: bool
) -> None:
    here.opencode.create(SESSION)
    say(here.opencode, "m1")
    assert await here.is_written(SESSION)
    copy = await take_copy(core, SESSION)
    say(here.opencode, "m2")
    assert await here.is_written(SESSION)
    before = await operations(core)
    if is_restarted:
        here.stop()
    await roll_back(core, SESSION, copy)
    assert len(await operations(core)) < len(before)
    if is_restarted:
        here.start()
    here.share.recheck()
    await has_all(core, here)
    assert await operations(core) == before


async def test_a_session_that_redis_lost_as_a_whole_is_brought_in_again(
    core: Services, here: Sharer
) -> None:
    here.opencode.create(SESSION)
    say(here.opencode, "m1")
    assert await here.is_written(SESSION)
    await roll_back(core, SESSION, {})
    here.share.recheck()
    await has_all(core, here)
    assert "m1" in [name for _, name in await operations(core)]


async def test_where_redis_has_everything_nothing_is_written(core: Services, here: Sharer) -> None:
    here.opencode.create(SESSION)
    say(here.opencode, "m1")
    assert await here.is_written(SESSION)
    before = await operations(core)
    assert [name async for name in here.share.outbox.behind()] == []
    assert await operations(core) == before

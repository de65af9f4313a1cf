"""Before a turn begins, everything is there, and in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.opencode.waiting import until
from tests.service.opencode.sharing import Sharer
from tests.service.opencode.support import SESSION
from tests.store.support import Services

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)

HOUR_MS = 3_600_000


@pytest.fixture
async def here(core: Services, tmp_path: Path) -> AsyncIterator[Sharer]:
    here = Sharer(core, tmp_path / "here", "here")
    yield here
    here.close()


async def test_messages_from_the_future_are_put_right_before_a_turn(
    core: Services, here: Sharer
) -> None:
    """They were written before the clock of this machine was set back."""
    here.ahead_ms = HOUR_MS
    now = core.clock()
    here.opencode.create(SESSION)
    here.opencode.message(SESSION, "m1", time={"created": now - HOUR_MS // 2})
    for place, name in enumerate(("m2", "m3")):
        at = now + HOUR_MS - 60_000 + place
        here.opencode.message(SESSION, name, time={"created": at})
        here.opencode.part(SESSION, name, f"{name}p", name)
    await until(lambda: here.is_written(SESSION))
    here.ahead_ms = 0
    assert (await here.share.turn(here.instance, SESSION, 1.0)).granted
    state = here.opencode.database.state(SESSION)
    assert state is not None
    assert list(state.messages) == ["m1", "m2", "m3"]
    assert state.placed["m3"] == state.messages["m3"]["time"]["created"] == now - 60_000 + 1
    assert list(state.parts) == ["m2/m2p", "m3/m3p"]
    await here.share.outbox.flush(SESSION)
    assert [entry.op for entry in await core.entries(SESSION)].count("message.remove") == 0

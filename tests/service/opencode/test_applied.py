"""What an opencode was given is told to whoever traces it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.opencode.waiting import until
from tests.service.opencode.sharing import Sharer
from tests.service.opencode.support import SESSION
from tests.store.support import Services

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)


async def test_what_another_machine_wrote_is_told_when_it_was_applied_here(
    core: Services, tmp_path: Path
) -> None:
    here, there = (Sharer(core, tmp_path / name, name) for name in ("here", "there"))
    there.opencode.create(SESSION)
    await until(lambda: here.has(SESSION))
    await until(lambda: (SESSION, "applied") in here.applied)
    assert there.applied == [], "it is its own"
    for each in (here, there):
        each.close()

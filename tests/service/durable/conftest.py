"""An outbox on a Redis that is played."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.service.durable.played import (
    Machine,
    PlayedRedis,
)


@pytest.fixture
def redis() -> PlayedRedis:
    return PlayedRedis()


@pytest.fixture
async def machine(tmp_path: Path, redis: PlayedRedis) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path / "j", redis)
    await machine.start()
    yield machine
    await machine.stop()

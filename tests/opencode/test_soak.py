"""A minute of work and faults at random; for longer: `python -m tests.opencode.soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.opencode.soak.soak import Plan, soak


@pytest.mark.soak
@pytest.mark.timeout(300)  # it judges more patiently than it works
async def test_three_machines_at_work_agree_and_lose_nothing(binary: Path) -> None:
    outcome = await soak(binary, Plan(seed=1, seconds=25.0))
    assert outcome.answered > 5
    assert not outcome.violations, "\n".join([*outcome.journal, *outcome.violations])

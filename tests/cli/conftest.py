"""A daemon to ask, and a place without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import ask, furnish
from tests.daemons import RunningDaemon, running_daemon


@pytest.fixture(scope="package")
def daemon() -> Iterator[RunningDaemon]:
    """A daemon with a few sessions."""
    with running_daemon("--instance", "here", "--port", "0") as daemon:
        ask(daemon, furnish)
        yield daemon


@pytest.fixture
def nobody(tmp_path: Path) -> RunningDaemon:
    """A place where no daemon was ever started."""
    return RunningDaemon(tmp_path)

"""The JavaScript client against a real daemon, tested by Node's and Bun's own test runners."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import RunningDaemon, running_daemon

_FOLDER = Path(__file__).parent
_REPOSITORY = _FOLDER.parent.parent
_RUNNERS = {"node": ["node", "--test"], "bun": ["bun", "test", "--timeout", "60000"]}
_LONGEST_SECONDS = 120


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with running_daemon("--port", "0") as daemon:
        yield daemon


@pytest.mark.parametrize("file", sorted(path.name for path in _FOLDER.glob("*.test.mjs")))
@pytest.mark.parametrize("runtime", _RUNNERS)
def test_javascript(runtime: str, file: str, daemon: RunningDaemon) -> None:
    if shutil.which(runtime) is None:
        pytest.skip(f"{runtime} is not installed: the JavaScript client was not tested with it")
    environ = {
        **os.environ,
        "PYTHONPATH": str(_REPOSITORY),
        "SESSIOND_API_SOCKET": str(daemon.socket),
        "SESSIOND_TEST_PYTHON": sys.executable,
    }
    done = subprocess.run(
        [*_RUNNERS[runtime], str(_FOLDER / file)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LONGEST_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n--- the daemon's log ---\n{daemon.log}"

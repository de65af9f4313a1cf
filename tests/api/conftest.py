"""One daemon for the tests of a file, on its socket and on a loopback port, and sessions in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.api.client import Client
from tests.api.watching import failures_in
from tests.daemons import RunningDaemon, running_daemon

_sessions = itertools.count(1)


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with running_daemon("--port", "0") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(daemon: RunningDaemon) -> Client:
    return Client(daemon.socket)


@pytest.fixture
def session(client: Client) -> str:
    """The path of a session of the test's own, with one message, `first`."""
    path = client.create(f"test-{next(_sessions)}")
    client.append(path, "first")
    return path


@pytest.fixture
def _quiet(daemon: RunningDaemon) -> Iterator[None]:
    """The test leaves no traceback in the daemon's log, and a daemon that works."""
    before = len(daemon.log)
    yield
    assert failures_in(daemon.log[before:]) == []
    assert daemon.process
    assert daemon.process.poll() is None, "the daemon died"

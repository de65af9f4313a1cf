"""Servers that a test has for itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.servers import RunningServer, binary_of


@pytest.fixture
def own_server(kind: str) -> Iterator[RunningServer]:
    """A server that the test may kill or halt."""
    server = RunningServer(binary_of(kind))
    yield server
    server.stop()

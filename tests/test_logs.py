"""The log: what it says of events, and that it never fails those who tell of them."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator

import pytest
import structlog

from sessiond.config import DebugOptions
from sessiond.logs import Logs


@pytest.fixture(autouse=True)
def _usual_logs_afterwards() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


class FullDisk(io.StringIO):
    """A file on a disk that is full."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")


def test_only_listed_keys_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    Logs(DebugOptions(log_format="json")).logger.info("redis.back", seconds=1.5, content="secret")
    assert '"seconds": 1.5' in written.getvalue()
    assert "secret" not in written.getvalue()


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_line_that_cannot_be_written_is_dropped(
    monkeypatch: pytest.MonkeyPatch, *, is_closed: bool
) -> None:
    """Whoever notices that Redis is away must go on to ask for it, on a full disk too."""
    stream = FullDisk()
    if is_closed:
        stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    Logs(DebugOptions(log_format="json")).logger.warning("redis.away")

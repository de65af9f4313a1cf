"""How a daemon fares, seen from outside: its log, its memory, its files."""

from __future__ import annotations

from pathlib import Path

from tests.daemons import RunningDaemon

FAILURES = ("request.failed", "Traceback", "Unhandled exception", "never retrieved")
"""What stands in a daemon's log when something went wrong that no error tells of."""


def failures_in(log: str) -> list[str]:
    """Return the lines of a log that tell of unexpected errors."""
    return [line[:2000] for line in log.splitlines() if any(word in line for word in FAILURES)]


def peak_bytes(daemon: RunningDaemon) -> int:
    """Return the most memory that the daemon's process ever held."""
    status = Path(f"/proc/{_pid(daemon)}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def open_files(daemon: RunningDaemon) -> int:
    """Return how many files and connections the daemon's process holds."""
    return len(list(Path(f"/proc/{_pid(daemon)}/fd").iterdir()))


def _pid(daemon: RunningDaemon) -> int:
    assert daemon.process
    return daemon.process.pid

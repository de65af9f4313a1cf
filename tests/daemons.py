"""Real daemons for tests: each in a folder of its own, stopped by pid."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 30.0


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Return when the condition holds; fail after a while."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {condition}"
        time.sleep(0.01)


class RunningDaemon:
    """A daemon of its own: folder, environment, process.

    `module` is what runs.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.flags = flags
        self.module = "sessiond"
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith("SESSIOND_")
        } | {
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "XDG_DATA_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Where its API listens."""
        return self.folder / "sessiond" / "api.sock"

    @property
    def redis_socket(self) -> Path:
        """Where its embedded server listens."""
        return self.folder / "sessiond" / "redis.sock"

    def configure(self, options: str) -> None:
        """Write its sessions.yaml; before it starts."""
        folder = self.folder / "sessiond"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "sessions.yaml").write_text(options, encoding="utf-8")

    @property
    def log(self) -> str:
        """What it logged so far."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start it and return when it serves."""
        already = self.log.count("daemon.started") if (self.folder / "log").exists() else 0
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "run", *self.flags],
                env=self.environ,
                stdout=log,
                stderr=log,
            )
        started = self.process

        def serving() -> bool:
            assert started.poll() is None, self.log
            return self.log.count("daemon.started") > already

        wait_for(serving, _START_SECONDS)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it with SIGTERM."""
        self._end(signal.SIGTERM)

    def _end(self, wanted: signal.Signals) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(wanted)
            self.process.wait(timeout=30)


@contextmanager
def running_daemon(*flags: str, start: bool = True) -> Iterator[RunningDaemon]:
    """Run a daemon in a fresh folder with a short name (socket paths are limited)."""
    folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    daemon = RunningDaemon(folder, *flags)
    try:
        if start:
            daemon.start()
        yield daemon
    finally:
        daemon.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def impatient_daemon(url: str) -> Iterator[RunningDaemon]:
    """Run a daemon on somebody's Redis that does not wait long for it."""
    with running_daemon("--redis-url", url, start=False) as daemon:
        daemon.environ["SESSIOND_SYNC_RETRY_SECONDS"] = "0.5"
        daemon.environ["SESSIOND_JOURNAL_WAIT_SECONDS"] = "0.3"
        daemon.start()
        yield daemon

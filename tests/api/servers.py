"""A Redis of the test's own that keeps its data, and can be taken back to an older copy of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests.daemons import wait_for
from tests.store.servers import binary_of


class DurableServer:
    """A server with `appendfsync always`, so that what was answered is in its files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._data.mkdir()
        self._binary = binary_of("redis")
        self.socket = folder / "s"

    @property
    def url(self) -> str:
        """Where a daemon finds it."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._process.pid

    def start(self, *options: str) -> None:
        """Start it, with more options perhaps, and return when it answers."""
        kept = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        where = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._data)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *where, *kept, *options], stdout=log, stderr=log
            )
        with Redis(unix_socket_path=str(self.socket)) as redis:

            def answers() -> bool:
                try:
                    return bool(redis.ping())
                except RedisError:
                    return False

            wait_for(answers)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def copy(self, name: str) -> None:
        """Copy its files as they are now."""
        shutil.copytree(self._data, self._folder / name)

    def forget(self, name: str) -> None:
        """Remove a copy."""
        shutil.rmtree(self._folder / name)

    def restore(self, name: str) -> None:
        """Put a copy in the place of its files; it must not run."""
        self.clear()
        self._data.rmdir()
        shutil.copytree(self._folder / name, self._data)

    def clear(self) -> None:
        """Remove its files; it must not run."""
        shutil.rmtree(self._data)
        self._data.mkdir()


@contextmanager
def durable_server() -> Iterator[DurableServer]:
    """Run a server in a fresh folder."""
    folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    try:
        server = DurableServer(folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""What stands between a client and its server, and lets a test stop what passes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path


class Relay:
    """A Unix socket before a server's.

    Frozen it takes everything and passes on nothing; closed, it holds replies back until it is
    opened.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name("relay")
        self.connections = 0
        self.held = 0
        self._target = target
        self._frozen: set[int] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._writers: list[asyncio.StreamWriter] = []

    def freeze(self, *, coming: int = 0) -> None:
        """Freeze the connections there are and the next few; later ones pass."""
        self._frozen = set(range(self.connections + coming + 1))

    def close(self) -> None:
        """Hold replies back from now on; `held` counts them."""
        self._open.clear()

    def open(self) -> None:
        """Hand on what was held back, and what comes."""
        self._open.set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Relay]:
        server = await asyncio.start_unix_server(self._relay, self.path)
        yield self
        server.close()
        for writer in self._writers:
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        self._writers += [writer, far_writer]
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._pass_on(number, reader, far_writer),
                self._pass_on(number, far_reader, writer, replies=True),
            )

    async def _pass_on(
        self,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        replies: bool = False,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if replies and not self._open.is_set():
                    self.held += 1
                    await self._open.wait()
                if number not in self._frozen:
                    writer.write(data)
        writer.close()

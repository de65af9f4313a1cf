"""A way between a daemon and Redis that can be slow, dead, one-way, or forgetful."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from msgspec import Struct

_CHUNK = 1 << 16


class _Link(Struct, eq=False):
    """One connection through the proxy: the daemon's side, and Redis's."""

    here: asyncio.StreamWriter
    there: asyncio.StreamWriter
    tasks: list[asyncio.Task[None]] = []


class ChaosProxy:
    """Passes bytes on between a socket of its own and another one, as well as it is allowed to.

    Attributes:
        delay_seconds: how late every chunk is.
        stops_up: nothing reaches Redis; it is kept, and passed on when this ends.
        stops_down: no answer reaches the daemon; the same.
        holds: what reaches Redis is kept until `release`, even if the daemon is gone by then.
    """

    def __init__(self, listen: Path, target: Path) -> None:
        self.listen = listen
        self.target = target
        self.delay_seconds = 0.0
        self._flows = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._refuses = False
        self._held = False
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._cut_after: int | None = None
        self.calm()

    @property
    def url(self) -> str:
        """Where a daemon finds it."""
        return f"unix://{self.listen}"

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_unix_server(self._accept, str(self.listen))

    async def stop(self) -> None:
        """End everything."""
        if self._server:
            self._server.close()
        await self._drop()

    def calm(self) -> None:
        """Pass everything on at once; what was kept goes on its way."""
        self.delay_seconds = 0.0
        self._refuses = self._held = False
        self._cut_after = None
        for flow in self._flows.values():
            flow.set()

    def slow(self, seconds: float) -> None:
        """Delay every chunk."""
        self.delay_seconds = seconds

    def block(self, way: str) -> None:
        """Let nothing pass in one direction, `up` to Redis or `down` from it."""
        self._flows[way].clear()

    def hold(self) -> None:
        """Keep what goes to Redis until `calm`, even when its daemon is killed meanwhile."""
        self._held = True
        self._flows["up"].clear()

    async def refuse(self) -> None:
        """Drop all connections and take no new ones."""
        self._refuses = True
        await self._drop()

    def cut_answers(self, after_bytes: int) -> None:
        """Break a connection in the middle of what Redis answers next."""
        self._cut_after = after_bytes

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.close()
            return
        try:
            from_redis, to_redis = await asyncio.open_unix_connection(str(self.target))
        except OSError:
            writer.close()
            return
        link = _Link(writer, to_redis)
        link.tasks = [
            asyncio.create_task(self._pass("up", reader, to_redis, link)),
            asyncio.create_task(self._pass("down", from_redis, writer, link)),
        ]
        self._links.add(link)

    async def _pass(
        self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link
    ) -> None:
        try:
            while chunk := await reader.read(_CHUNK):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                await self._flows[way].wait()
                if way == "down" and self._cut_after is not None:
                    chunk, self._cut_after = chunk[: self._cut_after], None
                    writer.write(chunk)
                    break
                writer.write(chunk)
                await writer.drain()
            else:
                if way == "up" and self._held:
                    await self._flows["up"].wait()
                    await asyncio.sleep(0.05)
        except OSError:
            pass
        finally:
            self._close(link)

    def _close(self, link: _Link) -> None:
        if link in self._links and not (self._held and not self._flows["up"].is_set()):
            self._links.discard(link)
            for writer in (link.here, link.there):
                with contextlib.suppress(OSError, RuntimeError):
                    writer.close()

    async def _drop(self) -> None:
        links, self._links = list(self._links), set()
        for link in links:
            for task in link.tasks:
                task.cancel()
            for writer in (link.here, link.there):
                writer.close()
        await asyncio.gather(
            *(task for link in links for task in link.tasks), return_exceptions=True
        )

"""A way between a daemon and Redis that can be slow, dead, one-way, or forgetful."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import Enum
from pathlib import Path

_CHUNK = 1 << 16


class Way(Enum):
    """A direction."""

    TO_REDIS = "up"
    TO_DAEMON = "down"


class _Link:
    """One connection through the proxy: its two sides, and what passes between them.

    `held` is set while what comes from the daemon is kept, even when the daemon is gone by then.
    """

    def __init__(self, daemon: asyncio.StreamWriter, redis: asyncio.StreamWriter) -> None:
        self.daemon = daemon
        self.redis = redis
        self.released = asyncio.Event()
        self.released.set()
        self.tasks: list[asyncio.Task[None]] = []

    def end(self) -> None:
        """Close both sides; what was written to them goes first."""
        for writer in (self.daemon, self.redis):
            with suppress(OSError, RuntimeError):
                writer.close()

    async def break_off(self) -> None:
        """End both sides at once, whatever was on its way."""
        for task in self.tasks:
            task.cancel()
        for writer in (self.daemon, self.redis):
            writer.transport.abort()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class ChaosProxy:
    """Passes bytes on between a socket of its own and another one, as well as it is allowed to.

    Args:
        listen: the socket that a daemon connects to.
        target: Redis's; may be changed, for connections to come.
    """

    def __init__(self, listen: Path, target: Path) -> None:
        self.listen = listen
        self.target = target
        self._delay_seconds = 0.0
        self._open = {way: asyncio.Event() for way in Way}
        self._refuses = False
        self._cut_after: int | None = None
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.calm()

    @property
    def url(self) -> str:
        """Where a daemon finds it."""
        return f"unix://{self.listen}"

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_unix_server(self._accept, str(self.listen))

    async def start_on_loopback(self) -> int:
        """Begin to listen on a TCP port of the loopback instead; returns which."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """End everything."""
        if self._server:
            self._server.close()
        await self.drop()

    def calm(self) -> None:
        """Pass everything on at once; what was kept goes on its way."""
        self._delay_seconds = 0.0
        self._refuses = False
        self._cut_after = None
        for each in self._open.values():
            each.set()
        self.release()

    def slow(self, seconds: float) -> None:
        """Delay every chunk."""
        self._delay_seconds = seconds

    def block(self, way: Way) -> None:
        """Let nothing pass in one direction; it is kept, and passed on by `calm`."""
        self._open[way].clear()

    def hold(self) -> None:
        """Keep what present connections have for Redis until `release`.

        New connections pass. What is kept reaches Redis although its daemon may be gone by then:
        so it goes with requests that are under way in a network when their sender dies.
        """
        for link in self._links:
            link.released.clear()

    def release(self) -> None:
        """Pass on what `hold` kept."""
        for link in self._links:
            link.released.set()

    async def refuse(self) -> None:
        """Drop all connections and take no new ones, until `calm`."""
        self._refuses = True
        await self.drop()

    def cut_answers(self, after_bytes: int) -> None:
        """Break a connection within the next answer of Redis, behind so many bytes of it."""
        self._cut_after = after_bytes

    async def drop(self) -> None:
        """Break all connections."""
        links, self._links = self._links, set()
        for link in links:
            await link.break_off()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            from_redis, to_redis = await asyncio.open_unix_connection(str(self.target))
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, to_redis)
        self._links.add(link)
        link.tasks = [
            asyncio.create_task(self._pass(Way.TO_REDIS, reader, to_redis, link)),
            asyncio.create_task(self._pass(Way.TO_DAEMON, from_redis, writer, link)),
        ]
        for task in link.tasks:
            task.add_done_callback(lambda _: self._forget(link))

    async def _pass(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link
    ) -> None:
        """Pass on one direction of a connection until its source ends it; then end both."""
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                await self._until_allowed(way, link)
                if way is Way.TO_DAEMON and self._cut_after is not None:
                    writer.write(chunk[: self._cut_after])
                    self._cut_after = None
                    await writer.drain()
                    break
                if not writer.is_closing():
                    writer.write(chunk)
                    await writer.drain()
            await self._until_allowed(way, link)
        if way is Way.TO_REDIS or link.released.is_set():  # else what is held is still to go
            link.end()

    async def _until_allowed(self, way: Way, link: _Link) -> None:
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
        await self._open[way].wait()
        if way is Way.TO_REDIS:
            await link.released.wait()

    def _forget(self, link: _Link) -> None:
        if all(task.done() for task in link.tasks):
            self._links.discard(link)

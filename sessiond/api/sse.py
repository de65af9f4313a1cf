"""Server-sent events: framing, heartbeats, and what happens to a slow reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from sessiond.errors import SessiondError
from sessiond.service.live.feed import Event

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
_HEARTBEAT = b": heartbeat\n\n"
_RETRY = b"retry: 500\n\n"
_PIECE_BYTES = 32 * 1024
_BEATS_UNTIL_STALLED = 2


def frame(event: Event) -> bytes:
    """Return an event as bytes of the stream; made once, however many subscribers it has."""
    if not event.frame:
        head = f"id: {event.id}\n" if event.id else ""
        event.frame = f"{head}event: {event.name}\ndata: ".encode() + event.data + b"\n\n"
    return event.frame


def pieces(frames: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """Yield frames in pieces of 32 KiB at most: many small ones together, large ones cut.

    A connection keeps what its reader does not take. That is to be a piece, and not a copy of all:
    the frames themselves are the same for all readers.
    """
    gathered: list[bytes] = []
    size = 0
    for each in frames:
        if gathered and size + len(each) > _PIECE_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
        if len(each) > _PIECE_BYTES:
            whole = memoryview(each)
            yield from (whole[at : at + _PIECE_BYTES] for at in range(0, len(each), _PIECE_BYTES))
        else:
            gathered.append(each)
            size += len(each)
    if gathered:
        yield b"".join(gathered)


class EventStreams:
    """The event streams of one daemon.

    Args:
        heartbeat_seconds: every stream carries a comment this often, so that both ends notice
            a connection that is gone. A reader that takes nothing for two of them is cut.
    """

    def __init__(self, heartbeat_seconds: float) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._stalled_seconds = _BEATS_UNTIL_STALLED * heartbeat_seconds
        self._open: dict[web.StreamResponse, asyncio.Task[None]] = {}
        self._busy: set[web.StreamResponse] = set()
        self._closing = asyncio.Event()
        self._heart: asyncio.Task[None] | None = None

    async def send(
        self, request: web.Request, events: AsyncIterator[list[Event]]
    ) -> web.StreamResponse:
        """Answer with a stream of events, to its end, the client's or the daemon's.

        A slow reader's connection is closed: what waits for it is bounded, and it resumes by
        position.
        """
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        if request.transport:
            request.transport.set_write_buffer_limits(high=0)  # see `_copy`
        await response.write(_RETRY)
        if self._heart is None:
            self._heart = asyncio.create_task(self._beat())
        copying = asyncio.create_task(self._copy(events, response, request.writer))
        self._open[response] = copying
        try:
            await copying
            await response.write_eof()
        except (
            SessiondError,
            ConnectionError,
            TimeoutError,
        ):  # too late for an answer that tells why
            if request.transport:
                request.transport.abort()
        except asyncio.CancelledError:
            if not self._closing.is_set():
                raise
            await response.write_eof()
        finally:
            copying.cancel()
            del self._open[response]
            self._busy.discard(response)
        return response

    def close(self) -> None:
        """End all streams: their clients resume elsewhere, or later, by position."""
        self._closing.set()
        for copying in self._open.values():
            copying.cancel()
        if self._heart:
            self._heart.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            for response, copying in list(self._open.items()):
                if response in self._busy:  # an event is not to be torn, and says as much
                    continue
                try:
                    await asyncio.wait_for(response.write(_HEARTBEAT), timeout=0.01)
                except TimeoutError:
                    continue  # a full buffer says more than a heartbeat
                except ConnectionError:
                    copying.cancel()

    async def _copy(
        self,
        events: AsyncIterator[list[Event]],
        response: web.StreamResponse,
        connection: AbstractStreamWriter,
    ) -> None:
        """Write events as they come, each piece when the reader has taken the one before.

        Raises:
            TimeoutError: the reader takes nothing.
        """
        async for batch in events:
            self._busy.add(response)
            for piece in pieces(map(frame, batch)):
                async with asyncio.timeout(self._stalled_seconds):
                    await response.write(piece)
                    await connection.drain()
            self._busy.discard(response)

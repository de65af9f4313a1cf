"""Server-sent events: framing, heartbeats, and what happens to a slow reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from sessiond.errors import SessiondError
from sessiond.service.feed import Event

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
_HEARTBEAT = b": heartbeat\n\n"
_RETRY = b"retry: 500\n\n"


def frame(event: Event) -> bytes:
    """Return an event as bytes of the stream; made once, however many subscribers it has."""
    if not event.frame:
        head = f"id: {event.id}\n" if event.id else ""
        event.frame = f"{head}event: {event.name}\ndata: ".encode() + event.data + b"\n\n"
    return event.frame


class EventStreams:
    """The event streams of one daemon.

    Args:
        heartbeat_seconds: every stream carries a comment this often, so that both ends notice
            a connection that is gone.
    """

    def __init__(self, heartbeat_seconds: float) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._open: dict[web.StreamResponse, asyncio.Task[None]] = {}
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
        await response.write(_RETRY)
        if self._heart is None:
            self._heart = asyncio.create_task(self._beat())
        copying = asyncio.create_task(_copy(events, response))
        self._open[response] = copying
        try:
            await copying
            await response.write_eof()
        except (SessiondError, ConnectionError):  # too late for an answer that tells why
            if request.transport:
                request.transport.abort()
        except asyncio.CancelledError:
            if not self._closing.is_set():
                raise
            await response.write_eof()
        finally:
            copying.cancel()
            del self._open[response]
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
                try:
                    await asyncio.wait_for(response.write(_HEARTBEAT), timeout=0.01)
                except TimeoutError:
                    continue  # a full buffer says more than a heartbeat
                except ConnectionError:
                    copying.cancel()


async def _copy(events: AsyncIterator[list[Event]], response: web.StreamResponse) -> None:
    async for batch in events:
        await response.write(b"".join([frame(event) for event in batch]))

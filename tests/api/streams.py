"""Event streams, read from a raw socket: chunked, framed, and nothing else in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from tests.api.wire import PATIENCE_SECONDS, Address, Closed, Wire, request_bytes


class StreamEvent(Struct, frozen=True):
    """One event as a browser would see it."""

    name: str
    id: str
    data: bytes

    @property
    def json(self) -> Any:
        """Its decoded data."""
        return msgspec.json.decode(self.data)

    @property
    def offset(self) -> int:
        """The offset of the operation that it tells of."""
        return int(self.id.partition(":")[2])


class EventStream:
    """A subscription to a stream; a context manager that hangs up at its end.

    Args:
        address: where the daemon is.
        path: the stream.
        last_id: a Last-Event-ID to send; None for none.
        seconds: how long to wait for anything to come.
        headers: further headers.
    """

    def __init__(
        self,
        address: Address,
        path: str,
        last_id: str | None = None,
        *,
        seconds: float = PATIENCE_SECONDS,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._seconds = seconds
        wanted = dict(headers or {})
        if last_id is not None:
            wanted["Last-Event-ID"] = last_id
        self.wire = Wire(address, seconds=seconds)
        self.wire.send(request_bytes("GET", path, None, wanted))
        self.head = self.wire.answer()
        self.comments = 0
        self._chunks = self.wire.chunks()
        self._buffer = b""
        self._ready: list[StreamEvent] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.wire.close()

    def next(self) -> StreamEvent:
        """Return the next event.

        Raises:
            Closed: the stream ended, or the connection did.
            TimeoutError: nothing came.
        """
        deadline = time.monotonic() + self._seconds
        while not self._ready:
            if time.monotonic() > deadline:  # heartbeats alone
                raise TimeoutError
            self.read_on()
        return self._ready.pop(0)

    def next_after(self, act: Callable[[], object]) -> StreamEvent:
        """Do something and return the event that comes next."""
        act()
        return self.next()

    def take(self, count: int) -> list[StreamEvent]:
        """Return the next events."""
        return [self.next() for _ in range(count)]

    def until(self, *names: str, session_id: str = "") -> StreamEvent:
        """Return the next event of one of these names, and of a session."""
        while True:
            event = self.next()
            if event.name in names and session_id in ("", event.json.get("session_id")):
                return event

    def rest(self) -> list[str]:
        """Return the names of all that comes until the stream ends or nothing comes."""
        names = []
        try:
            while True:
                names.append(self.next().name)
        except (Closed, TimeoutError):
            return names

    def read_on(self) -> None:
        """Take one chunk: whole frames of comments, events and the retry time.

        Raises:
            Closed: there is none.
        """
        chunk = next(self._chunks, None)
        if chunk is None:
            raise Closed(b"the stream ended")
        *frames, self._buffer = (self._buffer + chunk).split(b"\n\n")
        for frame in frames:
            self._read_frame(frame)

    def _read_frame(self, frame: bytes) -> None:
        fields: dict[bytes, bytes] = {}
        for line in frame.split(b"\n"):
            if line.startswith(b":"):
                self.comments += 1
                continue
            name, colon, value = line.partition(b": ")
            assert colon, frame
            assert name in (b"id", b"event", b"data", b"retry"), frame
            assert name not in fields, frame
            fields[name] = value
        if b"data" in fields:
            event, position = fields[b"event"].decode(), fields.get(b"id", b"").decode()
            self._ready.append(StreamEvent(event, position, fields[b"data"]))

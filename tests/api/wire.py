"""HTTP on raw sockets: what is sent is any bytes, what comes back must be well-formed HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from sessiond.errors import BY_CODE
from sessiond.model import Problem

Address = Path | tuple[str, int]
"""A Unix socket, or host and port."""

PATIENCE_SECONDS = 10.0
"""How long an answer may take before it counts as a hang."""

PROBLEM = "application/problem+json"
EVENT_STREAM = "text/event-stream"
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"

_INTERIM = 200
_NO_BODY = frozenset({204, 304})


class Closed(Exception):
    """The daemon closed the connection where an answer, or more of it, could have been."""


class Answer(Struct, frozen=True):
    """One HTTP answer. Names of headers are in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""

    def header(self, name: str) -> str:
        """Return a header that stands once, or "" without it."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} stands {len(values)} times"
        return values[0] if values else ""

    @property
    def json(self) -> Any:
        """The decoded body."""
        return msgspec.json.decode(self.body)

    @property
    def version(self) -> str:
        """The version in its ETag."""
        return self.header("etag").strip('"')


class Wire:
    """One connection to a daemon."""

    def __init__(self, address: Address, *, seconds: float = PATIENCE_SECONDS) -> None:
        family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(seconds)
        self.socket.connect(str(address) if isinstance(address, Path) else address)
        self._buffer = bytearray()

    def send(self, *pieces: bytes) -> None:
        """Send pieces; that the other end closed meanwhile shows when its answer is read."""
        try:
            for piece in pieces:
                self.socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def head(self) -> Answer:
        """Read status line and headers of an answer.

        Raises:
            Closed: there is none.
        """
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._receive()
        first, *lines = bytes(self._buffer[:end]).decode("ascii").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = first.partition(" ")
        status = rest[:3]
        assert version.startswith("HTTP/"), first
        assert status.isdecimal(), first
        headers = [line.partition(":") for line in lines]
        assert all(colon for _, colon, _ in headers), lines
        return Answer(int(status), [(key.lower(), value.strip()) for key, _, value in headers])

    def answer(self, method: str = "GET") -> Answer:
        """Read one whole answer, or the head of an event stream.

        Informational answers are answers of their own.

        Raises:
            Closed: there is none.
        """
        head = self.head()
        if head.status < _INTERIM or head.status in _NO_BODY or method == "HEAD":
            return head
        if head.header("content-type") == EVENT_STREAM:  # has no end: see `chunks`
            return head
        if head.header("transfer-encoding") == "chunked":
            body = b"".join(self.chunks())
        else:
            body = self._take(int(head.header("content-length")))
        return msgspec.structs.replace(head, body=body)

    def chunks(self) -> Iterator[bytes]:
        """Yield the chunks of a body to its end."""
        while True:
            while (end := self._buffer.find(b"\r\n")) < 0:
                self._receive()
            size = int(bytes(self._buffer[:end]), 16)
            del self._buffer[: end + 2]
            chunk = self._take(size)
            assert self._take(2) == b"\r\n"
            if not size:
                return
            yield chunk

    def ended(self) -> bool:
        """Wait for the other end to close; False when it says more, or nothing for too long."""
        try:
            self._receive()
        except (Closed, TimeoutError) as error:
            return isinstance(error, Closed)
        return False

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._receive()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _receive(self) -> None:
        try:
            received = self.socket.recv(1 << 16)
        except ConnectionResetError as error:
            raise Closed(bytes(self._buffer[:200])) from error
        if not received:
            raise Closed(bytes(self._buffer[:200]))
        self._buffer += received


@contextmanager
def connected(address: Address, *, seconds: float = PATIENCE_SECONDS) -> Iterator[Wire]:
    """Open a connection and hang up at the end."""
    wire = Wire(address, seconds=seconds)
    try:
        yield wire
    finally:
        wire.close()


def request_bytes(
    method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return a request, well-formed as far as its parts are."""
    wanted = {"Host": "localhost", **(headers or {})}
    if body is not None:
        wanted = {"Content-Type": "application/json", **wanted, "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in wanted.items())
    head = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("utf-8", "surrogateescape")
    return head + (body or b"")


def exchange(address: Address, data: bytes, *, method: str = "GET") -> Answer:
    """Send bytes on a connection of their own and return the first answer.

    Raises:
        Closed: the daemon hung up without one.
    """
    with connected(address) as wire:
        wire.send(data)
        return wire.answer(method)


def assert_problem(answer: Answer, status: int | None = None, code: str = "") -> Problem:
    """Return the problem document that an answer must be.

    Args:
        answer: what was answered.
        status: which status it must have; any 4xx if None.
        code: which stable code it must have.
    """
    if status is None:
        assert 400 <= answer.status < 500, (answer.status, answer.body[:500])
    else:
        assert answer.status == status, (answer.status, answer.body[:500])
    assert answer.header("content-type") == PROBLEM, answer
    told = msgspec.json.decode(answer.body, type=Problem)
    assert told.status == answer.status
    assert told.code in BY_CODE
    assert told.type == f"urn:sessiond:problem:{told.code}"
    assert told.title
    assert told.detail
    assert not code or told.code == code, told
    return told

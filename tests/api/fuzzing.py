"""Random requests: from almost right to bytes that are no HTTP at all. Pure, given the random."""

from __future__ import annotations

from random import Random
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from sessiond.api.routes import Route
from tests.api.client import ROUTES, filled

HOSTILE = [
    "", "\x00", "a/b", "..", "*", "a" * 200, "é", "٣", "\U0001f600", "'", '"', "\\", "\n", "%",
    "{}", "-1", "0", "1e9", "null", "NaN", "_version", "deleted", "sessiond:sessions", "own-x",
    "a:1",
]  # fmt: skip
SESSIONS = ["fuzz-0", "fuzz-1", "fuzz-2", "fuzz-3"]
"""Sessions of the fuzzer's own; it deletes none of them."""
RECORDS = ["m0", "m0", *(f"r{number}" for number in range(20))]
NUMBERS: list[Any] = [
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**64,
    -(2**63) - 1,
    10**300,
    1.5,
    -0.0,
    5e-324,
    1e308,
]
FIELDS = [
    "id", "role", "content", "parts", "messages", "type", "text", "tool", "metadata", "title",
    "session_id", "workspace", "preferences", "context", "state", "active_files", "timestamp",
    "status", "debug.sessions", "debug.log_level", "redis.url", "", "_version", "tool_calls",
]  # fmt: skip
METHODS = [
    "GET",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "FROB",
    "get",
]
HEADER_NAMES = [
    "Host", "Origin", "Authorization", "Content-Type", "Content-Encoding", "Transfer-Encoding",
    "Content-Length", "Expect", "Connection", "Upgrade", "If-Match", "Idempotency-Key", "Cookie",
    "Sessiond-Client", "Last-Event-ID", "Accept", "Range", "X-Forwarded-For", "TE", "Trailer",
]  # fmt: skip
HEADER_VALUES = [
    "localhost", "sessiond", "evil.example", "null", "*", "application/json", "text/plain", "gzip",
    "deflate", "br", "chunked", "identity", "100-continue", "close", "keep-alive", "upgrade", "h2c",
    "websocket", "0", "1", "00000000000000:0", '"1"', "k", "Bearer x", "bytes=0-1",
]  # fmt: skip
NASTY = [
    b"\x00", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b":", b"\xff", b"\xed\xa0\x80", b"%00", b"[",
    b"{", b'"', b"9" * 30, b"0\r\n\r\n", b"HTTP/1.1", b"\t", b"Content-Length: 3\r\n", b",",
]  # fmt: skip


class Case(Struct, frozen=True):
    """One request. `whole`: it is complete HTTP, so there must be an answer."""

    data: bytes
    method: str
    whole: bool


class Fuzzer:
    """Makes random cases; the same random makes the same ones."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def case(self) -> Case:
        """Return the next case."""
        random = self._random
        if random.random() < 0.03:
            return Case(random.randbytes(random.randrange(1, 300)), "GET", whole=False)
        route = random.choice(ROUTES)
        method = route.method if random.random() < 0.9 else random.choice(METHODS)
        target = self._target(route)
        body = self._body(route) if route.body or random.random() < 0.05 else None
        head, framed = self._framed(method, target, body)
        data = head + framed
        if random.random() < 0.25:
            return Case(self._mutated(data), method, whole=False)
        touchy = (b"Transfer-Encoding", b"Content-Length", b"Expect", b"Connection", b"Upgrade")
        lines = head.split(b"\r\n")[1:]
        clean = sum(line.startswith(touchy) for line in lines) <= (body is not None)
        return Case(data, method, whole=clean and method != "CONNECT")

    def pieces(self, data: bytes) -> list[bytes]:
        """Cut bytes into what is sent at a time."""
        cuts = sorted(self._random.sample(range(len(data) + 1), min(2, len(data))))
        if self._random.random() < 0.7:
            cuts = []
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def _target(self, route: Route) -> str:
        random = self._random
        values = {
            "session_id": random.choice(SESSIONS),
            "message_id": random.choice(RECORDS),
            "part_id": random.choice(RECORDS),
            "document": random.choice(["metadata", "context", "preferences"]),
            "workspace": "default",
            "number": str(random.randrange(20)),
        }
        if route.method == "DELETE" and route.path.endswith("{session_id}"):
            values["session_id"] = "fuzz-gone"
        if random.random() < 0.2:
            safe = "" if random.random() < 0.8 else "/{}"
            values[random.choice(list(values))] = quote(random.choice(HOSTILE), safe=safe)
        return filled(route, **values) + self._query(route)

    def _query(self, route: Route) -> str:
        random = self._random
        names = [*route.query, *route.query, "limit", "after", "x", ""]
        values = [*HOSTILE, "1", "10", "00000000000000:0", "1.fuzz-0", "sessiond:{fuzz-0}:metadata"]
        pairs = [
            f"{random.choice(names)}={quote(random.choice(values), safe='')}"
            for _ in range(random.choice([0, 0, 0, 0, 1, 2]))
        ]
        return "?" * bool(pairs) + "&".join(pairs)

    def _body(self, route: Route) -> bytes:
        random = self._random
        likely = msgspec.json.encode(self._likely(route))
        kind = random.random()
        if kind < 0.6:
            return likely
        if kind < 0.8:
            return msgspec.json.encode(self._value(0))
        if kind < 0.85:
            return random.randbytes(random.randrange(64))
        return self._mutated(likely)

    def _likely(self, route: Route) -> Any:
        """Something that a route may well take."""
        random = self._random
        text, odd = random.choice(HOSTILE), self._value(2)
        part = {"id": random.choice(RECORDS), "type": "text", "text": text}
        message = {"id": random.choice(RECORDS), "role": "user", "content": text}
        bodies: dict[str, list[Any]] = {
            "/sessions": [{"session_id": random.choice(SESSIONS), "title": text}, {"title": odd}],
            "/messages": [
                message,
                {"role": "user", "content": text, "metadata": {text: odd}},
                {"role": "assistant", "parts": [part, part | {"id": text or "p", "x": odd}]},
                {"messages": [{"role": "tool"}, {"role": "system", "tool_calls": [odd]}]},
                {"messages": [message, message]},
            ],
            "{message_id}": [{"content": text}, {"tool_calls": [odd]}, {"metadata": {text: odd}}],
            "{part_id}": [{"type": text, "text": odd}, {"type": "tool", "tool": odd}],
            "{document}": [{text: odd}, {"title": text}, {"state": {text: odd}}, {}],
            "/resolution": [{"take": "theirs"}, {"take": "merged"}, {"value": odd}, {"take": text}],
            "/presence/{instance}": [
                {"active_files": [text, odd]},
                {"active_files": ["a.py", text]},
                {},
            ],
            "/cache/lookup": [
                {"root": "/usr", "calls": [{"tool": text, "path": text, "arguments": odd}]},
                {"root": text, "calls": [{"tool": "t", "path": ".", "scope": "tree"}]},
            ],
            "/cache/invalidate": [{"paths": [text]}, {"paths": ["a", odd]}],
            "/config": [{"debug.log_level": "info"}, {text: odd}],
        }
        found = [bodies[end] for end in bodies if route.path.endswith(end)]
        return random.choice([*found, [odd]][0])

    def _value(self, depth: int) -> Any:
        random = self._random
        kind = random.randrange(8 if depth < 4 else 5)
        match kind:
            case 0:
                return random.choice([None, True, False])
            case 1:
                return random.choice(NUMBERS)
            case 2 | 3 | 4:
                return random.choice(HOSTILE)
            case 5:
                return [self._value(depth + 1) for _ in range(random.randrange(4))]
            case _:
                keys = random.choices(FIELDS + HOSTILE, k=random.randrange(5))
                return {key: self._value(depth + 1) for key in keys}

    def _framed(self, method: str, target: str, body: bytes | None) -> tuple[bytes, bytes]:
        random = self._random
        headers = [("Host", "localhost")]
        framed = b""
        if body is not None:
            headers.append(("Content-Type", "application/json"))
            if random.random() < 0.8:
                headers.append(("Content-Length", str(len(body))))
                framed = body
            else:
                headers.append(("Transfer-Encoding", "chunked"))
                size = random.randrange(1, 20)
                pieces = [body[at : at + size] for at in range(0, len(body), size)]
                framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
                framed += b"0\r\n\r\n"
        for _ in range(random.choice([0, 0, 0, 0, 1, 2, 4])):
            value = random.choice(HEADER_VALUES + HOSTILE)
            headers.append((random.choice(HEADER_NAMES), value))
        random.shuffle(headers)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"{method} {target} HTTP/1.1\r\n{lines}\r\n"
        return head.encode("utf-8", "replace"), framed

    def _mutated(self, data: bytes) -> bytes:
        random = self._random
        mutated = bytearray(data)
        for _ in range(random.choice([1, 1, 2, 5])):
            at = random.randrange(len(mutated) + 1)
            to = min(len(mutated), at + random.randrange(1, 20))
            match random.randrange(5):
                case 0:
                    mutated[at:at] = random.choice(NASTY)
                case 1:
                    del mutated[at:to]
                case 2:
                    mutated[at:at] = mutated[at:to]
                case 3 if at < len(mutated):
                    mutated[at] ^= 1 << random.randrange(8)
                case _:
                    mutated[at:to] = random.randbytes(to - at)
        return bytes(mutated)

"""A small client that holds every answer it gets against the OpenAPI document and the types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec

from sessiond.api.archive import archive_routes
from sessiond.api.caching import cache_routes
from sessiond.api.cleanup import cleanup_routes
from sessiond.api.journal import journal_routes
from sessiond.api.opencode import opencode_routes
from sessiond.api.repairing import repair_routes
from sessiond.api.routes import EVENT_STREAM, Route, routes
from sessiond.api.tracing import trace_routes
from sessiond.api.users import user_routes
from tests.api.wire import PROBLEM, Answer, assert_problem, exchange, request_bytes

ROUTES: list[Route] = [
    *trace_routes(MagicMock()),
    *cache_routes(MagicMock()),
    *routes(MagicMock(), MagicMock(), MagicMock()),
    *opencode_routes(MagicMock()),
    *journal_routes(MagicMock()),
    *repair_routes(MagicMock()),
    *archive_routes(MagicMock()),
    *cleanup_routes(MagicMock()),
    *user_routes(MagicMock()),
]
"""The table of routes, without anything behind it."""

_PARAMETER = re.compile(r"\{\w+\}")


def filled(route: Route, **values: str) -> str:
    """Return a route's path with names in place of its parameters."""
    names = {
        "session_id": "ses_1",
        "message_id": "msg_1",
        "part_id": "prt_1",
        "document": "context",
        "number": "1",
        "workspace": "default",
        "user_id": "user123",
        "instance": "oc-1",
        "key": "0123456789abcdef.0123456789abcdef0123456789abcdef",
    }
    return route.path.format(**(names | values))


def route_of(method: str, path: str) -> Route | None:
    """Return the route that serves a path, as the first of the table that fits it."""
    bare = path.partition("?")[0]
    for route in ROUTES:
        pattern = "[^/]+".join(map(re.escape, _PARAMETER.split(route.path)))
        if route.method == method and re.fullmatch(pattern, bare):
            return route
    return None


def name_of(route: Route) -> str:
    """Return how tests call a route."""
    return f"{route.method} {route.path}"


def assert_documented(document: Any, method: str, path: str, answer: Answer) -> None:
    """Hold an answer against the OpenAPI document and against the route's type."""
    if answer.status >= 500:
        return  # what may answer so is the matter of the test at hand
    route = route_of(method, path)
    if route is None:
        assert answer.status >= 400, (method, path, answer.status)
        return
    described = document["paths"][route.path][method.lower()]["responses"]
    media_type = answer.header("content-type")
    if answer.status >= 400:
        assert media_type in described["default"]["content"], (method, path, answer)
        assert media_type == PROBLEM
        return
    assert str(answer.status) in described, (method, path, answer.status)
    content = described[str(answer.status)].get("content", {})
    assert list(content) == ([media_type] if media_type else []), (method, path, media_type)
    if route.answer is not None and media_type != EVENT_STREAM:
        msgspec.json.decode(answer.body, type=route.answer)


class Client:
    """Calls of a daemon over its Unix socket, each on a connection of its own.

    Every answer is checked by `assert_documented`.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.document = exchange(socket, request_bytes("GET", "/openapi.json")).json

    def call(self, method: str, path: str, body: Any = None, /, **headers: str) -> Answer:
        """Send a request and return its answer.

        Args:
            method: its method.
            path: its target.
            body: bytes as they are, None for no body, else something to encode.
            headers: with `_` for `-`.
        """
        data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = exchange(self.socket, request_bytes(method, path, data, named), method=method)
        assert_documented(self.document, method, path, answer)
        return answer

    def get(self, path: str, **headers: str) -> Any:
        """Return the body of a GET that must succeed."""
        answer = self.call("GET", path, **headers)
        assert answer.status == 200, answer
        return answer.json

    def assert_refused(
        self, method: str, path: str, body: Any = None, /, status: int | None = None, **headers: str
    ) -> str:
        """Send what must be refused with a 4xx problem, and return its detail and hint."""
        told = assert_problem(self.call(method, path, body, **headers), status)
        return f"{told.detail} {told.hint or ''}"

    def create(self, session_id: str, **content: Any) -> str:
        """Create a session and return its path."""
        body = {"session_id": session_id, **content}
        answer = self.call("POST", "/v1/sessions", body, Prefer="wait=20")
        assert answer.status == 201, answer
        return f"/v1/sessions/{session_id}"

    def append(self, path: str, message_id: str, content: str = "hello") -> str:
        """Append a message to a session and return its version."""
        message = {"id": message_id, "role": "user", "content": content}
        answer = self.call("POST", f"{path}/messages", message, Prefer="wait=20")
        assert answer.status == 201, answer
        return str(answer.json["position"])

    def position(self, path: str) -> str:
        """Return where a session's log ends."""
        return str(self.get(f"{path}/position")["position"])

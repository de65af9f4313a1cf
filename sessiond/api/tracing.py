"""The route of the debug mode: what happened to a session's operations."""

from __future__ import annotations

from aiohttp import web

from sessiond.api import requests as read
from sessiond.api.answers import answer
from sessiond.api.routes import Route
from sessiond.service.health.tracing import SessionTrace, Tracer

_MOST_EVENTS = 10_000


class TraceHandlers:
    """One method per route."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def trace(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/trace."""
        session_id = read.session_id(request)
        limit = read.number(request, "limit", 1000, 1, _MOST_EVENTS)
        operation = request.query.get("operation", "")
        return answer(await self._tracer.read(session_id, operation, limit))


def trace_routes(handlers: TraceHandlers) -> list[Route]:
    """Return the route of the debug mode."""
    return [
        Route(
            "GET",
            "/v1/sessions/{session_id}/trace",
            handlers.trace,
            "With debug.sessions: which stage each operation reached, at which daemon and when",
            SessionTrace,
            query=("operation", "limit"),
        ),
    ]

"""The routes about archives: a session leaves Redis, and comes back."""

from __future__ import annotations

from aiohttp import web

from sessiond.api import requests as read
from sessiond.api.answers import answer
from sessiond.api.routes import Route
from sessiond.model import ArchivedSession
from sessiond.service.retention.archiving import IDLE_SECONDS, Archiving

_MOST_IDLE_SECONDS = 10 * 365 * 24 * 3600


class ArchiveHandlers:
    """One method per route."""

    def __init__(self, archiving: Archiving) -> None:
        self._archiving = archiving

    async def archive(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{session_id}/archive."""
        idle = read.number(request, "idle_seconds", round(IDLE_SECONDS), 0, _MOST_IDLE_SECONDS)
        session_id = read.session_id(request)
        given = read.write_request(request)
        return answer(await self._archiving.archive(session_id, given, idle_seconds=idle))

    async def restore(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{session_id}/restore."""
        return answer(await self._archiving.restore(read.session_id(request)))


def archive_routes(handlers: ArchiveHandlers) -> list[Route]:
    """Return the routes about archives."""
    session = "/v1/sessions/{session_id}"
    return [
        Route(
            "POST",
            session + "/archive",
            handlers.archive,
            "Archive a session that nobody uses: it leaves Redis, and comes back when it is loaded",
            ArchivedSession,
            query=("idle_seconds",),
            headers=("Sessiond-Client",),
        ),
        Route(
            "POST",
            session + "/restore",
            handlers.restore,
            "Bring an archived session back",
            ArchivedSession,
        ),
    ]

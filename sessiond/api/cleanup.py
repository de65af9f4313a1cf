"""The route that cleans up."""

from __future__ import annotations

from aiohttp import web

from sessiond.api import requests as read
from sessiond.api.answers import answer
from sessiond.api.routes import Route
from sessiond.service.retention.cleanup import Cleanup
from sessiond.service.status import CleanupReport


class CleanupHandlers:
    """One method per route."""

    def __init__(self, cleanup: Cleanup) -> None:
        self._cleanup = cleanup

    async def clean_up(self, request: web.Request) -> web.Response:
        """POST /v1/cleanup?dry_run=true."""
        if read.flag(request, "dry_run"):
            return answer(await self._cleanup.preview())
        return answer(await self._cleanup.run())


def cleanup_routes(handlers: CleanupHandlers) -> list[Route]:
    """Return the routes about cleaning up."""
    return [
        Route(
            "POST",
            "/v1/cleanup",
            handlers.clean_up,
            "Archive, and perhaps delete, the sessions over the limits of retention; or say which",
            CleanupReport,
            query=("dry_run",),
        )
    ]

"""The routes about the journal: where it stands, whether it is whole, and what lies in it."""

from __future__ import annotations

from aiohttp import web

from sessiond.api import requests as read
from sessiond.api.answers import answer
from sessiond.api.routes import Route
from sessiond.journal import Journal
from sessiond.journal.reports import EntryPage, Verdict
from sessiond.service.durable.outbox import Outbox
from sessiond.service.status import OutboxStatus

_MOST_NUMBER = 10**15 - 1


class JournalHandlers:
    """One method per route."""

    def __init__(self, journal: Journal, outbox: Outbox) -> None:
        self._journal = journal
        self._outbox = outbox

    async def journal_status(self, request: web.Request) -> web.Response:
        """GET /v1/journal."""
        return answer(await self._outbox.status())

    async def verify(self, request: web.Request) -> web.Response:
        """POST /v1/journal/verification."""
        return answer(await self._journal.verify())

    async def entries(self, request: web.Request) -> web.Response:
        """GET /v1/journal/entries."""
        after = read.number(request, "after", 0, 0, _MOST_NUMBER)
        return answer(await self._journal.page(after))


def journal_routes(handlers: JournalHandlers) -> list[Route]:
    """Return the routes about the journal."""
    return [
        Route("GET", "/v1/journal", handlers.journal_status, "What waits for Redis", OutboxStatus),
        Route(
            "POST",
            "/v1/journal/verification",
            handlers.verify,
            "Read all of the journal and compare every row with its seal",
            Verdict,
        ),
        Route(
            "GET",
            "/v1/journal/entries",
            handlers.entries,
            "What lies in the journal, a page at a time, the oldest first",
            EntryPage,
            query=("after",),
        ),
    ]

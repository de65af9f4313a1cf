"""The routes about damage in Redis and in files: looking for it, and repairing it."""

from __future__ import annotations

import msgspec
from aiohttp import web

from sessiond.api import requests as read
from sessiond.api.answers import answer
from sessiond.api.routes import Route
from sessiond.errors import InvalidInput
from sessiond.service.health.repairing import Repairer, RepairPlan, RepairRequest
from sessiond.service.health.scanning import ScanPage, ScanRequest
from sessiond.service.health.whole_scan import WholeScan
from sessiond.sync.names import checked

_SCAN = msgspec.json.Decoder(ScanRequest)
_REPAIR = msgspec.json.Decoder(RepairRequest)


class RepairHandlers:
    """One method per route."""

    def __init__(self, scanner: WholeScan, repairer: Repairer) -> None:
        self._scanner = scanner
        self._repairer = repairer

    async def scan(self, request: web.Request) -> web.Response:
        """POST /v1/scan."""
        wanted = await read.body(request, _SCAN)
        if not wanted.session_ids:
            return answer(await self._scanner.page(wanted.cursor, wanted.limit))
        if wanted.cursor:
            raise InvalidInput(
                "session_ids and cursor exclude one another",
                hint="a cursor continues the scan of all sessions",
            )
        ids = [checked("session_id", name) for name in wanted.session_ids]
        return answer(await self._scanner.sessions(ids))

    async def repair(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{session_id}/repair."""
        session_id = read.session_id(request)
        wanted = await read.body(request, _REPAIR)
        repair = self._repairer.apply if wanted.apply else self._repairer.plan
        return answer(await repair(session_id))


def repair_routes(handlers: RepairHandlers) -> list[Route]:
    """Return the routes about damage."""
    return [
        Route(
            "POST",
            "/v1/scan",
            handlers.scan,
            "Compare all keys of sessions with their logs, and check their files: of some, or of "
            "all, a page at a time",
            ScanPage,
            ScanRequest,
        ),
        Route(
            "POST",
            "/v1/sessions/{session_id}/repair",
            handlers.repair,
            "Plan the repair of a damaged session, and do it if `apply` is true",
            RepairPlan,
            RepairRequest,
        ),
    ]

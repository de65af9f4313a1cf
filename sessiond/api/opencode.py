"""The routes that the plugin in an opencode uses, and what people ask about them."""

from __future__ import annotations

import msgspec
from aiohttp import web
from msgspec import Struct

from sessiond.api import requests as read
from sessiond.api.answers import answer
from sessiond.api.routes import EVENT_STREAM, Route
from sessiond.api.sse import EventStreams
from sessiond.opencode.protocol import (
    Applied,
    Apply,
    Attached,
    Attachment,
    PushedEvents,
    Turn,
    WantedTurn,
)
from sessiond.service.opencode.opencodes import Opencodes
from sessiond.service.opencode.overview import Overview
from sessiond.sync.names import checked


class Sharing(Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether a session of an opencode on this machine is shared."""

    shared: bool


class Imported(Struct, kw_only=True):
    """How many sessions of this machine's opencodes are shared now."""

    sessions: int


_ATTACHMENT = msgspec.json.Decoder(Attachment)
_PUSHED = msgspec.json.Decoder(PushedEvents)
_APPLIED = msgspec.json.Decoder(Applied)
_WANTED = msgspec.json.Decoder(WantedTurn)
_SHARING = msgspec.json.Decoder(Sharing)


class OpencodeHandlers:
    """One method per route."""

    def __init__(self, opencodes: Opencodes, streams: EventStreams) -> None:
        self._opencodes = opencodes
        self._streams = streams

    async def attach(self, request: web.Request) -> web.Response:
        """PUT /v1/opencode/instances/{instance}."""
        attachment = await read.body(request, _ATTACHMENT)
        return answer(await self._opencodes.attach(_instance(request), attachment))

    async def commands(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/opencode/instances/{instance}/commands."""
        async with self._opencodes.commands(_instance(request)) as commands:
            return await self._streams.send(request, commands)

    async def push(self, request: web.Request) -> web.Response:
        """POST /v1/opencode/instances/{instance}/events."""
        pushed = await read.body(request, _PUSHED)
        await self._opencodes.pushed(_instance(request), pushed.events)
        return web.Response(status=204)

    async def applied(self, request: web.Request) -> web.Response:
        """POST /v1/opencode/instances/{instance}/applied."""
        self._opencodes.applied(_instance(request), await read.body(request, _APPLIED))
        return web.Response(status=204)

    async def take_turn(self, request: web.Request) -> web.Response:
        """POST /v1/opencode/instances/{instance}/turns."""
        wanted = await read.body(request, _WANTED)
        return answer(await self._opencodes.turn(_instance(request), wanted))

    async def end_turn(self, request: web.Request) -> web.Response:
        """DELETE /v1/opencode/instances/{instance}/turns/{session_id}."""
        self._opencodes.end_turn(_instance(request), read.session_id(request))
        return web.Response(status=204)

    async def overview(self, request: web.Request) -> web.Response:  # noqa: ARG002 - no parameters
        """GET /v1/opencode."""
        return answer(await self._opencodes.overview())

    async def import_sessions(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """POST /v1/opencode/import."""
        return answer(Imported(sessions=await self._opencodes.import_sessions()))

    async def set_sharing(self, request: web.Request) -> web.Response:
        """PUT /v1/opencode/sessions/{session_id}/sharing."""
        sharing = await read.body(request, _SHARING)
        await self._opencodes.set_sharing(read.session_id(request), shared=sharing.shared)
        return answer(sharing)


def opencode_routes(handlers: OpencodeHandlers) -> list[Route]:
    """Return the routes of the plugin, and those about it."""
    instance = "/v1/opencode/instances/{instance}"
    return [
        Route(
            "POST",
            instance + "/events",
            handlers.push,
            "Tell what happened in an attached opencode, in its order",
            None,
            PushedEvents,
            status=204,
        ),
        Route(
            "POST",
            instance + "/applied",
            handlers.applied,
            "Report what became of a batch of events",
            None,
            Applied,
            status=204,
        ),
        Route(
            "POST",
            instance + "/turns",
            handlers.take_turn,
            "Ask for the right to run a turn in a session",
            Turn,
            WantedTurn,
        ),
        Route(
            "DELETE",
            instance + "/turns/{session_id}",
            handlers.end_turn,
            "Give the right to run a turn back",
            None,
            status=204,
        ),
        Route(
            "GET",
            instance + "/commands",
            handlers.commands,
            "Follow what an attached opencode is to do",
            Apply,
            media_type=EVENT_STREAM,
        ),
        Route(
            "PUT",
            instance,
            handlers.attach,
            "Attach an opencode process",
            Attached,
            Attachment,
        ),
        Route("GET", "/v1/opencode", handlers.overview, "Attached opencodes", Overview),
        Route(
            "POST",
            "/v1/opencode/import",
            handlers.import_sessions,
            "Share the sessions from before the plugin was installed",
            Imported,
        ),
        Route(
            "PUT",
            "/v1/opencode/sessions/{session_id}/sharing",
            handlers.set_sharing,
            "Share a session of an opencode on this machine, or keep it private",
            Sharing,
            Sharing,
        ),
    ]


def _instance(request: web.Request) -> str:
    return checked("client", request.match_info["instance"])

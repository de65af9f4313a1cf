"""The routes' handlers: a request in, one call of a service, an answer out."""

from __future__ import annotations

import msgspec
from aiohttp import web
from msgspec import Struct

from sessiond.api import requests as read
from sessiond.api.answers import answer, found_headers
from sessiond.api.sse import EventStreams
from sessiond.model import (
    ConflictPage,
    NewPresence,
    PositionReply,
    PresentSessions,
)
from sessiond.policy.window import LEAST_TOKENS
from sessiond.service.content.conflicts import MOST, Conflicts
from sessiond.service.content.presence import Presences
from sessiond.service.content.sessions import Filter, Sessions
from sessiond.service.content.windows import MOST_TOKENS, Windows
from sessiond.service.live.feeds import Feeds
from sessiond.service.offline.reading import Reading
from sessiond.sync.position import START, parse_position

_PRESENCE = msgspec.json.Decoder(NewPresence)
_MOST_PER_PAGE = 10_000
_CONFLICTS_PER_PAGE = 1_000


class Services(Struct, frozen=True):
    """What the routes call."""

    reading: Reading
    windows: Windows
    sessions: Sessions
    conflicts: Conflicts
    feeds: Feeds
    presences: Presences
    streams: EventStreams


class Handlers:
    """One method per route."""

    def __init__(self, services: Services) -> None:
        self._reading = services.reading
        self._windows = services.windows
        self._sessions = services.sessions
        self._conflicts = services.conflicts
        self._feeds = services.feeds
        self._presences = services.presences
        self._streams = services.streams

    async def list_sessions(self, request: web.Request) -> web.Response:
        """GET /v1/sessions."""
        filters = ("workspace", "status", "user_id", "environment")
        wanted = Filter(**{name: request.query.get(name) for name in filters})
        limit = read.number(request, "limit", 50, 1, 500)
        found = await self._reading.list_page(wanted, request.query.get("cursor"), limit)
        return answer(found.value, headers=found_headers(found))

    async def load_session(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}."""
        found = await self._reading.load(read.session_id(request))
        return answer(found.value, headers=found_headers(found))

    async def window(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/window."""
        budget = read.optional_number(request, "tokens", LEAST_TOKENS, MOST_TOKENS)
        found = await self._reading.load(read.session_id(request))
        view = await self._windows.of(found.value, budget, request.query.get("strategy"))
        return answer(view, headers=found_headers(found))

    async def position(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/position."""
        session_id = read.session_id(request)
        found = await self._reading.position(session_id)
        position = str(found.value)
        reply = PositionReply(session_id=session_id, position=position)
        return answer(reply, version=position, headers=found_headers(found))

    async def operations(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/operations."""
        after = parse_position(request.query.get("after", "0"))
        limit = read.number(request, "limit", 500, 1, 1000)
        found = await self._reading.operations(read.session_id(request), after, limit)
        return answer(found.value, headers=found_headers(found))

    async def page_messages(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/messages."""
        after = read.number(request, "after", 0, 0, 10**15 - 1)
        limit = read.number(request, "limit", 100, 1, _MOST_PER_PAGE)
        found = await self._reading.page(read.session_id(request), after, limit)
        return answer(found.value, headers=found_headers(found))

    async def read_message(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/messages/{message_id}."""
        found = await self._reading.message(read.session_id(request), read.message_id(request))
        message = found.value
        return answer(message.message, version=message.version, headers=found_headers(found))

    async def read_document(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/{document}."""
        name = read.document_name(request)
        found = await self._reading.document(read.session_id(request), name)
        document = found.value
        return answer(document.value, version=document.version, headers=found_headers(found))

    async def list_conflicts(self, request: web.Request) -> web.Response:
        """GET /v1/conflicts."""
        limit = read.number(request, "limit", _CONFLICTS_PER_PAGE, 1, MOST)
        found = await self._conflicts.of_all(read.conflict_state(request), limit)
        return answer(ConflictPage(conflicts=found))

    async def session_conflicts(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/conflicts."""
        session_id, state = read.session_id(request), read.conflict_state(request)
        limit = read.number(request, "limit", _CONFLICTS_PER_PAGE, 1, MOST)
        found = await self._conflicts.of_session(session_id, state, limit)
        return answer(ConflictPage(conflicts=found))

    async def read_conflict(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/conflicts/{number}."""
        where = read.session_id(request), read.conflict_number(request)
        return answer(await self._conflicts.read(*where))

    async def send_live(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{session_id}/live."""
        body = await read.any_body(request)
        session_id = read.session_id(request)
        await self._sessions.send_live(session_id, body, read.write_request(request))
        return web.Response(status=202)

    async def presence(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/presence."""
        return answer(await self._presences.present(read.session_id(request)))

    async def announce(self, request: web.Request) -> web.Response:
        """PUT /v1/sessions/{session_id}/presence/{instance}."""
        new = await read.body(request, _PRESENCE)
        where = read.session_id(request), read.instance(request)
        found = await self._presences.announce(*where, new.active_files, read.client(request))
        return answer(found)

    async def leave(self, request: web.Request) -> web.Response:
        """DELETE /v1/sessions/{session_id}/presence/{instance}."""
        await self._presences.leave(read.session_id(request), read.instance(request))
        return web.Response(status=204)

    async def present_sessions(self, request: web.Request) -> web.Response:
        """GET /v1/presence."""
        limit = read.number(request, "limit", 50, 1, 500)
        return answer(PresentSessions(sessions=await self._presences.everywhere(limit)))

    async def session_events(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/sessions/{session_id}/events."""
        text = request.headers.get("Last-Event-ID") or request.query.get("after")
        session_id = read.session_id(request)
        if text is None:
            after = (await self._reading.position(session_id)).value
        else:
            after = parse_position(text) if text else START
        async with self._feeds.session(session_id, after) as events:
            self._reading.see(session_id)
            return await self._streams.send(request, events)

    async def workspace_events(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/workspaces/{workspace}/events."""
        last_id = request.headers.get("Last-Event-ID", "")
        async with self._feeds.workspace(read.workspace(request), last_id) as events:
            return await self._streams.send(request, events)

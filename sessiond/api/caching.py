"""The routes of a session's cache of what tools answered."""

from __future__ import annotations

import msgspec
from aiohttp import web

from sessiond.api import requests as read
from sessiond.api.answers import answer
from sessiond.api.routes import Route
from sessiond.model import (
    CacheAnswer,
    CacheAnswers,
    CacheContents,
    CacheDropped,
    CacheLookup,
    CacheStored,
    ChangedFiles,
    NewCacheValue,
)
from sessiond.service.cached.caching import Caches

_LOOKUP = msgspec.json.Decoder(CacheLookup)
_VALUE = msgspec.json.Decoder(NewCacheValue)
_CHANGED = msgspec.json.Decoder(ChangedFiles)


class CacheHandlers:
    """One method per route."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches

    async def look_up(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{session_id}/cache/lookup."""
        lookup = await read.body(request, _LOOKUP)
        return answer(await self._caches.lookup(read.session_id(request), lookup))

    async def read(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/cache/{key}."""
        root = request.query.get("root", "")
        where = read.session_id(request), read.cache_key(request)
        return answer(await self._caches.read(*where, root))

    async def put(self, request: web.Request) -> web.Response:
        """PUT /v1/sessions/{session_id}/cache/{key}."""
        new = await read.body(request, _VALUE)
        where = read.session_id(request), read.cache_key(request)
        return answer(await self._caches.put(*where, new))

    async def drop(self, request: web.Request) -> web.Response:
        """DELETE /v1/sessions/{session_id}/cache/{key}."""
        where = read.session_id(request), read.cache_key(request)
        return answer(await self._caches.drop(*where))

    async def invalidate(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{session_id}/cache/invalidate."""
        changed = await read.body(request, _CHANGED)
        return answer(await self._caches.invalidate(read.session_id(request), changed.paths))

    async def clear(self, request: web.Request) -> web.Response:
        """DELETE /v1/sessions/{session_id}/cache."""
        return answer(await self._caches.clear(read.session_id(request)))

    async def contents(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{session_id}/cache."""
        return answer(await self._caches.contents(read.session_id(request)))


def cache_routes(handlers: CacheHandlers) -> list[Route]:
    """Return the routes; they stand before those that take any document's name."""
    cache = "/v1/sessions/{session_id}/cache"
    one = cache + "/{key}"
    return [
        Route(
            "POST",
            cache + "/lookup",
            handlers.look_up,
            "Look for what tools answered to calls, where that is right now on this machine",
            CacheAnswers,
            CacheLookup,
        ),
        Route(
            "POST",
            cache + "/invalidate",
            handlers.invalidate,
            "Drop what depends on files that changed, and tell who listens",
            CacheDropped,
            ChangedFiles,
        ),
        Route(
            "GET",
            one,
            handlers.read,
            "What is cached under a key, if it is right now on this machine",
            CacheAnswer,
            query=("root",),
        ),
        Route(
            "PUT",
            one,
            handlers.put,
            "Cache what a tool answered, if the files are as before it ran",
            CacheStored,
            NewCacheValue,
        ),
        Route("DELETE", one, handlers.drop, "Drop what is cached under a key", CacheDropped),
        Route(
            "GET",
            cache,
            handlers.contents,
            "What a session has cached, and how well that serves",
            CacheContents,
        ),
        Route("DELETE", cache, handlers.clear, "Drop all that a session has cached", CacheDropped),
    ]

"""The routes about users: the preferences that their new sessions begin with."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from sessiond.api import requests as read
from sessiond.api.answers import COMMITTED, DURABILITY, answer, found_headers
from sessiond.api.routes import WRITE, Route
from sessiond.errors import InvalidInput
from sessiond.model import JOURNALED
from sessiond.service.durable.outbox import Outbox
from sessiond.service.durable.waiting import Journaled
from sessiond.service.offline.preferences import KnownPreferences


class UserHandlers:
    """One method per route.

    Args:
        preferences: reads them, also while Redis is away.
        outbox: takes the changes.
    """

    def __init__(self, preferences: KnownPreferences, outbox: Outbox) -> None:
        self._preferences = preferences
        self._outbox = outbox

    async def read_preferences(self, request: web.Request) -> web.Response:
        """GET /v1/users/{user_id}/preferences."""
        found = await self._preferences.read(read.user_id(request))
        return answer(found.value, headers=found_headers(found))

    async def change_preferences(self, request: web.Request) -> web.Response:
        """PATCH /v1/users/{user_id}/preferences."""
        user_id, wanted = read.user_id(request), read.write_request(request)
        if wanted.expected or wanted.base:
            raise InvalidInput(
                "a user's preferences have no versions: neither If-Match nor Sessiond-Base",
                hint="send the fields that change; of each the latest change stands",
            )
        patch = await read.any_body(request)
        write = await self._preferences.checked_change(user_id, patch, wanted)
        outcome = await self._outbox.submit(write, read.patience(request))
        if isinstance(outcome, Journaled):
            known = await self._preferences.known(user_id)
            return answer(known, status=202, headers={DURABILITY: JOURNALED})
        return answer(outcome.result.preferences, headers=COMMITTED)


def user_routes(handlers: UserHandlers) -> list[Route]:
    """Return these routes."""
    path = "/v1/users/{user_id}/preferences"
    return [
        Route(
            "GET",
            path,
            handlers.read_preferences,
            "What new sessions of a user begin with",
            dict[str, Any],
            offline=True,
        ),
        Route(
            "PATCH",
            path,
            handlers.change_preferences,
            "Change a user's preferences with a JSON Merge Patch; sessions keep theirs",
            dict[str, Any],
            dict[str, Any],
            headers=WRITE,
        ),
    ]

"""The routes about users: the preferences that their new sessions begin with."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from sessiond.api import requests as read
from sessiond.api.answers import answer
from sessiond.api.routes import Route
from sessiond.service.content.preferences import UserPreferences


class UserHandlers:
    """One method per route."""

    def __init__(self, preferences: UserPreferences) -> None:
        self._preferences = preferences

    async def read_preferences(self, request: web.Request) -> web.Response:
        """GET /v1/users/{user_id}/preferences."""
        return answer(await self._preferences.read(read.user_id(request)))

    async def change_preferences(self, request: web.Request) -> web.Response:
        """PATCH /v1/users/{user_id}/preferences."""
        user_id, patch = read.user_id(request), await read.any_body(request)
        return answer(await self._preferences.change(user_id, patch))


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
        ),
        Route(
            "PATCH",
            path,
            handlers.change_preferences,
            "Change a user's preferences with a JSON Merge Patch; sessions keep theirs",
            dict[str, Any],
            dict[str, Any],
        ),
    ]

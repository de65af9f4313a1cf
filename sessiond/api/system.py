"""Routes about the daemon itself: health, status, options, and a look into Redis."""

from __future__ import annotations

from typing import Protocol

import msgspec
from aiohttp import web

from sessiond.api import requests as read
from sessiond.api.answers import answer
from sessiond.errors import InvalidInput
from sessiond.service.status import Diagnosis, Health, KeyContent, Status

_OPTIONS = msgspec.json.Decoder(dict[str, str | bool | int | float])


class Daemon(Protocol):
    """What these routes ask of the daemon."""

    async def health(self) -> Health:
        """Tell whether the daemon and its Redis can work."""

    async def status(self) -> Status:
        """Tell what the daemon does.

        Raises:
            StoreUnavailable: Redis does not answer.
        """

    async def diagnose(self) -> Diagnosis:
        """Tell what is wrong here, and what can be promised; also while Redis is away."""

    def options(self) -> dict[str, str]:
        """Return the options in force, secrets hidden."""

    def change_options(self, changes: dict[str, str]) -> dict[str, str]:
        """Change options of the running daemon and return all.

        Raises:
            ConfigurationError: unknown, of another type, or not changeable while running.
        """

    async def read_key(self, key: str, limit: int) -> KeyContent:
        """Return what a key of ours holds.

        Raises:
            NotFound: there is no such key, or it is none of ours.
        """


class System:
    """One method per route."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.openapi_document = b""

    async def health(self, request: web.Request) -> web.Response:
        """GET /v1/health."""
        return answer(await self._daemon.health())

    async def ready(self, request: web.Request) -> web.Response:
        """GET /v1/ready."""
        health = await self._daemon.health()
        return answer(health, status=200 if health.ready else 503)

    async def status(self, request: web.Request) -> web.Response:
        """GET /v1/status."""
        return answer(await self._daemon.status())

    async def doctor(self, request: web.Request) -> web.Response:
        """GET /v1/doctor."""
        return answer(await self._daemon.diagnose())

    async def read_config(self, request: web.Request) -> web.Response:
        """GET /v1/config."""
        return answer(self._daemon.options())

    async def change_config(self, request: web.Request) -> web.Response:
        """PATCH /v1/config."""
        given = await read.body(request, _OPTIONS)
        texts = {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in given.items()
        }
        return answer(self._daemon.change_options(texts))

    async def read_key(self, request: web.Request) -> web.Response:
        """GET /v1/redis?key=…."""
        key = request.query.get("key", "")
        if not key:
            raise InvalidInput("no key was named", hint="add ?key=…; `sessiond redis keys`")
        limit = read.number(request, "limit", 100, 1, 10_000)
        return answer(await self._daemon.read_key(key, limit))

    async def openapi(self, request: web.Request) -> web.Response:
        """GET /openapi.json."""
        return answer(self.openapi_document)

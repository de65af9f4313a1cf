"""The local API's server: routes behind the guard, errors as problem documents."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from sessiond import errors
from sessiond.api.guard import Guard, Peer, peer_of
from sessiond.api.problems import CONTENT_TYPE, problem_body, status_of
from sessiond.api.routes import Route

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


def problem_response(error: errors.SessiondError) -> web.Response:
    """Return an error as an HTTP answer."""
    headers = {"Retry-After": "1"} if error.temporary else {}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        body=problem_body(error),
        status=status_of(error),
        content_type=CONTENT_TYPE,
        headers=headers,
    )


def application(routes: list[Route], guard: Guard, *, max_body_bytes: int) -> web.Application:
    """Return the application that serves these routes."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            guard.check(request, _peer(request))
            return await handler(request)
        except errors.SessiondError as error:
            return problem_response(error)
        except web.HTTPException as error:
            return problem_response(_from_http(request, error, max_body_bytes))
        except (HttpProcessingError, web.PayloadAccessError, ValueError) as error:
            return problem_response(errors.InvalidInput(f"the request cannot be read: {error}"))
        except ConnectionError:
            raise  # the client went away: nobody is there to answer
        except Exception:  # noqa: BLE001 - the last line: logged, and answered like any error
            await _log.aexception("request.failed", method=request.method, route=_route(request))
            return problem_response(errors.SessiondError("an unexpected error; see the log"))

    app = web.Application(middlewares=[guarded], client_max_size=max_body_bytes)
    for route in routes:
        app.router.add_route(route.method, route.path, route.handler)
    return app


def _peer(request: web.Request) -> Peer:
    protocol = request.protocol
    return protocol.peer if isinstance(protocol, _Protocol) else peer_of(request.transport)


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource else "unknown"


def _from_http(
    request: web.Request, error: web.HTTPException, max_body_bytes: int
) -> errors.SessiondError:
    match error.status:
        case 404:
            return errors.NotFound(
                f"there is no {request.path[:200]!r}", hint="GET /openapi.json lists what there is"
            )
        case 405:
            return errors.MethodNotAllowed(f"{request.method} is not possible here")
        case 413:
            return errors.TooLarge(
                f"the body is larger than {max_body_bytes} bytes",
                hint="split it, or raise api.max_body_bytes",
            )
        case _:
            return errors.InvalidInput(error.reason)


class _Protocol(web.RequestHandler):
    """HTTP, with a problem document also for what is not HTTP at all."""

    peer = Peer(is_local=False)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note who is at the other end."""
        super().connection_made(transport)
        self.peer = peer_of(transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002 - not even HTTP is always the client's fault
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to a request that could not be parsed."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer was begun already")
        self.force_close()
        reason = (message or str(exc) or "it cannot be parsed").splitlines()[0][:200]
        return problem_response(errors.InvalidInput(f"this is not a valid HTTP request: {reason}"))


class ApiServer:
    """Serves an application on sockets that the caller has bound."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        self._listening: list[asyncio.Server] = []

    async def start(self, sockets: list[socket.socket]) -> None:
        """Begin to accept connections."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        for bound in sockets:
            create = (
                loop.create_unix_server if bound.family == socket.AF_UNIX else loop.create_server
            )
            self._listening.append(await create(self._protocol, sock=bound, backlog=1024))

    async def stop(self, grace_seconds: float) -> None:
        """Accept nothing new, let requests under way finish, then close what is left."""
        for listening in self._listening:
            listening.close()
        server = self._runner.server
        if server is not None:
            server.pre_shutdown()
            await server.shutdown(grace_seconds)
        await self._runner.cleanup()

    def _protocol(self) -> web.RequestHandler:
        server = self._runner.server
        if server is None:
            raise RuntimeError("the server was not set up")
        options: dict[str, Any] = {"access_log": None, "keepalive_timeout": 75.0}
        return _Protocol(server, loop=asyncio.get_running_loop(), **options)

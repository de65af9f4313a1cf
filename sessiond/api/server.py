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
from sessiond.api.requests import check_query
from sessiond.api.routes import Route

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


def problem_response(error: errors.SessiondError) -> web.Response:
    """Return an error as an HTTP answer."""
    headers = {"Retry-After": "1"} if error.temporary else {}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    response = web.Response(
        body=problem_body(error),
        status=status_of(error),
        content_type=CONTENT_TYPE,
        headers=headers,
    )
    if isinstance(error, errors.IncompleteBody):
        response.force_close()  # nobody knows where the next request would begin
    return response


def application(routes: list[Route], guard: Guard, *, max_body_bytes: int) -> web.Application:
    """Return the application that serves these routes."""
    queries = {route.handler: route.query for route in routes}

    async def expect(request: web.Request) -> web.StreamResponse | None:
        """Let a client send its body only when its request would be let through."""
        try:
            guard.check(request, _peer(request))
            if request.headers.get("Expect", "").lower() != "100-continue":
                raise errors.ExpectationFailed("this expectation cannot be met")
        except errors.SessiondError as error:
            return problem_response(error)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            guard.check(request, _peer(request))
            query = queries.get(request.match_info.handler)
            if query is not None:
                check_query(request, *query)
            return await handler(request)
        except ConnectionError:
            raise  # the client went away: nobody is there to answer
        except Exception as error:  # noqa: BLE001 - every error gets an answer, the unknown a log
            return await _problem_for(request, error, max_body_bytes)

    app = web.Application(middlewares=[guarded], client_max_size=max_body_bytes)
    app.on_response_prepare.append(_as_problem)
    for route in routes:
        app.router.add_route(route.method, route.path, route.handler, expect_handler=expect)
    return app


async def _problem_for(request: web.Request, error: Exception, max_body_bytes: int) -> web.Response:
    """Return the answer to what a route raised."""
    match error:
        case errors.StoreDamaged():
            return problem_response(_named(error, request.match_info.get("session_id", "")))
        case errors.SessiondError():
            return problem_response(error)
        case web.HTTPException():
            answer = problem_response(_from_http(request, error, max_body_bytes))
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
            return answer
        case HttpProcessingError() | web.PayloadAccessError():
            return problem_response(errors.InvalidInput(f"the request cannot be read: {error}"))
        case _:
            await _log.aexception("request.failed", method=request.method, route=_route(request))
            return problem_response(errors.SessiondError("an unexpected error; see the log"))


async def _as_problem(request: web.Request, response: web.StreamResponse) -> None:
    """Give what aiohttp answers by itself, outside of all routes, the form of a problem."""
    if isinstance(response, web.HTTPException):
        response.body = problem_body(_from_http(request, response, 0))
        response.headers["Content-Type"] = CONTENT_TYPE
        response.headers["Content-Length"] = str(len(response.body))


def _named(error: errors.StoreDamaged, session_id: str) -> errors.StoreDamaged:
    """Return the error with the session it is about, if that is known."""
    if not session_id or session_id in error.detail:
        return error
    return errors.StoreDamaged(f"session {session_id!r}: {error.detail}", hint=error.hint)


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
        case 417:
            return errors.ExpectationFailed("this expectation cannot be met")
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
        reason = (message or str(exc) or "it cannot be parsed").splitlines()[0][:200]
        answer = problem_response(
            errors.InvalidInput(f"this is not a valid HTTP request: {reason}")
        )
        answer.force_close()
        return answer


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
        options |= {"auto_decompress": False, "lingering_time": 1.0}
        return _Protocol(server, loop=asyncio.get_running_loop(), **options)

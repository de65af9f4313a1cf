"""A sidecar that does as a test says: it speaks the plugin's protocol, and knows no Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from sessiond.api.sse import frame
from sessiond.opencode.protocol import (
    Applied,
    Apply,
    Attached,
    Attachment,
    Holder,
    Notify,
    OpencodeEvent,
    PushedEvents,
    Toast,
    Turn,
    WantedTurn,
)
from sessiond.service.live.feed import Event
from tests.opencode.events import PATIENCE_SECONDS

Body = TypeVar("Body", bound=msgspec.Struct)

MACHINE = "here"

_TOO_LONG_SECONDS = 30.0
_NAME = "instance"
_PATH = f"/v1/opencode/instances/{{{_NAME}}}"


class StandIn:
    """The sidecar of one test, on a Unix socket.

    `workspace` is what it answers to who attaches; with `is_broken` it answers 500 to whoever
    asks for a turn. Pushes of `slow_from` events or more take it longer than the plugin waits.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.workspace = "shared"
        self.is_broken = False
        self.slow_from: int | None = None
        self.attachments: list[tuple[str, Attachment]] = []
        self.pushed: list[OpencodeEvent] = []
        self.batches: list[int] = []
        self.asked: list[tuple[str, int]] = []
        self.released: list[str] = []
        self._streams: dict[str, tuple[web.Request, web.StreamResponse]] = {}
        self._known: set[str] = set()
        self._holders: dict[str, Holder] = {}
        self._reports: dict[int, Applied] = {}
        self._last_batch = 0
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Like a sidecar that was started anew, it knows nobody."""
        self._known.clear()
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.add_routes(
            [
                web.put(_PATH, self._attach),
                web.get(f"{_PATH}/commands", self._commands),
                web.post(f"{_PATH}/events", self._take_events),
                web.post(f"{_PATH}/applied", self._take_report),
                web.post(f"{_PATH}/turns", self._take_turn),
                web.delete(f"{_PATH}/turns/{{session}}", self._release_turn),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()

    async def stop(self) -> None:
        """Go away, without a word to anybody."""
        if self._runner:
            self.cut()
            await self._runner.cleanup()
            self._runner = None
            self.socket.unlink(missing_ok=True)

    def forget(self) -> None:
        """Know nobody any more, as after a restart that broke no connection."""
        self._known.clear()

    def cut(self) -> None:
        """Break the streams of commands."""
        for request, _ in self._streams.values():
            if request.transport:
                request.transport.abort()
        self._streams.clear()

    async def until(self, condition: Callable[[], object]) -> None:
        """Return when something is so.

        Raises:
            AssertionError: it does not come to pass.
        """
        async with self._changed:
            waiting = self._changed.wait_for(lambda: bool(condition()))
            try:
                await asyncio.wait_for(waiting, PATIENCE_SECONDS)
            except TimeoutError:
                raise AssertionError(f"never came to pass; pushed: {self.pushed[-5:]}") from None

    @property
    def listeners(self) -> int:
        """How many streams of commands are open."""
        return len(self._streams)

    async def attached(self) -> Attachment:
        """Return what the plugin says of itself, when it listens for commands."""
        await self.until(lambda: self._streams)
        return self.attachments[-1][1]

    def of(self, session: str, *, before: int | None = None) -> list[OpencodeEvent]:
        """Return the events of a session that were pushed, or those among so many first ones."""
        return [e for e in self.pushed[:before] if e.properties.get("sessionID") == session]

    def asked_of(self, session: str) -> list[int]:
        """Return, for each time a turn was asked for, how many events were pushed before."""
        return [before for asked, before in self.asked if asked == session]

    async def pushed_type(self, session: str, type_: str, *, times: int = 1) -> None:
        """Return when so many events of a type were pushed."""
        await self.until(lambda: [e.type for e in self.of(session)].count(type_) >= times)

    async def apply(
        self, session: str, events: Sequence[OpencodeEvent], *, announce: bool = True
    ) -> Applied:
        """Have a batch applied and return the report."""
        self._last_batch += 1
        batch = self._last_batch
        command = Apply(batch=batch, session_id=session, events=list(events), announce=announce)
        await self._send("apply", command)
        await self.until(lambda: batch in self._reports)
        return self._reports[batch]

    async def notify(self, *events: OpencodeEvent) -> None:
        await self._send("notify", Notify(events=list(events)))

    async def toast(self, message: str) -> None:
        await self._send("toast", Toast(message=message))

    def hold(self, session: str, machine: str = "there") -> None:
        """Let somebody else run a turn in a session."""
        since = round(time.time() * 1000)
        self._holders[session] = Holder(
            instance="oc-other", machine=machine, since_ms=since, token=1
        )

    async def grant(self, session: str) -> None:
        """Let the turn of somebody else end."""
        del self._holders[session]
        await self._tell()

    async def _attach(self, request: web.Request) -> web.Response:
        name = request.match_info[_NAME]
        self.attachments.append((name, await _body(request, Attachment)))
        self._known.add(name)
        await self._tell()
        return _answer(Attached(instance=name, machine=MACHINE, workspace=self.workspace))

    async def _commands(self, request: web.Request) -> web.StreamResponse:
        name = self._known_instance(request)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        await stream.write(b"retry: 500\n\n")
        self._streams[name] = request, stream
        await self._tell()
        try:
            with suppress(ConnectionError):
                while True:
                    await stream.write(b": heartbeat\n\n")
                    await asyncio.sleep(1)
        finally:  # a listener that leaves cancels this
            if self._streams.get(name) == (request, stream):
                del self._streams[name]
                await self._tell()
        return stream

    async def _take_events(self, request: web.Request) -> web.Response:
        self._known_instance(request)
        events = (await _body(request, PushedEvents)).events
        if self.slow_from and len(events) >= self.slow_from:
            await asyncio.sleep(_TOO_LONG_SECONDS)
        self.batches.append(len(events))
        self.pushed += events
        await self._tell()
        return web.json_response({})

    async def _take_report(self, request: web.Request) -> web.Response:
        self._known_instance(request)
        report = await _body(request, Applied)
        self._reports[report.batch] = report
        await self._tell()
        return web.json_response({})

    async def _take_turn(self, request: web.Request) -> web.Response:
        self._known_instance(request)
        wanted = await _body(request, WantedTurn)
        self.asked.append((wanted.session_id, len(self.pushed)))
        await self._tell()
        if self.is_broken:
            raise web.HTTPInternalServerError
        try:
            await asyncio.wait_for(self._free(wanted.session_id), wanted.wait_seconds)
        except TimeoutError:
            return _answer(Turn(granted=False, holder=self._holders[wanted.session_id]))
        return _answer(Turn(granted=True, token=len(self.asked)))

    async def _free(self, session: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: session not in self._holders)

    async def _release_turn(self, request: web.Request) -> web.Response:
        self._known_instance(request)
        self.released.append(request.match_info["session"])
        await self._tell()
        return web.json_response({})

    def _known_instance(self, request: web.Request) -> str:
        name = request.match_info[_NAME]
        if name not in self._known:
            raise web.HTTPNotFound
        return name

    async def _send(self, name: str, command: msgspec.Struct) -> None:
        data = frame(Event(name, msgspec.json.encode(command)))
        for _, stream in self._streams.values():
            await stream.write(data)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def _body(request: web.Request, kind: type[Body]) -> Body:
    assert request.content_type == "application/json", request.content_type
    return msgspec.json.decode(await request.read(), type=kind)


def _answer(content: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")

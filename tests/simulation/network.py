"""The network between sidecars and Redis: bytes take time, are held, are lost, and break off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

from tests.simulation.server import RedisServer, ServerSession

_USUAL_SECONDS = (0.0005, 0.003)
_NEXT_SECONDS = 1e-6
"""What keeps apart what was sent one after the other: of equal timers, any may come first."""

Deliver = Callable[[], None]


class Link:
    """One host's way to Redis, and all that is wrong with it.

    Attributes:
        seconds: least and longest time that something is under way, in each direction.
        refuses: whether no connection can be made.
        holds_requests, holds_answers: whether what is sent does not arrive before `calm`.
        loses_answers: whether answers never arrive, and the connection breaks off with them.
    """

    def __init__(self) -> None:
        self.seconds = _USUAL_SECONDS
        self.refuses = False
        self.holds_requests = self.holds_answers = self.loses_answers = False
        self.wires: dict[Wire, None] = {}
        self._held_requests: list[Deliver] = []
        self._held_answers: list[Deliver] = []

    def request(self, deliver: Deliver) -> None:
        """Let a request arrive, or keep it."""
        if self.holds_requests:
            self._held_requests.append(deliver)
        else:
            deliver()

    def answer(self, deliver: Deliver) -> None:
        """Let an answer arrive, or keep it."""
        if self.holds_answers:
            self._held_answers.append(deliver)
        else:
            deliver()

    def take_requests(self) -> list[Deliver]:
        """Return what is held on its way to Redis; who takes it lets it arrive."""
        held, self._held_requests = self._held_requests, []
        return held

    def calm(self) -> None:
        """End what is wrong; what was held arrives now, whoever sent it."""
        self.seconds = _USUAL_SECONDS
        self.refuses = self.holds_requests = self.holds_answers = self.loses_answers = False
        for held in (self._held_requests, self._held_answers):
            arriving, held[:] = list(held), []
            for deliver in arriving:
                deliver()

    def reset(self) -> None:
        """Break every connection off; what is under way still arrives at Redis."""
        for wire in list(self.wires):
            wire.break_off()

    def lose_host(self) -> None:
        """The host's process is gone: nobody hears an answer, and what it sent still arrives."""
        for wire in list(self.wires):
            wire.abandon()


class Network:
    """Leads hosts to a server, each over its own link.

    Args:
        server: what they connect to.
        random: how long things take.
    """

    def __init__(self, server: RedisServer, random: Random) -> None:
        self.links: dict[str, Link] = {}
        self._server, self._random = server, random
        self._loop = asyncio.get_running_loop()

    async def connect(self, host: str, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Open a connection.

        Raises:
            ConnectionRefusedError: nobody takes it.
        """
        link = self.links[host]
        await asyncio.sleep(self.delay(link))
        while link.holds_requests or link.holds_answers:  # until who waits gives up
            await asyncio.sleep(0.1)
        if link.refuses or not self._server.is_up:
            raise ConnectionRefusedError(f"{host} is refused")
        wire = Wire(self, link, host, protocol)
        self._server.accept(wire.session)
        protocol.connection_made(wire)
        return wire

    def delay(self, link: Link) -> float:
        """Return how long something takes now."""
        return self._random.uniform(*link.seconds)

    def serve(self, session: ServerSession, data: bytes) -> None:
        """Hand over what arrived."""
        self._server.receive(session, data)

    def leave(self, session: ServerSession) -> None:
        """Tell the server that a connection is gone."""
        self._server.leave(session)

    def later(self, at: float, deliver: Deliver) -> None:
        """Let something happen at a time."""
        self._loop.call_at(at, deliver)

    def open_session(self, wire: Wire, host: str) -> ServerSession:
        """Return the server's end of a connection."""
        return ServerSession(self._server, host, wire.answer, wire.break_off)

    def soon(self, link: Link, not_before: float) -> float:
        """Return when what is sent now arrives: behind what was sent before."""
        return max(self._loop.time() + self.delay(link), not_before + _NEXT_SECONDS)


class Wire(asyncio.Transport):
    """A connection, as the client's stream has it."""

    def __init__(self, network: Network, link: Link, host: str, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._network, self._link, self._protocol = network, link, protocol
        self._is_closing = self._is_abandoned = False
        self._request_at = self._answer_at = 0.0
        self.session = network.open_session(self, host)
        link.wires[self] = None

    # The client's end

    def write(self, data: Any) -> None:
        if self._is_closing:
            return
        sent = bytes(data)
        self._request_at = self._network.soon(self._link, self._request_at)
        self._network.later(
            self._request_at,
            lambda: self._link.request(lambda: self._network.serve(self.session, sent)),
        )

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Streams ask for it when much waits; it arrives all the same."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""

    # The network's end

    def answer(self, data: bytes) -> None:
        """Carry an answer to the client."""
        if self._link.loses_answers:
            self.break_off()
            return
        self._answer_at = self._network.soon(self._link, self._answer_at)
        self._network.later(self._answer_at, lambda: self._link.answer(lambda: self._hear(data)))

    def break_off(self) -> None:
        """End the connection at both ends."""
        self._network.leave(self.session)
        self._end(ConnectionResetError("the connection broke off"))

    def abandon(self) -> None:
        """The client is no more."""
        self._is_abandoned = True
        self._end(None)

    def _hear(self, data: bytes) -> None:
        if not self._is_closing:
            self._protocol.data_received(data)

    def _end(self, error: Exception | None) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._link.wires.pop(self, None)
        self._request_at = self._network.soon(self._link, self._request_at)
        self._network.later(self._request_at, lambda: self._link.request(self._leave))
        if not self._is_abandoned:
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error)

    def _leave(self) -> None:
        self._network.leave(self.session)

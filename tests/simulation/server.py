"""A Redis server of the simulation: connections, pub/sub, and lives of its database."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import hiredis

from tests.simulation.database import Command, Database, Refusal, Reply, Status

Note = Callable[..., None]
"""Takes what belongs into a trace."""


class RedisServer:
    """One address, behind which servers come and go.

    Args:
        now: seconds.
        random: names each life.
        note: is told of every command.
    """

    def __init__(self, now: Callable[[], float], random: Random, note: Note) -> None:
        self.is_up = True
        self.database = Database(now, self._publish, self._info)
        self._random, self._note = random, note
        self._sessions: dict[ServerSession, None] = {}
        self._channels: dict[bytes, dict[ServerSession, None]] = {}
        self._is_paused = False
        self._held: list[tuple[ServerSession, bytes]] = []
        self._life = self._history = ""
        self._begin_life()

    def accept(self, session: ServerSession) -> None:
        """Take a connection."""
        self._sessions[session] = None

    def leave(self, session: ServerSession) -> None:
        """Forget a connection."""
        self._sessions.pop(session, None)
        for listeners in self._channels.values():
            listeners.pop(session, None)

    def receive(self, session: ServerSession, data: bytes) -> None:
        """Work on what a client sent, or keep it while the server is paused."""
        if session not in self._sessions:
            return
        if self._is_paused:
            self._held.append((session, data))
        else:
            session.work(data)

    def kill(self, lost: int = 0) -> None:
        """End this life, its newest `lost` groups of writes with it."""
        self.is_up = False
        self.resume()
        for session in list(self._sessions):
            session.reset()
        self._sessions, self._channels = {}, {}
        if lost:
            self.database.go_back(max(0, len(self.database.log) - lost))
        self.database.forget_scripts()

    def start(self, *, same_life: bool = False, new_history: bool = False) -> None:
        """Begin another life; `same_life`: as a machine's snapshot does, under the same names.

        `new_history`: a replica that was promoted.
        """
        self.is_up = True
        if not same_life:
            self._begin_life(new_history=new_history)

    def pause(self) -> None:
        """Work on nothing until `resume`."""
        self._is_paused = True

    def resume(self) -> None:
        """Work on, with what came meanwhile."""
        self._is_paused = False
        held, self._held = self._held, []
        for session, data in held:
            self.receive(session, data)

    def execute(self, session: ServerSession, commands: list[Command]) -> list[Reply]:
        """Execute the commands of one moment for a session."""
        for command in commands:
            self._note("redis", session.name, *_outline(command))
        return self.database.execute_together(commands)

    def subscribe(self, session: ServerSession, channel: bytes) -> None:
        """Have a session told what is published."""
        self._channels.setdefault(channel, {})[session] = None

    def unsubscribe(self, session: ServerSession, channel: bytes) -> None:
        """Have it told no more."""
        self._channels.get(channel, {}).pop(session, None)

    def _publish(self, channel: bytes, message: bytes) -> int:
        listeners = list(self._channels.get(channel, ()))
        for session in listeners:
            session.push([b"message", channel, message])
        return len(listeners)

    def _begin_life(self, *, new_history: bool = True) -> None:
        self._life = self._random.randbytes(20).hex()
        if new_history:
            self._history = self._random.randbytes(20).hex()

    def _info(self) -> bytes:
        return (
            "redis_version:7.4.0\r\nrole:master\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n"
            f"run_id:{self._life}\r\nmaster_replid:{self._history}\r\n"
        ).encode()


class ServerSession:
    """The server's end of one connection.

    Args:
        server: whose.
        name: of the client's host.
        answer: sends bytes to the client.
        reset: ends the connection, at the client too.
    """

    def __init__(
        self,
        server: RedisServer,
        name: str,
        answer: Callable[[bytes], None],
        reset: Callable[[], None],
    ) -> None:
        self.name = name
        self.reset = reset
        self._server, self._answer = server, answer
        self._reader = hiredis.Reader()
        self._queued: list[Command] | None = None
        self._channels: dict[bytes, None] = {}

    def work(self, data: bytes) -> None:
        """Execute what was sent."""
        self._reader.feed(data)
        answer = b""
        while (command := self._reader.gets()) is not False:
            answer += b"".join(map(encoded, self._replies(command)))
        if answer:
            self._answer(answer)

    def push(self, reply: Reply) -> None:
        """Send something to the client."""
        self._answer(encoded(reply))

    def _replies(self, command: Command) -> list[Reply]:
        replies: list[Reply] = [Status(b"OK")]
        match command[0].upper():
            case b"CLIENT" | b"SELECT":
                pass
            case b"MULTI":
                self._queued = []
            case b"EXEC":
                queued, self._queued = self._queued or [], None
                replies = [self._server.execute(self, queued)]
            case b"SUBSCRIBE":
                replies = [self._subscribed(channel) for channel in command[1:]]
            case b"UNSUBSCRIBE":
                replies = [self._unsubscribed(channel) for channel in command[1:]]
            case b"PING" if self._channels:
                replies = [[b"pong", b""]]
            case _ if self._queued is not None:
                self._queued.append(command)
                replies = [Status(b"QUEUED")]
            case _:
                replies = self._server.execute(self, [command])
        return replies

    def _subscribed(self, channel: bytes) -> Reply:
        self._channels[channel] = None
        self._server.subscribe(self, channel)
        return [b"subscribe", channel, len(self._channels)]

    def _unsubscribed(self, channel: bytes) -> Reply:
        self._channels.pop(channel, None)
        self._server.unsubscribe(self, channel)
        return [b"unsubscribe", channel, len(self._channels)]


def encoded(reply: Reply) -> bytes:
    """Return a reply as RESP2."""
    match reply:
        case None:
            return b"$-1\r\n"
        case Status():
            return b"+%b\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case int():
            return b":%d\r\n" % reply
        case Refusal():
            return b"-%b\r\n" % str(reply).encode()
        case _:
            return b"*%d\r\n%b" % (len(reply), b"".join(map(encoded, reply)))


def _outline(command: Command) -> list[Any]:
    """Return a command without its values: a script by its first key and last argument."""
    name = command[0].upper()
    if name in (b"EVAL", b"EVALSHA"):
        return [name, *command[3:4], command[-1]]
    return [name, *command[1:3]]

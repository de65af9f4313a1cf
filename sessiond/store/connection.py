"""Connections to Redis, by the rules that measurements forced.

- No retries inside the client: a reply lost after the write would be written again. Only our
  idempotent commit retries.
- No `socket_timeout`: the client would send through `asyncio.wait_for`, and Python 3.11's can
  swallow a cancellation. What may take how long is limited here.
- A blocking pool: the default one raises as soon as it is exhausted.
- Pub/sub on a connection of its own without a read timeout.
- Stream replies stay as the server sent them: dictionaries per entry cost more than the parse.
"""

from __future__ import annotations

import asyncio
from binascii import crc32
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from hiredis import pack_command
from redis._parsers.helpers import parse_info
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from sessiond.errors import (
    SessiondError,
    StoreDamaged,
    StoreFull,
    StoreRefusesUser,
    StoreUnavailable,
)

Answer = TypeVar("Answer")

_TOLD = ("server", "memory", "replication")
"""The sections of INFO that `Admit` gets, asked for one by one: so servers before 7 answer, too."""
_PIPELINE_ERROR = " of pipeline caused error: "
_DRIVER = DriverInfo()
"""Found out once: it takes the client longer than all else of a new connection."""
_RAW_REPLIES = ("XRANGE", "XREVRANGE")

_PASSING = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OutOfMemoryError)
_REFUSALS_IN_SCRIPTS = ("ACL failure in script", "The user executing the script can't run")
_PASSING_CODES = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "TRYAGAIN",
)


Admit = Callable[[Mapping[str, Any]], None]
"""Takes what a server says of itself (INFO), and raises SessiondError where it must not be used."""


class ServerRefused(RedisConnectionError):
    """The server is one that must not be used: no connection to it is made."""


def connect(
    url: str, *, timeout_seconds: float, max_connections: int, admit: Admit | None = None
) -> Redis:
    """Return a client for commands; it connects on first use.

    Args:
        url: where the server is.
        timeout_seconds: how long a command may take, and connecting.
        max_connections: connections at most.
        admit: looks at the server before every connection is used: it may be another one by then.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout_seconds,
        socket_timeout=None,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=_DRIVER,
        redis_connect_func=_admitted(admit) if admit else None,
    )
    client = LimitedRedis(limit_seconds=timeout_seconds, connection_pool=pool)
    client.auto_close_connection_pool = True
    return keep_raw(client)


def _admitted(admit: Admit) -> Callable[[AbstractConnection], Awaitable[None]]:
    async def on_connect(connection: AbstractConnection) -> None:
        await connection.on_connect()
        info: dict[str, Any] = {}
        for section in _TOLD:
            await connection.send_command("INFO", section, check_health=False)
            info |= parse_info(await connection.read_response())
        try:
            admit(info)
        except SessiondError as error:
            raise ServerRefused(error.detail) from error

    return on_connect


def connect_subscriber(url: str, *, timeout_seconds: float) -> Redis:
    """Return a client for pub/sub: it may wait for a message as long as it takes."""
    return Redis.from_url(
        url,
        socket_timeout=None,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=_DRIVER,
    )


class LimitedRedis(Redis):
    """A client whose commands and pipelines are answered in time, or fail.

    Who fails or is cancelled gives its connection up, so that an answer that comes late is
    nobody's: the client disconnects whatever it is interrupted in.

    Args:
        limit_seconds: how long a command or a whole pipeline may take, with all that it needs: a
            connection that is free, connecting, the answers.
        options: those of the client; `socket_timeout` must be None.
    """

    def __init__(self, *, limit_seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._limit_seconds = limit_seconds

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """Send a command and return its answer.

        Raises:
            redis.exceptions.RedisError: as the server or the connection gave it, or a
                TimeoutError when the limit was reached.
        """
        command = super().execute_command(*arguments, **options)  # type: ignore[no-untyped-call]
        return await _in_time(command, self._limit_seconds)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: FBT001, FBT002 - the client's signature
        """Return a pipeline, under the same limit."""
        pipeline = _LimitedPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        pipeline.limit_seconds = self._limit_seconds
        return pipeline


class _LimitedPipeline(Pipeline):
    """A pipeline of a LimitedRedis."""

    limit_seconds: float

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - the client's signature
        """Send what was collected and return the answers; see LimitedRedis.execute_command."""
        return await _in_time(super().execute(raise_on_error), self.limit_seconds)


async def _in_time(command: Awaitable[Answer], seconds: float) -> Answer:
    try:
        async with asyncio.timeout(seconds):
            return await command
    except TimeoutError as error:
        raise RedisTimeoutError(f"no answer within {seconds:g} s") from error


def keep_raw(client: Redis) -> Redis:
    """Make stream reads of this client return entries as flat lists."""
    for command in _RAW_REPLIES:
        client.response_callbacks.pop(command, None)
    return client


def translate(error: RedisError) -> SessiondError:
    """Say what an error of the client means here."""
    said = str(error).rpartition(_PIPELINE_ERROR)[2]  # without the command's arguments
    if _is_refusal(error):
        return StoreRefusesUser(
            f"Redis refuses this user: {said}",
            hint="check the user and password in redis.url and the rights in redis-acl.conf",
        )
    if isinstance(error, OutOfMemoryError):
        return StoreFull(
            "Redis is out of memory and takes no writes",
            hint="redis-cli config set maxmemory to more; reading goes on, and so do writes then",
        )
    if said.startswith("MISCONF"):
        return StoreFull(
            f"Redis cannot write to its disk and takes no writes: {said}",
            hint="free space on its disk; reading goes on, and so do writes then",
        )
    if isinstance(error, ReadOnlyError):
        return StoreUnavailable(
            "the Redis at redis.url is a replica now and takes no writes",
            hint="point redis.url at the primary, or promote this one: redis-cli replicaof no one",
        )
    if may_pass(error):
        lead = "is not used" if isinstance(error, ServerRefused) else "does not answer"
        return StoreUnavailable(
            f"Redis {lead}: {said}",
            hint="a write may or may not have happened; retrying it with the same id is safe",
        )
    return StoreDamaged(f"Redis answered with an error: {said}", hint="see `sessiond redis keys`")


def may_pass(error: RedisError) -> bool:
    """Tell whether an error may pass by itself: worth another try of something idempotent."""
    if _is_refusal(error):
        return False
    return isinstance(error, _PASSING) or str(error).startswith(_PASSING_CODES)


def _is_refusal(error: BaseException | None) -> bool:
    """Tell whether Redis refused the user; over Unix sockets the client hides that in a cause."""
    while error is not None:
        if isinstance(error, AuthenticationError | NoPermissionError):
            return True
        if str(error).startswith(_REFUSALS_IN_SCRIPTS):
            return True
        error = error.__cause__ or error.__context__
    return False


class OrderedConnection:
    """One connection whose commands arrive in the order they were given.

    They do not wait for one another's answers. The commit path would spend more time in a
    pool, its timeouts and the packing of arguments than on the wire.

    Args:
        client: whose address and credentials are used.
        timeout_seconds: how long a command may take, until its answer is there.
    """

    def __init__(self, client: Redis, *, timeout_seconds: float) -> None:
        self._pool = client.connection_pool
        self._timeout_seconds = timeout_seconds
        self._connection: AbstractConnection | None = None
        # Both are taken in the order of the commands: the n-th answer is the n-th reader's.
        self._sending, self._receiving = asyncio.Lock(), asyncio.Lock()

    async def execute(self, *arguments: Any) -> Any:
        """Send one command and return its answer.

        Raises:
            redis.exceptions.RedisError: as the server or the connection gave it. The command may
                or may not have been executed when it is a ConnectionError or TimeoutError.
        """
        packed = pack_command(arguments)
        (answer,) = await _in_time(self._exchange(packed, 1), self._timeout_seconds)
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    async def execute_together(
        self, *commands: tuple[Any, ...], patience_seconds: float
    ) -> list[Any]:
        """Send commands in one go and return their answers, refusals among them as ResponseErrors.

        Args:
            commands: each with its arguments; they arrive one behind the other.
            patience_seconds: how much longer than another command they may take.

        Raises:
            redis.exceptions.RedisError: as the connection gave it; see `execute`.
        """
        packed = b"".join(pack_command(command) for command in commands)
        limit = self._timeout_seconds + patience_seconds
        return await _in_time(self._exchange(packed, len(commands)), limit)

    async def close(self) -> None:
        """Close the connection; what waits for an answer on it gets a ConnectionError."""
        await self._drop(self._connection)

    async def _exchange(self, packed: bytes, answers: int) -> list[Any]:
        connection = None
        try:
            async with self._sending:
                connection = self._current()
                if not connection.is_connected:
                    await connection.connect()
                await _send(connection, packed)
            return await self._answers(connection, answers)
        except BaseException:
            await self._drop(connection)
            raise

    async def _answers(self, connection: AbstractConnection, count: int) -> list[Any]:
        async with self._receiving:
            if connection is not self._connection:
                raise RedisConnectionError("the connection was lost before the answer came")
            answers: list[Any] = []
            for _ in range(count):
                try:
                    answers.append(await connection.read_response())
                except ResponseError as error:
                    answers.append(error)
            return answers

    def _current(self) -> AbstractConnection:
        """Return the connection, or a new one: commands may still wait on one that was lost."""
        if self._connection is None or not self._connection.is_connected:
            self._connection = self._pool.connection_class(**self._pool.connection_kwargs)
        return self._connection

    async def _drop(self, connection: AbstractConnection | None) -> None:
        if connection is None:
            return
        if connection is self._connection:
            self._connection = None
        await connection.disconnect(nowait=True)


async def _send(connection: AbstractConnection, packed: bytes) -> None:
    """Send a command; where uvloop closed the transport under the client, say so as it would."""
    try:
        await connection.send_packed_command(packed, check_health=False)
    except RuntimeError as error:
        raise RedisConnectionError("the connection was lost before the command left") from error


class OrderedConnections:
    """A few ordered connections for scripts: calls with the same first key share one.

    So each session's calls keep their order, and a large one holds up few others.

    Args:
        client: whose address and credentials are used.
        size: connections at most.
        timeout_seconds: how long a command may take, until its answer is there.
    """

    def __init__(self, client: Redis, *, size: int, timeout_seconds: float) -> None:
        self._connections = [
            OrderedConnection(client, timeout_seconds=timeout_seconds) for _ in range(size)
        ]

    async def execute(self, command: str, script: str, count: int, *arguments: Any) -> Any:
        """Send EVAL or EVALSHA with at least one key; see OrderedConnection.execute."""
        return await self.of(arguments[0]).execute(command, script, count, *arguments)

    def of(self, key: str) -> OrderedConnection:
        """Return the connection of the calls with this first key."""
        return self._connections[crc32(key.encode()) % len(self._connections)]

    async def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            await connection.close()


async def answered(command: Awaitable[Any]) -> Any:
    """Await a command: its reply as the client gives it, its errors as ours."""
    try:
        return await command
    except RedisError as error:
        raise translate(error) from error

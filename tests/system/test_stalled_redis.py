"""A Redis that stalls, and neither answers nor refuses, holds readers up for a moment only."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from sessiond.client import DaemonClient
from sessiond.model import NewMessage, NewSession
from sessiond.service.status import Status
from tests.api.client import Client
from tests.api.servers import DurableServer, durable_server
from tests.daemons import running_daemon
from tests.system.observing import until

_COMMAND_SECONDS = 5.0
"""What a command may take by default (redis.timeout_seconds)."""


@contextmanager
def stalled(server: DurableServer) -> Iterator[None]:
    """Stop a server in its tracks for a while."""
    with Redis(unix_socket_path=str(server.socket)) as redis:
        pid = int(redis.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_read_at_a_stalled_redis_is_soon_answered_from_the_copy() -> None:
    with (
        durable_server() as server,
        running_daemon("--redis-url", server.url) as daemon,
    ):
        client, wire = DaemonClient(socket=str(daemon.socket)), Client(daemon.socket)
        await client.create(NewSession(session_id="s"))
        await client.append("s", [NewMessage(role="user", content="seen", id="m1")])

        async def is_copied() -> bool:
            status: Status = (await client.call("GET", "/v1/status", Status))[0]
            replica = status.replica
            return replica is not None and (replica.sessions, replica.behind) == (1, 0)

        async def is_fresh() -> bool:
            return not wire.call("GET", "/v1/sessions/s").header("sessiond-stale")

        await until(is_copied)
        before = wire.call("GET", "/v1/sessions/s")
        with stalled(server):
            began = time.monotonic()
            found = wire.call("GET", "/v1/sessions/s")
            assert time.monotonic() - began < _COMMAND_SECONDS - 1
            assert found.json == before.json
            assert found.header("sessiond-stale")
        await until(is_fresh)
        await client.close()

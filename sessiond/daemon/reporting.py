"""What a daemon tells of itself: whether it is well, and what it does; also without its Redis."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from msgspec import Struct

from sessiond import __version__
from sessiond.core import Core
from sessiond.daemon.diagnosis import durability_of
from sessiond.daemon.durable import DurableWrites
from sessiond.daemon.mirrored import MirroredFiles
from sessiond.daemon.offline import OfflineReading
from sessiond.errors import SessiondError, StoreDamaged, StoreUnavailable
from sessiond.service.clock import system_clock
from sessiond.service.health.checks import check_server
from sessiond.service.retention.cleanup import Cleanup
from sessiond.service.status import (
    CleanupStatus,
    Health,
    InstanceStatus,
    ServerStatus,
    Status,
)
from sessiond.store.probe import ServerFacts


class Place(Struct, frozen=True):
    """Where a daemon is to be found, and where its Redis is.

    `token_file`: None where it has no `address`; `url`: without its password; `owned`: whether the
    daemon started that server; `redis_cli`: how a person looks into it; `in_memory`: whether all
    that it keeps goes with it.
    """

    instance: str
    socket: Path
    address: str | None
    token_file: Path | None
    url: str
    owned: bool
    redis_cli: str
    in_memory: bool


class Reporter:
    """Reports on a running daemon.

    Args:
        core: the services on its Redis.
        durable: its journal, and whether Redis answers.
        offline: its copies of sessions.
        files: its JSON files.
        cleanup: knows when sessions were cleaned up.
        place: where it is.
        began: when it began to start (`time.monotonic`).
    """

    def __init__(
        self,
        core: Core,
        durable: DurableWrites,
        offline: OfflineReading,
        cleanup: Cleanup,
        place: Place,
        *,
        files: MirroredFiles,
        began: float,
    ) -> None:
        self._core = core
        self._durable = durable
        self._offline = offline
        self._files = files
        self._cleanup = cleanup
        self._place = place
        self._began = began
        self._facts = ServerFacts(version="")

    async def health(self) -> Health:
        """Tell whether the daemon and its Redis can work."""
        try:
            await self._ask_server()
            check_server(self._facts)
        except SessiondError as error:
            return Health(status=error.code, version=__version__, ready=False)
        return Health(status="ok", version=__version__, ready=True)

    async def status(self) -> Status:
        """Tell what the daemon does; of Redis, while it is away, what was known last."""
        core, place = self._core, self._place
        ping_ms: float | None = None
        sessions: int | None = None
        instances: dict[str, int] = {}
        cleanup: CleanupStatus | None = None
        with contextlib.suppress(StoreUnavailable):
            ping_ms = await self._ask_server()
            instances = await core.store.instances()
            sessions = await core.store.count()
            with contextlib.suppress(StoreDamaged):  # the rest is worth telling without it
                cleanup = await self._cleanup.status()
        now = system_clock()
        return Status(
            version=__version__,
            instance=place.instance,
            pid=os.getpid(),
            uptime_seconds=round(time.monotonic() - self._began, 1),
            socket=str(place.socket),
            address=place.address,
            token_file=str(place.token_file) if place.token_file else None,
            server=self._server(ping_ms),
            durability=durability_of(core),
            sessions=sessions,
            subscribers=core.feeds.subscribers,
            lag=core.feeds.lag,
            bus_connected=core.bus.connected and not self._durable.redis.is_away,
            outbox=await self._durable.outbox.status(),
            replica=self._offline.status(),
            files=self._files.status(),
            in_memory=place.in_memory,
            cleanup=cleanup,
            cache=core.caches.use(),
            instances=[
                InstanceStatus(name=name, seen_seconds_ago=round((now - seen) / 1000, 1))
                for name, seen in sorted(instances.items())
            ],
        )

    async def _ask_server(self) -> float:
        """Ask the server what it is; return how many milliseconds the answer took.

        Raises:
            StoreUnavailable: it is away.
            StoreRefusesUser: it refuses this user.
        """
        redis = self._durable.redis
        if redis.is_away:
            raise StoreUnavailable("Redis does not answer")
        began = time.perf_counter()
        try:
            self._facts = await self._core.facts()
        except StoreUnavailable:
            redis.note_failure()
            raise
        return round((time.perf_counter() - began) * 1000, 2)

    def _server(self, ping_ms: float | None) -> ServerStatus:
        place = self._place
        return ServerStatus(
            url=place.url,
            owned=place.owned,
            version=self._facts.version,
            ping_ms=ping_ms,
            away_seconds=self._durable.redis.away_seconds,
            redis_cli=place.redis_cli,
        )

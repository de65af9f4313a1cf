"""The services on one Redis, put together: what a daemon and a direct SessionManager share."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.config import Configuration
from sessiond.config.merging import merge_rules
from sessiond.errors import ConfigurationError
from sessiond.service.clock import Clock, system_clock
from sessiond.service.conflicts import Conflicts
from sessiond.service.documents import Documents
from sessiond.service.feeds import Feeds
from sessiond.service.leases import Leases
from sessiond.service.messages import Messages
from sessiond.service.performing import Performer
from sessiond.service.presence import Presences
from sessiond.service.records import Records
from sessiond.service.refusals import Refusals
from sessiond.service.sessions import Sessions
from sessiond.service.writing import Surroundings
from sessiond.store.bus import Bus
from sessiond.store.committer import Committer
from sessiond.store.conflicts import ConflictStore
from sessiond.store.connection import (
    OrderedConnections,
    answered,
    connect,
    connect_subscriber,
)
from sessiond.store.keys import Keys
from sessiond.store.leases import LeaseStore
from sessiond.store.opencode import OpencodeStore
from sessiond.store.presence import PresenceStore
from sessiond.store.sessions import SessionStore

_COMMIT_CONNECTIONS = 16
_OLDEST_SERVER = 7


class ServerFacts(Struct, frozen=True):
    """What a server says of itself."""

    version: str
    policy: str
    limited: bool


class Core:
    """Sessions on one Redis.

    Args:
        url: where Redis is.
        configuration: options of `redis`, `sync` and `api`.
        instance: the name under which this process writes.
        clock: milliseconds since 1970.
        incarnation: what tells this life of the process from its others.
    """

    def __init__(
        self,
        url: str,
        configuration: Configuration,
        *,
        instance: str,
        clock: Clock = system_clock,
        incarnation: Callable[[], str] = lambda: secrets.token_hex(4),
    ) -> None:
        _require_verified_tls(url)
        redis, sync = configuration.redis, configuration.sync
        self.keys = Keys(redis.namespace)
        self.redis: Redis = connect(
            url, timeout_seconds=redis.timeout_seconds, max_connections=redis.max_connections
        )
        self._subscriber = connect_subscriber(url, timeout_seconds=redis.timeout_seconds)
        self._commits = OrderedConnections(
            self.redis, size=_COMMIT_CONNECTIONS, timeout_seconds=redis.timeout_seconds
        )
        self.committer = Committer(
            self._commits.execute,
            self.keys,
            writer=f"{instance}.{incarnation()}",
            batch_operations=sync.batch_operations,
            retry_seconds=sync.retry_seconds,
        )
        self.bus = Bus(self._subscriber)
        self.store = SessionStore(self.redis, self.keys, self.committer)
        self.opencode = OpencodeStore(self.redis, self.keys)
        self.leases = Leases(
            LeaseStore(self.redis, self.keys, round(sync.lease_seconds * 1000)), instance
        )
        self.presences = Presences(
            PresenceStore(self.redis, self.keys, round(sync.presence_seconds * 1000)),
            self.store,
            machine=instance,
        )
        self.around = around = Surroundings(
            self.store,
            ConflictStore(self.redis, self.keys),
            rules=merge_rules(sync.merge),
            clock=clock,
        )
        self.sessions = Sessions(around, workspace=sync.workspace)
        self.messages = Messages(around, group_limit=configuration.api.max_group_operations)
        self.records = Records(around)
        self.conflicts = Conflicts(around, kept_days=sync.conflict_days)
        self.documents = Documents(around)
        self.refusals = Refusals(around)
        self.performer = Performer(
            self.store.log,
            sessions=self.sessions,
            messages=self.messages,
            records=self.records,
            documents=self.documents,
            conflicts=self.conflicts,
        )
        self.feeds = Feeds(
            self.store, self.bus, self.keys, buffer_bytes=sync.subscriber_buffer_bytes
        )

    async def redis_answers(self) -> None:
        """Return when Redis has answered.

        Raises:
            SessiondError: it does not, or refuses this user.
        """
        await answered(self.redis.ping())

    async def facts(self) -> ServerFacts:
        """Ask the server what it is.

        Raises:
            StoreUnavailable, ConfigurationError: it does not answer, or refuses this user.
        """
        info = await answered(self.redis.info("server", "memory"))
        name = info.get("server_name", "redis")
        version = info.get("valkey_version") or info["redis_version"]
        return ServerFacts(
            version=f"{name} {version}",
            policy=str(info.get("maxmemory_policy", "")),
            limited=int(info.get("maxmemory", 0)) > 0,
        )

    async def close(self) -> None:
        """Finish what was accepted, then leave."""
        self.feeds.close()
        await self.store.close()
        await self.bus.close()
        await self._commits.close()
        await self._subscriber.aclose()
        await self.redis.aclose()


def check_server(facts: ServerFacts) -> None:
    """Refuse a server that could not keep what it is given.

    Raises:
        ConfigurationError: it is too old, or drops keys when its memory is full.
    """
    major = facts.version.split()[-1].partition(".")[0]
    if not major.isdigit() or int(major) < _OLDEST_SERVER:
        raise ConfigurationError(
            f"the server is {facts.version}", hint=f"sessiond needs Redis {_OLDEST_SERVER} or later"
        )
    if facts.limited and facts.policy.startswith("allkeys-"):
        raise ConfigurationError(
            f"the server drops keys when its memory is full (maxmemory-policy {facts.policy})",
            hint="set maxmemory-policy noeviction; see config/redis.conf",
        )


def _require_verified_tls(url: str) -> None:
    query = parse_qs(urlsplit(url).query)
    if query.get("ssl_cert_reqs", ["required"])[-1] not in ("required", "true"):
        raise ConfigurationError(
            "redis.url switches the check of the server's certificate off",
            hint="name the authority instead: ?ssl_ca_certs=/path/ca.pem",
        )

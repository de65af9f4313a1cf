"""The services on one Redis, put together: what a daemon and a direct SessionManager share."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import Redis

from sessiond.config import Configuration
from sessiond.config.merging import merge_rules
from sessiond.errors import ConfigurationError
from sessiond.service.checks import check_server
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
from sessiond.service.repairing import Copies, Repairer
from sessiond.service.scanning import Scanner
from sessiond.service.sessions import Sessions
from sessiond.service.writing import Surroundings
from sessiond.store.bus import Bus
from sessiond.store.committer import Committer
from sessiond.store.conflicts import ConflictStore
from sessiond.store.connection import (
    OrderedConnection,
    OrderedConnections,
    answered,
    connect,
    connect_subscriber,
)
from sessiond.store.keys import Keys
from sessiond.store.keyspace import Keyspace
from sessiond.store.leases import LeaseStore
from sessiond.store.opencode import OpencodeStore
from sessiond.store.presence import PresenceStore
from sessiond.store.probe import ServerFacts, facts_of, read_facts
from sessiond.store.repairs import RepairStore
from sessiond.store.replicas import ReplicaAcks
from sessiond.store.sessions import SessionStore

_COMMIT_CONNECTIONS = 16


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
        self._plain = connect(url, timeout_seconds=redis.timeout_seconds, max_connections=2)
        self.redis: Redis = connect(
            url,
            timeout_seconds=redis.timeout_seconds,
            max_connections=redis.max_connections,
            admit=_admit,
        )
        self._subscriber = connect_subscriber(url, timeout_seconds=redis.timeout_seconds)
        self._commits = OrderedConnections(
            self.redis, size=_COMMIT_CONNECTIONS, timeout_seconds=redis.timeout_seconds
        )
        self.replicas = self._replica_acks(configuration, clock)
        self.committer = Committer(
            self._commits.execute,
            self.keys,
            replicas=self.replicas,
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
        self.workspace = sync.workspace
        self.sessions = Sessions(around, workspace=sync.workspace)
        self.messages = Messages(around, group_limit=configuration.api.max_group_operations)
        self.records = Records(around)
        self.conflicts = Conflicts(around, kept_days=sync.conflict_days)
        self.documents = Documents(around)
        self.refusals = Refusals(around)
        self.keyspace = Keyspace(self.redis, self.keys)
        self.scanner = Scanner(self.keyspace, clock)
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

    def _replica_acks(self, configuration: Configuration, clock: Clock) -> ReplicaAcks | None:
        redis = configuration.redis
        if redis.durability == "local":
            return None
        return ReplicaAcks(
            self._commits,
            OrderedConnection(self.redis, timeout_seconds=redis.timeout_seconds),
            self.keys.replication,
            wanted=redis.replicas,
            wait_seconds=redis.replica_wait_seconds,
            clock=clock,
        )

    def repairer(self, copies: Copies, changed: Callable[[str], None]) -> Repairer:
        """Return what repairs sessions; see Repairer."""
        return Repairer(
            self.scanner,
            self.keyspace,
            RepairStore(self.redis, self.keys),
            self.store,
            copies=copies,
            changed=changed,
            clock=self.around.clock,
        )

    @property
    def is_degraded(self) -> bool:
        """Whether replicas that are to confirm writes do not."""
        return self.replicas is not None and self.replicas.degraded_since is not None

    async def facts(self) -> ServerFacts:
        """Ask the server what it is.

        Raises:
            StoreUnavailable, ConfigurationError: it does not answer, or refuses this user.
        """
        return await read_facts(self._plain)

    async def close(self) -> None:
        """Finish what was accepted, then leave."""
        self.feeds.close()
        await self.store.close()
        await self.bus.close()
        if self.replicas:
            await self.replicas.close()
        await self._commits.close()
        await self._subscriber.aclose()
        await self.redis.aclose()
        await self._plain.aclose()


def _admit(info: Mapping[str, Any]) -> None:
    check_server(facts_of(info))


def _require_verified_tls(url: str) -> None:
    query = parse_qs(urlsplit(url).query)
    if query.get("ssl_cert_reqs", ["required"])[-1] not in ("required", "true"):
        raise ConfigurationError(
            "redis.url switches the check of the server's certificate off",
            hint="name the authority instead: ?ssl_ca_certs=/path/ca.pem",
        )

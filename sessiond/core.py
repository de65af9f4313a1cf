"""The services on one Redis, put together: what a daemon and a direct SessionManager share."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import Redis

from sessiond.archive.folder import ArchiveFolder
from sessiond.config import Configuration, PerformanceOptions
from sessiond.config.archive import folder_of
from sessiond.config.functions import imported
from sessiond.config.merging import merge_rules
from sessiond.errors import ConfigurationError
from sessiond.model import Context
from sessiond.policy.caching import paths_below
from sessiond.service.cached.caching import Caches
from sessiond.service.cached.edits import EditWatch
from sessiond.service.cached.fingerprints import Fingerprints
from sessiond.service.clock import Clock, system_clock
from sessiond.service.content.conflicts import Conflicts
from sessiond.service.content.documents import Documents
from sessiond.service.content.leases import Leases
from sessiond.service.content.messages import Messages
from sessiond.service.content.preferences import UserPreferences
from sessiond.service.content.presence import Presences
from sessiond.service.content.records import Records
from sessiond.service.content.sessions import Sessions
from sessiond.service.content.windows import WindowDefaults, Windows
from sessiond.service.durable.performing import Performer
from sessiond.service.durable.refusals import Refusals
from sessiond.service.health.checks import check_server
from sessiond.service.health.repairing import Copies, Journaled, Repairer
from sessiond.service.health.scanning import Scanner
from sessiond.service.identity import Entropy
from sessiond.service.live.feeds import Feeds
from sessiond.service.retention.archiving import Archiving
from sessiond.service.writing import Surroundings
from sessiond.store.archives import ArchiveStore
from sessiond.store.bus import Bus
from sessiond.store.cache import CacheStore
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
from sessiond.store.preferences import PreferenceStore
from sessiond.store.presence import PresenceStore
from sessiond.store.probe import ServerFacts, facts_of, read_facts
from sessiond.store.repairs import RepairStore
from sessiond.store.replicas import ReplicaAcks
from sessiond.store.sessions import SessionStore
from sessiond.store.use import UseStore

_COMMIT_CONNECTIONS = 16
_MIB = 1024 * 1024
_INCARNATION_BYTES = 4


class Core:
    """Sessions on one Redis.

    Args:
        url: where Redis is.
        configuration: options of `redis`, `sync` and `api`.
        instance: the name under which this process writes.
        clock: milliseconds since 1970.
        entropy: returns that many random bytes.
        default_archive: where archived sessions go if `retention.archive` does not say.
    """

    def __init__(
        self,
        url: str,
        configuration: Configuration,
        *,
        instance: str,
        clock: Clock = system_clock,
        entropy: Entropy = secrets.token_bytes,
        default_archive: Path | None = None,
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
            writer=f"{instance}.{entropy(_INCARNATION_BYTES).hex()}",
            batch_operations=sync.batch_operations,
            retry_seconds=sync.retry_seconds,
        )
        self.bus = Bus(self._subscriber)
        self.store = SessionStore(self.redis, self.keys, self.committer)
        self.opencode = OpencodeStore(self.redis, self.keys, self.store.recall)
        self.leases = Leases(
            LeaseStore(self.redis, self.keys, round(sync.lease_seconds * 1000)), instance
        )
        self.presences = Presences(
            PresenceStore(self.redis, self.keys, round(sync.presence_seconds * 1000)),
            self.store,
            machine=instance,
        )
        self.use = UseStore(self.redis, self.keys)
        self.around = around = Surroundings(
            self.store,
            ConflictStore(self.redis, self.keys),
            rules=merge_rules(sync.merge),
            clock=clock,
            entropy=entropy,
        )
        self.archiving = Archiving(
            around,
            ArchiveStore(self.redis, self.keys),
            archive_folder(configuration, default=default_archive),
        )
        self.workspace = sync.workspace
        self.preferences = UserPreferences(
            PreferenceStore(self.redis, self.keys), clock=clock, entropy=entropy
        )
        self.sessions = Sessions(around, workspace=sync.workspace, preferences=self.preferences)
        self.windows = Windows(window_defaults(configuration.performance))
        self.messages = Messages(around, group_limit=configuration.api.max_group_operations)
        self.records = Records(around)
        self.conflicts = Conflicts(around, kept_days=sync.conflict_days)
        self.documents = Documents(around)
        self.refusals = Refusals(around)
        self.keyspace = Keyspace(self.redis, self.keys)
        self.scanner = Scanner(self.keyspace, clock)
        self.caches = self._open_caches(configuration, instance)
        self._edits = EditWatch(self.caches)
        self.store.on_commit.append(self._edits.note_commit)
        self.performer = Performer(
            self.store.log,
            sessions=self.sessions,
            messages=self.messages,
            records=self.records,
            documents=self.documents,
            conflicts=self.conflicts,
            preferences=self.preferences,
        )
        self.feeds = Feeds(
            self.store, self.bus, self.keys, buffer_bytes=sync.subscriber_buffer_bytes
        )

    def note_read(self, session_id: str) -> None:
        """Take note that somebody reads a session: it is in use then."""
        self.use.note_read(session_id, self.around.clock())

    async def redis_answers(self) -> None:
        """Return when Redis has answered.

        Raises:
            SessiondError: it does not, or refuses this user.
        """
        await answered(self.redis.ping())

    def _open_caches(self, configuration: Configuration, instance: str) -> Caches:
        performance = configuration.performance
        store = CacheStore(
            self.redis,
            self.keys,
            life_ms=performance.cache_ttl_seconds * 1000,
            limit_bytes=performance.cache_mib * _MIB,
            compress=performance.compression_enabled,
        )
        return Caches(
            store, self.store, Fingerprints(), machine=instance, active_files=self._active_files
        )

    async def _active_files(self, session_id: str) -> list[str]:
        """Return the files below the project's folder that a session's context names."""
        context: Context = (await self.documents.read(session_id, "context")).value
        return paths_below(context.active_files)

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

    def repairer(
        self, copies: Copies, journaled: Journaled, changed: Callable[[str], None]
    ) -> Repairer:
        """Return what repairs sessions; see Repairer."""
        return Repairer(
            self.scanner,
            self.keyspace,
            RepairStore(self.redis, self.keys),
            self.store,
            copies=copies,
            journaled=journaled,
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
        await self.use.close()
        await self._edits.close()
        await self.caches.close()
        await self.store.close()
        await self.bus.close()
        if self.replicas:
            await self.replicas.close()
        await self._commits.close()
        await self._subscriber.aclose()
        await self.redis.aclose()
        await self._plain.aclose()


def archive_folder(
    configuration: Configuration, *, default: Path | None = None
) -> ArchiveFolder | None:
    """Return the folder that archived sessions go to; None where that is Redis itself."""
    folder = folder_of(configuration.retention.archive) or default
    return ArchiveFolder(folder) if folder else None


def window_defaults(options: PerformanceOptions) -> WindowDefaults:
    """Return what a context window is when nobody says.

    Raises:
        ConfigurationError: the function that summarises is not there, or there is to be none.
    """
    key, name = "performance.context_window_summary", options.context_window_summary
    if options.context_window_strategy == "summary" and not name:
        raise ConfigurationError(
            f"performance.context_window_strategy is summary, and {key} is empty",
            hint=f"name a function in {key}, or choose another strategy",
        )
    summarise = imported(name, key, "messages, tokens", "leave it empty") if name else None
    size, strategy = options.context_window_size, options.context_window_strategy
    return WindowDefaults(size, strategy, summarise)


def _admit(info: Mapping[str, Any]) -> None:
    check_server(facts_of(info))


def _require_verified_tls(url: str) -> None:
    query = parse_qs(urlsplit(url).query)
    if query.get("ssl_cert_reqs", ["required"])[-1] not in ("required", "true"):
        raise ConfigurationError(
            "redis.url switches the check of the server's certificate off",
            hint="name the authority instead: ?ssl_ca_certs=/path/ca.pem",
        )

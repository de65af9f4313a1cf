"""Every option of sessiond: its name, type, limits, default and meaning.

This is the only place where an option is declared. The table of options, the names of the
environment variables and the error messages are derived from here; `config/sessions.yaml`
is tested against it. The first four sections come from the specification.

A Struct built by hand is not checked: use `sessiond.config.load`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sessiond.config.refusals import HIDDEN

_Name = r"[A-Za-z0-9][A-Za-z0-9_.-]"
_AtLeastOne = Meta(ge=1)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections: frozen, and a key it does not know is an error."""


class PersistenceOptions(Section, frozen=True):
    """Where sessions are kept."""

    enabled: Annotated[
        bool,
        Meta(
            description="Keep sessions. false: in memory only, lost when the daemon ends; "
            "not with redis.url."
        ),
    ] = True
    backend: Annotated[
        Literal["file", "redis"],
        Meta(
            description="file: the embedded server, and a folder of JSON files; "
            "redis, or any redis.url: no files, unless mirror is true."
        ),
    ] = "file"
    directory: Annotated[
        str,
        Meta(
            min_length=1,
            description="Folder of the JSON files. If relative, below $XDG_DATA_HOME/sessiond.",
        ),
    ] = "./.opencode/sessions"
    format: Annotated[Literal["json"], Meta(description="Format of the session files.")] = "json"
    mirror: Annotated[
        bool, Meta(description="Keep the JSON files beside a Redis of redis.url, too.")
    ] = False


class RetentionOptions(Section, frozen=True):
    """How long sessions are kept. What is in use is never touched."""

    max_sessions: Annotated[
        int,
        _AtLeastOne,
        Meta(description="Sessions of a workspace; beyond, the longest unused are archived."),
    ] = 50
    max_age_days: Annotated[
        int,
        _AtLeastOne,
        Meta(description="Days without use after which a session is archived."),
    ] = 30
    cleanup_interval_hours: Annotated[
        int,
        _AtLeastOne,
        Meta(description="Hours between clean-ups; one daemon of a Redis does them."),
    ] = 24
    archive: Annotated[
        str,
        Meta(
            description="Folder of archived sessions, file:///path. Empty: beside the embedded "
            "server's data, or in your own Redis."
        ),
    ] = ""
    delete_archived_days: Annotated[
        int,
        Meta(
            ge=0,
            le=36_500,
            description="Days without use after which archived sessions are deleted. 0: never.",
        ),
    ] = 0


class PerformanceOptions(Section, frozen=True):
    """Caching and compression."""

    context_window_size: Annotated[
        int,
        Meta(ge=64, le=100_000_000, description="Tokens of a context window where none are said."),
    ] = 10_000
    context_window_strategy: Annotated[
        Literal["recent", "pinned", "tools", "summary"],
        Meta(description="What a context window keeps: see the README."),
    ] = "recent"
    context_window_summary: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)?\Z",
            description="Function that summarises, package.module:function. Empty: none.",
        ),
    ] = ""
    compression_enabled: Annotated[
        bool, Meta(description="Compress old parts of long sessions, and large cached answers.")
    ] = True
    cache_ttl_seconds: Annotated[
        int, _AtLeastOne, Meta(description="How long an answer of a tool is cached, in seconds.")
    ] = 3600
    cache_mib: Annotated[
        int,
        Meta(ge=1, le=1024, description="Cached answers of one session at most, in MiB."),
    ] = 16


class SecurityOptions(Section, frozen=True):
    """Encryption, access and audit."""

    encrypt_sessions: Annotated[
        bool, Meta(description="Encrypt sessions. Not available yet: true refuses to start.")
    ] = False
    access_control: Annotated[
        bool,
        Meta(description="Accepted; the local API always checks the user id or the token."),
    ] = True
    audit_logging: Annotated[
        bool, Meta(description="Accepted; no audit stream is written yet.")
    ] = True


class EmbeddedOptions(Section, frozen=True):
    """The Redis server that sessiond starts itself when `redis.url` is empty."""

    directory: Annotated[
        str, Meta(description="Data folder. Empty: $XDG_DATA_HOME/sessiond/redis.")
    ] = ""
    port: Annotated[
        int, Meta(ge=0, le=65535, description="TCP port on 127.0.0.1. 0: Unix socket only.")
    ] = 0
    appendfsync: Annotated[
        Literal["everysec", "always"],
        Meta(description="When writes reach the disk: every second, or before each answer."),
    ] = "everysec"
    binary: Annotated[
        str, Meta(description="Path of a redis-server or valkey-server. Empty: find one.")
    ] = ""


class RedisOptions(Section, frozen=True):
    """Which Redis, and how patiently."""

    url: Annotated[
        str,
        Meta(
            description="redis://, rediss:// or unix:// address. Empty: the embedded server.",
            extra={"secret": True},  # may hold a password
        ),
    ] = ""
    namespace: Annotated[
        str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}\Z", description="First word of every key.")
    ] = "sessiond"
    timeout_seconds: Annotated[
        float, Meta(ge=0.1, le=60, description="Seconds to wait for an answer of Redis.")
    ] = 5.0
    max_connections: Annotated[
        int, Meta(ge=2, le=1024, description="Connections to Redis at most.")
    ] = 64
    durability: Annotated[
        Literal["local", "replica"],
        Meta(description="Who has a write before it is acknowledged: Redis, or replicas too."),
    ] = "local"
    replicas: Annotated[
        int, Meta(ge=1, le=16, description="With replica: how many are to confirm a write.")
    ] = 1
    replica_wait_seconds: Annotated[
        float,
        Meta(
            ge=0.01,
            le=10,
            description="With replica: seconds they may take. Later the answer says so (degraded).",
        ),
    ] = 0.5
    embedded: EmbeddedOptions = msgspec.field(default_factory=EmbeddedOptions)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = msgspec.structs.replace(self, url=HIDDEN) if self.url else self
        return [(name, getattr(shown, name)) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        """Hide the address: a password in it must not reach a log or a traceback."""
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"RedisOptions({fields})"


class MergeOptions(Section, frozen=True):
    """How changes that were made at once merge: pattern for fields → strategy, per document.

    What stands here goes before the defaults (`sync/defaults.py`); `config.merging` checks it.
    """

    metadata: Annotated[
        dict[str, str], Meta(description="Strategies for fields of metadata, before the defaults.")
    ] = {}
    context: Annotated[
        dict[str, str], Meta(description="Strategies for fields of context, before the defaults.")
    ] = {}
    preferences: Annotated[
        dict[str, str],
        Meta(description="Strategies for fields of preferences, before the defaults."),
    ] = {}
    message: Annotated[
        dict[str, str], Meta(description="Strategies for fields of a message, before the defaults.")
    ] = {}
    part: Annotated[
        dict[str, str],
        Meta(description="Strategies for fields of a message's part, before the defaults."),
    ] = {}


class SyncOptions(Section, frozen=True):
    """How instances are kept in step."""

    instance: Annotated[
        str,
        Meta(
            pattern=rf"^({_Name}{{0,63}})?\Z",
            description="Name of this machine among the others. Empty: the host name.",
        ),
    ] = ""
    workspace: Annotated[
        str,
        Meta(
            pattern=rf"^{_Name}{{0,127}}\Z",
            description="Workspace of sessions that do not name one.",
        ),
    ] = "default"
    batch_operations: Annotated[
        int, Meta(ge=1, le=1024, description="Operations sent to Redis together at most.")
    ] = 128
    heartbeat_seconds: Annotated[
        float, Meta(ge=0.1, le=300, description="Seconds between signs of life.")
    ] = 15.0
    subscriber_buffer_bytes: Annotated[
        int,
        Meta(
            ge=65_536,
            le=67_108_864,
            description="Bytes held for a slow reader of events before it is reset.",
        ),
    ] = 8_388_608
    retry_seconds: Annotated[
        float,
        Meta(ge=0, le=60, description="Seconds a write is retried when Redis does not answer."),
    ] = 5.0
    lease_seconds: Annotated[
        float,
        Meta(ge=1, le=600, description="Seconds until the turn of an instance that died is free."),
    ] = 15.0
    conflict_days: Annotated[
        float,
        Meta(ge=0.01, le=3650, description="Days that conflicts are kept; open ones longer."),
    ] = 30.0
    presence_seconds: Annotated[
        float,
        Meta(ge=1, le=600, description="Seconds until an instance that died is at no session."),
    ] = 20.0
    merge: MergeOptions = msgspec.field(default_factory=MergeOptions)


class JournalOptions(Section, frozen=True):
    """The journal: this machine's durable outbox."""

    directory: Annotated[
        str, Meta(description="Data folder. Empty: $XDG_DATA_HOME/sessiond/journal.")
    ] = ""
    wait_seconds: Annotated[
        float,
        Meta(ge=0, le=60, description="Seconds an answer waits for Redis; then it says journaled."),
    ] = 1.0
    limit_mib: Annotated[
        int,
        Meta(ge=1, le=65_536, description="MiB of writes at most that Redis does not have."),
    ] = 256
    kept_mib: Annotated[
        int,
        Meta(ge=0, le=65_536, description="MiB of writes kept in case Redis goes back."),
    ] = 64
    kept_hours: Annotated[
        float,
        Meta(ge=0, le=8760, description="Hours that writes are kept for that."),
    ] = 24.0
    revive_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=604_800,
            description="Seconds until a lost session that is written to comes from a copy.",
        ),
    ] = 60.0


class ReplicaOptions(Section, frozen=True):
    """Copies of the sessions seen on this machine, for reading while Redis is away."""

    limit_mib: Annotated[
        int,
        Meta(ge=0, le=65_536, description="MiB of copies at most. 0: no copies are kept."),
    ] = 256


_ListEntry = Annotated[str, Meta(min_length=1)]


class ApiOptions(Section, frozen=True):
    """The local HTTP API."""

    socket: Annotated[
        str, Meta(description="Path of the Unix socket. Empty: in the runtime folder.")
    ] = ""
    host: Annotated[
        str, Meta(description="Loopback address to listen on as well. Empty: no TCP.")
    ] = ""
    port: Annotated[
        int, Meta(ge=0, le=65535, description="TCP port, when host is set. 0: a free one.")
    ] = 0
    token_file: Annotated[
        str, Meta(description="Path of the bearer token's file. Empty: beside the socket.")
    ] = ""
    allowed_hosts: Annotated[
        list[_ListEntry],
        Meta(description="Host headers accepted beside the API's own address, exactly."),
    ] = []
    allowed_origins: Annotated[
        list[_ListEntry],
        Meta(description="Origins of web pages that may call the API, exactly."),
    ] = []
    max_body_bytes: Annotated[
        int, Meta(ge=1024, le=16_777_216, description="Bytes of a request's body at most.")
    ] = 1_048_576
    max_group_operations: Annotated[
        int, Meta(ge=1, le=1024, description="Operations in one request at most.")
    ] = 64


class DebugOptions(Section, frozen=True):
    """What the daemon tells about itself."""

    sessions: Annotated[
        bool, Meta(description="Log every session's operations in detail; never their bodies.")
    ] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least level logged.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Meta(description="Format of log lines. auto: console on a terminal, else json."),
    ] = "auto"


class Configuration(Section, frozen=True):
    """All options of a daemon."""

    persistence: PersistenceOptions = msgspec.field(default_factory=PersistenceOptions)
    retention: RetentionOptions = msgspec.field(default_factory=RetentionOptions)
    performance: PerformanceOptions = msgspec.field(default_factory=PerformanceOptions)
    security: SecurityOptions = msgspec.field(default_factory=SecurityOptions)
    redis: RedisOptions = msgspec.field(default_factory=RedisOptions)
    sync: SyncOptions = msgspec.field(default_factory=SyncOptions)
    journal: JournalOptions = msgspec.field(default_factory=JournalOptions)
    replica: ReplicaOptions = msgspec.field(default_factory=ReplicaOptions)
    api: ApiOptions = msgspec.field(default_factory=ApiOptions)
    debug: DebugOptions = msgspec.field(default_factory=DebugOptions)


RUNTIME_OPTIONS: frozenset[str] = frozenset({"debug.sessions", "debug.log_level"})
"""Dotted names of the options that may change while the daemon runs."""

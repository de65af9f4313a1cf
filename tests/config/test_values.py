from __future__ import annotations

import pytest

from sessiond.config import Configuration, get, load, option_table
from sessiond.config.table import OPTIONS
from sessiond.errors import ConfigurationError


def loaded(flags: dict[str, object]) -> Configuration:
    return load(file=None, environ={}, flags=flags)


def refused(
    *, environ: dict[str, str] | None = None, flags: dict[str, object] | None = None
) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(file=None, environ=environ or {}, flags=flags or {})
    return caught.value


@pytest.mark.parametrize(
    ("key", "given_value", "value"),
    [
        ("api.port", "80", 80),
        ("api.port", 80, 80),
        ("sync.retry_seconds", 1, 1.0),
        ("debug.sessions", True, True),
        ("api.allowed_origins", ["a", "b"], ["a", "b"]),
        ("api.allowed_origins", ("a",), ["a"]),
        ("api.allowed_origins", "a,b", ["a", "b"]),
        ("api.port", None, 0),
    ],
)
def test_a_flag_may_be_a_value_or_a_text(key: str, given_value: object, value: object) -> None:
    assert get(loaded({key: given_value}), key) == value


LIMITS: dict[str, tuple[float, float | None]] = {
    "retention.max_sessions": (1, None),
    "retention.max_age_days": (1, None),
    "retention.cleanup_interval_hours": (1, None),
    "retention.delete_archived_days": (0, 36_500),
    "performance.context_window_size": (64, 100_000_000),
    "performance.cache_ttl_seconds": (1, None),
    "performance.cache_mib": (1, 1024),
    "redis.timeout_seconds": (0.1, 60),
    "redis.max_connections": (2, 1024),
    "redis.replicas": (1, 16),
    "redis.replica_wait_seconds": (0.01, 10),
    "redis.embedded.port": (0, 65535),
    "sync.batch_operations": (1, 1024),
    "sync.conflict_days": (0.01, 3650),
    "sync.heartbeat_seconds": (0.1, 300),
    "sync.subscriber_buffer_bytes": (65536, 67108864),
    "sync.retry_seconds": (0, 60),
    "sync.lease_seconds": (1, 600),
    "sync.presence_seconds": (1, 600),
    "journal.wait_seconds": (0, 60),
    "journal.limit_mib": (1, 65536),
    "journal.kept_mib": (0, 65536),
    "journal.kept_hours": (0, 8760),
    "journal.revive_seconds": (1, 604_800),
    "replica.limit_mib": (0, 65536),
    "api.port": (0, 65535),
    "api.max_body_bytes": (1024, 16777216),
    "api.max_group_operations": (1, 1024),
}


def test_every_number_has_limits_here() -> None:
    numbers = {row.key for row in option_table() if type(row.default) in {int, float}}
    assert numbers == LIMITS.keys()


@pytest.mark.parametrize("key", LIMITS)
def test_the_limits_themselves_are_allowed_and_nothing_beyond(key: str) -> None:
    least, most = LIMITS[key]
    step = 1 if isinstance(OPTIONS[key].default, int) else 0.001
    assert get(loaded({key: least}), key) == least
    assert key in refused(flags={key: least - step}).detail
    if most is not None:
        assert get(loaded({key: most}), key) == most
        assert key in refused(flags={key: most + step}).detail


@pytest.mark.parametrize(
    ("key", "allowed", "forbidden"),
    [
        ("redis.namespace", ["a", "a" * 32, "a-_9"], ["", "A", "9a", "a" * 33, "a:b", "a\n", "a*"]),
        ("sync.instance", ["", "a", "9", "A.b_c-" * 10], ["-a", ".", "a" * 65, "a b", "a\n", "é"]),
        ("sync.workspace", ["a", "9" * 128], ["", "-a", "a" * 129, "a/b", "a\n"]),
    ],
)
def test_names_match_their_patterns(key: str, allowed: list[str], forbidden: list[str]) -> None:
    for name in allowed:
        assert get(loaded({key: name}), key) == name
    for name in forbidden:
        assert key in refused(flags={key: name}).detail


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://localhost",
        "redis://:secret@10.0.0.1:6379/0",
        "rediss://me:se%40cret@redis.example:6380",
        "redis://[::1]:6379",
        "unix:///run/redis.sock",
        "unix://me:secret@/run/redis.sock?db=1",
    ],
)
def test_a_single_server_s_address_is_allowed(url: str) -> None:
    assert loaded({"redis.url": url}).redis.url == url


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://:hunter2@host", "give an address such as redis://127.0.0.1:6379/0"),
        ("REDIS://:hunter2@host", "give an address such as redis://127.0.0.1:6379/0"),
        ("host:hunter2", "give an address such as redis://127.0.0.1:6379/0"),
        (" redis://:hunter2@host", "give an address such as redis://127.0.0.1:6379/0"),
        ("redis-sentinel://:hunter2@host", "Sentinel and Cluster are not served; give"),
        ("redis+sentinel://:hunter2@host", "Sentinel and Cluster are not served; give"),
        ("redis+cluster://:hunter2@host", "Sentinel and Cluster are not served; give"),
        (
            "rediss+sentinel://:hunter2@host",
            "Sentinel and Cluster are not served; give",
        ),
        ("rediss-cluster://:hunter2@host", "Sentinel and Cluster are not served; give"),
        ("redis://:hunter2", "give an address such as"),
        ("redis://:hunter2@host:port", "give an address such as"),
        ("redis://:hunter2@host:99999", "give an address such as"),
        ("redis://:hunter2#@host", "give an address such as"),
        ("redis://[hunter2", "give an address such as"),
        ("unix://hunter2/redis.sock", "give an address such as"),
        ("unix://", "give an address such as"),
    ],
)
def test_other_addresses_of_redis_are_refused_unseen(url: str, hint: str) -> None:
    error = refused(flags={"redis.url": url})
    assert error.detail.startswith("flag: redis.url: expected ")
    assert "found ***" in error.detail
    assert error.hint.startswith(hint)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("host", ["", "127.0.0.1", "127.1.2.3", "::1", "0:0:0:0:0:0:0:1"])
def test_a_loopback_host_is_allowed(host: str) -> None:
    assert loaded({"api.host": host}).api.host == host


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",  # noqa: S104  # never bound: refused
        "::",
        "10.0.0.1",
        "localhost",
        "example.org",
        "::1%eth0",
        "[::1]",
        "::ffff:8.8.8.8",
    ],
)
def test_any_other_host_is_refused(host: str) -> None:
    error = refused(environ={"SESSIOND_API_HOST": host})
    assert error.detail == (
        "variable SESSIOND_API_HOST: api.host: expected '' or a loopback address, "
        f"found the text '{host}'"
    )
    assert error.hint == (
        "TLS is not available; use 127.0.0.1 or ::1, or a Unix socket forwarded by ssh"
    )

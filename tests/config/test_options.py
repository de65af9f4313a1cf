from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from sessiond import config
from sessiond.config.load import from_document
from sessiond.config.options import Section
from sessiond.config.table import OPTIONS, SECTIONS
from sessiond.config.values import _RULES
from sessiond.config.yaml_guard import Document, read_yaml
from sessiond.errors import ConfigurationError
from sessiond.sync.defaults import DEFAULTS, MERGED_DOCUMENTS

SHIPPED = Path(__file__).parents[2] / "config" / "sessions.yaml"

SPECIFICATION: dict[str, Any] = {
    "persistence": {
        "enabled": True,
        "backend": "file",
        "directory": "./.opencode/sessions",
        "format": "json",
        "mirror": False,  # ours
    },
    "retention": {
        "max_sessions": 50,
        "max_age_days": 30,
        "cleanup_interval_hours": 24,
        "archive": "",  # ours
        "delete_archived_days": 0,
    },
    "performance": {
        "context_window_size": 10000,
        "compression_enabled": True,
        "cache_ttl_seconds": 3600,
        "cache_mib": 16,
    },
    "security": {"encrypt_sessions": False, "access_control": True, "audit_logging": True},
}
OURS: dict[str, Any] = {
    "performance": SPECIFICATION["performance"]
    | {"context_window_strategy": "recent", "context_window_summary": ""},
    "redis": {
        "url": "",
        "namespace": "sessiond",
        "timeout_seconds": 5.0,
        "max_connections": 64,
        "durability": "local",
        "replicas": 1,
        "replica_wait_seconds": 0.5,
        "embedded": {"directory": "", "port": 0, "appendfsync": "everysec", "binary": ""},
    },
    "sync": {
        "instance": "",
        "workspace": "default",
        "batch_operations": 128,
        "heartbeat_seconds": 15.0,
        "subscriber_buffer_bytes": 8388608,
        "retry_seconds": 5.0,
        "lease_seconds": 15.0,
        "conflict_days": 30.0,
        "presence_seconds": 20.0,
        "merge": {"metadata": {}, "context": {}, "preferences": {}, "message": {}, "part": {}},
    },
    "journal": {
        "directory": "",
        "wait_seconds": 1.0,
        "limit_mib": 256,
        "kept_mib": 64,
        "kept_hours": 24.0,
        "revive_seconds": 60.0,
    },
    "replica": {"limit_mib": 256},
    "api": {
        "socket": "",
        "host": "",
        "port": 0,
        "token_file": "",
        "allowed_hosts": [],
        "allowed_origins": [],
        "max_body_bytes": 1048576,
        "max_group_operations": 64,
    },
    "debug": {"sessions": False, "log_level": "info", "log_format": "auto"},
}


@pytest.fixture
def shipped() -> Document:
    return read_yaml(SHIPPED.read_bytes(), str(SHIPPED))


def test_the_defaults_are_the_specification_s_and_ours() -> None:
    assert msgspec.to_builtins(config.Configuration()) == SPECIFICATION | OURS


def test_the_shipped_file_equals_the_defaults() -> None:
    loaded = config.load(file=SHIPPED, environ={}, flags={})
    assert loaded == config.Configuration()


def test_the_shipped_file_names_every_option_and_no_other(shipped: Document) -> None:
    assert list(from_document(shipped)) == list(OPTIONS)


def test_every_option_of_the_shipped_file_has_a_comment_above_it(shipped: Document) -> None:
    lines = SHIPPED.read_text().splitlines()
    for key in OPTIONS:
        line, column = shipped.line(tuple(key.split(".")))
        assert lines[line - 1].strip().startswith(key.rpartition(".")[2] + ":")
        assert lines[line - 2].startswith(" " * (column - 1) + "# "), key


def test_the_shipped_file_states_the_limits_of_every_number(shipped: Document) -> None:
    lines = SHIPPED.read_text().splitlines()
    for row in config.option_table():
        line = shipped.line(tuple(row.key.split("."))).line - 1
        above = line
        while lines[above - 1].strip().startswith("#"):
            above -= 1
        comment = " ".join(lines[above:line])
        words = row.type.split()
        if row.type.startswith(("a number", "a whole number from")):
            assert f"{words[-3]} to {words[-1]}" in comment, row.key
        elif row.type.startswith("a whole number"):
            assert f"at least {words[-1]}" in comment, row.key


def test_the_shipped_file_states_the_default_rules_for_merging(shipped: Document) -> None:
    lines = SHIPPED.read_text().splitlines()
    for document in MERGED_DOCUMENTS:
        end = shipped.line(("sync", "merge", document)).line - 1
        above = end
        while lines[above - 1].startswith("    #   "):
            above -= 1
        stated = read_yaml("\n".join(line.strip("# ") for line in lines[above:end]), "").value
        assert stated == {
            rule.path: rule.strategy for rule in DEFAULTS if rule.document == document
        }


def test_every_option_is_documented_in_the_table() -> None:
    for row in config.option_table():
        assert row.doc.endswith("."), row.key
        assert row.type


def test_the_table_tells_type_and_default_in_words() -> None:
    table = {row.key: row for row in config.option_table()}
    assert table["redis.timeout_seconds"] == (
        "redis.timeout_seconds",
        "a number from 0.1 to 60",
        5.0,
        "Seconds to wait for an answer of Redis.",
    )
    assert table["retention.max_sessions"].type == "a whole number, at least 1"
    assert table["sync.subscriber_buffer_bytes"].type == "a whole number from 65536 to 67108864"
    assert table["persistence.backend"].type == "one of file, redis"
    assert table["persistence.format"].type == "json"
    assert table["persistence.enabled"].type == "true or false"
    assert table["api.allowed_hosts"].type == "a list, each entry a text that is not empty"
    assert table["redis.namespace"].type == "a text that matches [a-z][a-z0-9_-]{0,31}"
    assert table["redis.url"].type == "a text"
    assert table["sync.merge.context"].type == "a section, each entry a text"


def test_every_variable_belongs_to_one_option() -> None:
    assert len({option.variable for option in OPTIONS.values()}) == len(OPTIONS)
    assert OPTIONS["redis.embedded.port"].variable == "SESSIOND_REDIS_EMBEDDED_PORT"


def test_no_option_has_the_name_of_a_section() -> None:
    assert not OPTIONS.keys() & SECTIONS.keys()


def test_every_rule_is_about_an_option() -> None:
    assert _RULES.keys() <= OPTIONS.keys()


def test_runtime_options_exist() -> None:
    assert {"debug.sessions", "debug.log_level"} == config.RUNTIME_OPTIONS
    assert OPTIONS.keys() >= config.RUNTIME_OPTIONS


def test_sections_are_frozen_and_forbid_unknown_keys() -> None:
    for section in Section.__subclasses__():
        assert section.__struct_config__.frozen
        assert section.__struct_config__.forbid_unknown_fields
    with pytest.raises(AttributeError):
        config.Configuration().redis.url = "redis://elsewhere"  # type: ignore[misc]


def test_configurations_do_not_share_their_lists() -> None:
    config.Configuration().api.allowed_hosts.append("mine")
    assert config.Configuration().api.allowed_hosts == []
    assert config.load(file=None, environ={}, flags={}).api.allowed_hosts == []
    defaults = {row.key: row.default for row in config.option_table()}
    assert defaults["api.allowed_hosts"] == []


def test_the_repr_hides_the_address_of_redis() -> None:
    loaded = config.load(file=None, environ={}, flags={"redis.url": "redis://:hunter2@h:1"})
    assert "hunter2" not in repr(loaded)
    assert "url='***'" in repr(loaded)
    assert "namespace='sessiond'" in repr(loaded)
    assert "hunter2" not in repr(loaded.redis.__rich_repr__())
    assert loaded.redis.url == "redis://:hunter2@h:1"


def test_get_reads_any_option() -> None:
    defaults = config.Configuration()
    for row in config.option_table():
        assert config.get(defaults, row.key) == row.default


@pytest.mark.parametrize(
    ("key", "detail", "hint"),
    [
        (
            "redis.ulr",
            (
                "redis.ulr: expected one of url, namespace, timeout_seconds, max_connections, "
                "durability, replicas, replica_wait_seconds, embedded, "
                "found the unknown name 'ulr'"
            ),
            "did you mean 'url' in section 'redis'?",
        ),
        (
            "redis.embedded",
            "redis.embedded: expected an option, found the name of a section",
            (
                "name one of its options: redis.embedded.directory, redis.embedded.port, "
                "redis.embedded.appendfsync, redis.embedded.binary"
            ),
        ),
        (
            "max_sessions",
            (
                "max_sessions: expected one of persistence, retention, performance, security, "
                "redis, sync, journal, replica, api, debug, found the unknown name 'max_sessions'"
            ),
            "did you mean 'max_sessions' in section 'retention'?",
        ),
        (
            "quux",
            (
                "quux: expected one of persistence, retention, performance, security, "
                "redis, sync, journal, replica, api, debug, found the unknown name 'quux'"
            ),
            "the project's config/sessions.yaml lists every option",
        ),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(key: str, detail: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.get(config.Configuration(), key)
    assert caught.value.detail == detail
    assert caught.value.hint == hint


@pytest.mark.parametrize("key", ["", ".", "redis.", ".url", "__class__", "x" * 100_000])
def test_no_name_reaches_beyond_the_options(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.get(config.Configuration(), key)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("debug.sessions", "true"),
        ("retention.max_sessions", "7"),
        ("sync.retry_seconds", "0.5"),
        ("redis.embedded.appendfsync", "always"),
        ("api.allowed_hosts", "a.example,b.example"),
        ("api.allowed_hosts", ""),
        ("sync.instance", "here"),
        ("redis.url", "redis://127.0.0.1:6379/0"),
    ],
)
def test_what_is_displayed_can_be_typed_again(key: str, text: str) -> None:
    assert config.displayed(config.with_value(config.Configuration(), key, text), key) == text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("", ""),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:hunter2@host:6379", "redis://***@host:6379"),
        ("rediss://me:hunter2@[::1]:6379/1", "rediss://***@[::1]:6379/1"),
        ("redis://host/0?password=hunter2", "redis://host/0?***"),
        ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock?***"),
        ("unix://me@/run/redis.sock", "unix://***@/run/redis.sock"),
        ("redis://:hunt/er2@host", "***"),
        ("redis://:hunt?er2@host", "***"),
        ("redis://:hunt@er2@host", "***"),
        ("redis://:hunter2", "***"),
        ("hunter2", "***"),
    ],
)
def test_an_address_is_displayed_without_its_password(address: str, shown: str) -> None:
    assert config.shown_address(address) == shown

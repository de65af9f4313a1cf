from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond.config import Configuration, get, load, option_table, with_value
from sessiond.config.table import OPTIONS
from sessiond.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sessions.yaml"


def loaded(
    *,
    file: Path | None = None,
    text: str | None = None,
    environ: dict[str, str] | None = None,
    flags: dict[str, object] | None = None,
) -> Configuration:
    if file is not None and text is not None:
        file.write_text(text)
    return load(file=file, environ=environ or {}, flags=flags or {})


def refused(**layers: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        loaded(**layers)
    return caught.value


def test_without_any_layer_the_defaults_hold() -> None:
    assert loaded() == Configuration()


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(file: Path) -> None:
    text = "sync: {batch_operations: 2, workspace: file, instance: file}"
    environ = {"SESSIOND_SYNC_BATCH_OPERATIONS": "3", "SESSIOND_SYNC_WORKSPACE": "variable"}
    flags: dict[str, object] = {"sync.batch_operations": 4}
    sync = loaded(file=file, text=text, environ=environ, flags=flags).sync
    assert (sync.batch_operations, sync.workspace, sync.instance) == (4, "variable", "file")
    assert sync.heartbeat_seconds == 15


def test_a_layer_changes_only_what_it_names(file: Path) -> None:
    text = "redis: {embedded: {port: 7000}}"
    redis = loaded(file=file, text=text, environ={"SESSIOND_REDIS_NAMESPACE": "n"}).redis
    assert (redis.embedded.port, redis.embedded.appendfsync, redis.namespace) == (
        7000,
        "everysec",
        "n",
    )


def test_an_empty_section_is_a_section_without_options(file: Path) -> None:
    assert loaded(file=file, text="redis:\n  # url: nothing yet\nsync: {}\n") == Configuration()


def test_an_empty_file_changes_nothing(file: Path) -> None:
    assert loaded(file=file, text="") == Configuration()


def test_a_wrong_value_is_refused_even_where_another_wins(file: Path) -> None:
    error = refused(file=file, text="api: {port: x}", flags={"api.port": 1})
    assert "api.port" in error.detail


def test_a_rule_is_about_the_value_that_wins(file: Path) -> None:
    flags: dict[str, object] = {"security.encrypt_sessions": False}
    assert loaded(file=file, text="security: {encrypt_sessions: true}", flags=flags)


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("SESSIOND_REDIS_URL", "redis://:secret@host:1/2", "redis.url", "redis://:secret@host:1/2"),
        ("SESSIOND_API_SOCKET", "/run/s", "api.socket", "/run/s"),
        ("SESSIOND_API_SOCKET", "", "api.socket", ""),
        ("SESSIOND_API_SOCKET", "42", "api.socket", "42"),
        ("SESSIOND_DEBUG_SESSIONS", "true", "debug.sessions", True),
        ("SESSIOND_DEBUG_SESSIONS", "False", "debug.sessions", False),
        ("SESSIOND_REDIS_EMBEDDED_PORT", "7000", "redis.embedded.port", 7000),
        ("SESSIOND_SYNC_RETRY_SECONDS", "0", "sync.retry_seconds", 0.0),
        ("SESSIOND_SYNC_RETRY_SECONDS", "2.5", "sync.retry_seconds", 2.5),
        ("SESSIOND_PERSISTENCE_BACKEND", "redis", "persistence.backend", "redis"),
        ("SESSIOND_API_ALLOWED_HOSTS", "a:1, b:2", "api.allowed_hosts", ["a:1", "b:2"]),
        ("SESSIOND_API_ALLOWED_HOSTS", "", "api.allowed_hosts", []),
    ],
)
def test_a_variable_is_read_as_the_type_of_its_option(
    variable: str, text: str, key: str, value: object
) -> None:
    found = get(loaded(environ={variable: text}), key)
    assert found == value
    assert type(found) is type(value)


def test_other_variables_and_the_reserved_ones_are_left_alone() -> None:
    environ = {
        "SESSIOND_CONFIG": "/a",
        "SESSIOND_TEST_REDIS": "x",
        "PATH": "/bin",
        "sessiond_redis_url": "x",
        "SESSIOND": "x",
    }
    assert loaded(environ=environ) == Configuration()


def test_with_value_changes_one_option_and_leaves_the_original() -> None:
    before = loaded(flags={"redis.embedded.port": 7000, "api.allowed_hosts": ["a"]})
    after = with_value(before, "debug.log_level", "debug")
    assert before.debug.log_level == "info"
    assert after.debug.log_level == "debug"
    assert with_value(after, "debug.log_level", "info") == before


@pytest.mark.parametrize(
    ("key", "text", "detail"),
    [
        ("debug.sessions", "yes", "debug.sessions: expected true or false, found the text 'yes'"),
        ("debug.sesions", "true", "debug.sesions: expected one of sessions, log_level, "),
        ("api.host", "0.0.0.0", "api.host: expected '' or a loopback address, found the text "),  # noqa: S104
        ("security.encrypt_sessions", "true", "security.encrypt_sessions: expected false, found "),
    ],
)
def test_with_value_refuses_what_load_refuses(key: str, text: str, detail: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        with_value(Configuration(), key, text)
    assert caught.value.detail.startswith(detail)


@given(
    st.dictionaries(
        st.sampled_from([option.variable for option in OPTIONS.values()])
        | st.text(max_size=20).map("SESSIOND_".__add__),
        st.text(st.characters(), max_size=40),
        max_size=3,
    ),
    st.dictionaries(
        st.sampled_from(list(OPTIONS)) | st.text(max_size=20),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.binary()
        | st.lists(st.text(), max_size=3)
        | st.text(st.characters(), max_size=40),
        max_size=3,
    ),
)
def test_whatever_is_given_the_result_is_a_configuration_or_a_refusal(
    environ: dict[str, str], flags: dict[str, object]
) -> None:
    result: Configuration | ConfigurationError
    try:
        result = load(file=None, environ=environ, flags=flags)
    except ConfigurationError as error:
        result = error
    if isinstance(result, ConfigurationError):
        assert result.hint
        str(result).encode()
        return
    for row in option_table():
        assert type(get(result, row.key)) is type(row.default)

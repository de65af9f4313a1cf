"""Every way in which a file, a variable or a flag is wrong, and the words that say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sessiond.config import load
from sessiond.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


def refused(
    *,
    file: Path | None = None,
    environ: dict[str, str] | None = None,
    flags: dict[str, object] | None = None,
) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(file=file, environ=environ or {}, flags=flags or {})
    return caught.value


@pytest.mark.parametrize(
    ("text", "detail", "hint"),
    [
        (
            "redis:\n  ulr: redis://:hunter2@host\n",
            (
                "line 2, column 3: redis.ulr: expected one of url, namespace, timeout_seconds, "
                "max_connections, durability, replicas, replica_wait_seconds, embedded, "
                "found the unknown name 'ulr'"
            ),
            "did you mean 'url' in section 'redis'?",
        ),
        (
            "redsi:\n  url: ''\n",
            (
                "line 1, column 1: redsi: expected one of persistence, retention, performance, "
                "security, redis, sync, journal, replica, api, debug, "
                "found the unknown name 'redsi'"
            ),
            "did you mean 'redis'?",
        ),
        (
            "redis.url: redis://:hunter2@host",
            (
                "line 1, column 1: redis.url: expected one of url, namespace, timeout_seconds, "
                "max_connections, durability, replicas, replica_wait_seconds, embedded, "
                "found the unknown name 'url'"
            ),
            "did you mean 'url' in section 'redis'?",
        ),
        (
            "debug:\n  sessions: NO\n",
            "line 2, column 3: debug.sessions: expected true or false, found the text 'NO'",
            "give debug.sessions true or false",
        ),
        (
            "api:\n  port: '80'\n",
            (
                "line 2, column 3: api.port: expected a whole number from 0 to 65535, "
                "found the text '80'"
            ),
            "give api.port a whole number from 0 to 65535",
        ),
        (
            "api:\n  port: 22:22\n",
            (
                "line 2, column 3: api.port: expected a whole number from 0 to 65535, "
                "found the text '22:22'"
            ),
            "give api.port a whole number from 0 to 65535",
        ),
        (
            "api:\n  port: 65536\n",
            (
                "line 2, column 3: api.port: expected a whole number from 0 to 65535, "
                "found the number 65536"
            ),
            "give api.port a whole number from 0 to 65535",
        ),
        (
            "retention: {max_sessions: 0}",
            (
                "line 1, column 13: retention.max_sessions: expected a whole number, at least 1, "
                "found the number 0"
            ),
            "give retention.max_sessions a whole number, at least 1",
        ),
        (
            "retention: {max_sessions: 1.0}",
            (
                "line 1, column 13: retention.max_sessions: expected a whole number, at least 1, "
                "found the number 1.0"
            ),
            "give retention.max_sessions a whole number, at least 1",
        ),
        (
            "retention: {max_sessions: true}",
            (
                "line 1, column 13: retention.max_sessions: expected a whole number, at least 1, "
                "found true"
            ),
            "give retention.max_sessions a whole number, at least 1",
        ),
        (
            "sync: {retry_seconds: }",
            "line 1, column 8: sync.retry_seconds: expected a number from 0 to 60, found nothing",
            "give sync.retry_seconds a number from 0 to 60",
        ),
        (
            "persistence: {backend: s3}",
            (
                "line 1, column 15: persistence.backend: expected one of file, redis, "
                "found the text 's3'"
            ),
            "give persistence.backend one of file, redis",
        ),
        (
            "redis: {namespace: Big}",
            (
                "line 1, column 9: redis.namespace: expected a text that matches "
                "[a-z][a-z0-9_-]{0,31}, found the text 'Big'"
            ),
            "give redis.namespace a text that matches [a-z][a-z0-9_-]{0,31}",
        ),
        (
            "api:\n  allowed_hosts: a.example\n",
            (
                "line 2, column 3: api.allowed_hosts: expected a list, each entry a text that is "
                "not empty, found the text 'a.example'"
            ),
            "give api.allowed_hosts a list, each entry a text that is not empty",
        ),
        (
            "api:\n  allowed_hosts: [a.example, 7]\n",
            (
                "line 2, column 3: api.allowed_hosts[1]: expected a text that is not empty, "
                "found the number 7"
            ),
            "give api.allowed_hosts[1] a text that is not empty",
        ),
        (
            "api: {socket: {path: x}}",
            "line 1, column 7: api.socket: expected a text, found a section",
            "give api.socket a text",
        ),
        (
            "redis: redis://:hunter2@host",
            (
                "line 1, column 1: redis: expected a section with any of url, namespace, "
                "timeout_seconds, max_connections, durability, replicas, "
                "replica_wait_seconds, embedded, found ***"
            ),
            "write each option on a line of its own, indented: 'name: value'",
        ),
        (
            "[redis]",
            (
                "line 1, column 1: expected a section with any of persistence, retention, "
                "performance, security, redis, sync, journal, replica, api, debug, found a list"
            ),
            "write each option on a line of its own, indented: 'name: value'",
        ),
        (
            "redis: {url: 4711}",
            "line 1, column 9: redis.url: expected a text, found ***",
            "give redis.url a text",
        ),
        (
            "api: {port: 'redis://:hunter2@host'}",
            "line 1, column 7: api.port: expected a whole number from 0 to 65535, found ***",
            "give api.port a whole number from 0 to 65535",
        ),
        (
            'api: {socket: "a\\0b"}',
            (
                "line 1, column 7: api.socket: expected a text of one line that can be shown, "
                "found a control character or half a character"
            ),
            "remove the character",
        ),
        (
            "security: {encrypt_sessions: true}",
            (
                "line 1, column 12: security.encrypt_sessions: expected false, found true; "
                "encryption is not available in this version; "
                "nothing was started so that no session is stored in plain text"
            ),
            "set security.encrypt_sessions to false to store sessions in plain text",
        ),
        (
            "api: {host: 0.0.0.0}",
            (
                "line 1, column 7: api.host: expected '' or a loopback address, "
                "found the text '0.0.0.0'"
            ),
            "TLS is not available; use 127.0.0.1 or ::1, or a Unix socket forwarded by ssh",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_line_and_key(
    tmp_path: Path, text: str, detail: str, hint: str
) -> None:
    file = tmp_path / "sessions.yaml"
    file.write_text(text)
    error = refused(file=file)
    assert error.detail == f"{file}, {detail}"
    assert error.hint == hint
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("variable", "text", "detail", "hint"),
    [
        (
            "SESSIOND_REDIS_ULR",
            "redis://:hunter2@host",
            (
                "variable SESSIOND_REDIS_ULR: expected the name of an option, "
                "SESSIOND_<SECTION>_<KEY>, found a name that no option has"
            ),
            "did you mean SESSIOND_REDIS_URL? Else unset it",
        ),
        (
            "SESSIOND_QQQQQQQQQQQQQQQQQQQQQQQQQQ",
            "",
            (
                "variable SESSIOND_QQQQQQQQQQQQQQQQQQQQQQQQQQ: expected the name of an option, "
                "SESSIOND_<SECTION>_<KEY>, found a name that no option has"
            ),
            "unset it",
        ),
        (
            "SESSIOND_DEBUG_SESSIONS",
            "1",
            (
                "variable SESSIOND_DEBUG_SESSIONS: debug.sessions: expected true or false, "
                "found the number 1"
            ),
            "give debug.sessions true or false",
        ),
        (
            "SESSIOND_API_PORT",
            "",
            (
                "variable SESSIOND_API_PORT: api.port: expected a whole number from 0 to 65535, "
                "found nothing"
            ),
            "give api.port a whole number from 0 to 65535",
        ),
        (
            "SESSIOND_API_PORT",
            "9" * 5000,
            (
                "variable SESSIOND_API_PORT: api.port: expected a whole number from 0 to 65535, "
                "found a very large number"
            ),
            "give api.port a whole number from 0 to 65535",
        ),
        (
            "SESSIOND_API_PORT",
            "9" * 60,
            (
                "variable SESSIOND_API_PORT: api.port: expected a whole number from 0 to 65535, "
                "found a very large number"
            ),
            "give api.port a whole number from 0 to 65535",
        ),
        (
            "SESSIOND_API_PORT",
            "hunter2@",
            (
                "variable SESSIOND_API_PORT: api.port: expected a whole number from 0 to 65535, "
                "found ***"
            ),
            "give api.port a whole number from 0 to 65535",
        ),
        (
            "SESSIOND_SYNC_INSTANCE",
            "x" * 65,
            (
                "variable SESSIOND_SYNC_INSTANCE: sync.instance: expected a text that matches "
                "([A-Za-z0-9][A-Za-z0-9_.-]{0,63})?, found a text of 65 characters"
            ),
            "give sync.instance a text that matches ([A-Za-z0-9][A-Za-z0-9_.-]{0,63})?",
        ),
        (
            "SESSIOND_API_ALLOWED_HOSTS",
            "a,,b",
            (
                "variable SESSIOND_API_ALLOWED_HOSTS: api.allowed_hosts[1]: expected a text "
                "that is not empty, found the text ''"
            ),
            "give api.allowed_hosts[1] a text that is not empty",
        ),
        (
            "SESSIOND_API_SOCKET",
            "/run/\udcff",
            (
                "variable SESSIOND_API_SOCKET: api.socket: expected a text of one line that can be "
                "shown, found a control character or half a character"
            ),
            "remove the character",
        ),
    ],
)
def test_a_wrong_variable_is_refused_by_name(
    variable: str, text: str, detail: str, hint: str
) -> None:
    error = refused(environ={variable: text})
    assert error.detail == detail
    assert error.hint == hint
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("key", "value", "detail"),
    [
        ("redis.ulr", "x", "flag: redis.ulr: expected one of url, namespace, "),
        ("api.port", "x", "flag: api.port: expected a whole number from 0 to 65535, found the "),
        ("api.port", True, "flag: api.port: expected a whole number from 0 to 65535, found true"),
        ("api.port", 10**100, "flag: api.port: expected a whole number from 0 to 65535, found a "),
        ("api.port", object(), "flag: api.port: expected a whole number from 0 to 65535, found a "),
        ("redis.url", b"hunter2", "flag: redis.url: expected a text, found a Python bytes"),
        ("redis.url", 4711, "flag: redis.url: expected a text, found ***"),
        (
            "sync.retry_seconds",
            float("nan"),
            "flag: sync.retry_seconds: expected a number from 0 to 60, found the number nan",
        ),
        (
            "sync.retry_seconds",
            float("inf"),
            "flag: sync.retry_seconds: expected a number from 0 to 60, found the number inf",
        ),
        ("redis", {"url": ""}, "flag: redis: expected an option, found the name of a section"),
    ],
)
def test_a_wrong_flag_is_refused(key: str, value: object, detail: str) -> None:
    error = refused(flags={key: value})
    assert error.detail.startswith(detail)
    assert error.hint

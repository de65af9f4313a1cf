"""`sessiond config`."""

from __future__ import annotations

import pytest

from tests.cli.commands import SHOWN, append, ask, called, sessiond
from tests.daemons import RunningDaemon, wait_for


def test_config_get_shows_the_options_of_the_daemon_or_of_the_next_one(
    daemon: RunningDaemon, nobody: RunningDaemon
) -> None:
    assert sessiond(daemon, "config", "get", "sync.instance").stdout == "here\n"
    url = "redis://:secret-word@127.0.0.1:1/0"
    shown = called(nobody, "config", "get", SESSIOND_REDIS_URL=url).stdout
    assert "sync.workspace = default\n" in shown
    assert "secret-word" not in shown
    refused = called(nobody, "config", "get", "sync.workspac", code=4)
    assert "sync.workspac" in refused.stderr
    assert "hint:" in refused.stderr


def test_config_set_turns_detailed_session_logging_on_and_off(daemon: RunningDaemon) -> None:
    def logged() -> int:
        return daemon.log.count('"event": "session.message_append"')

    append(daemon, SHOWN, "quiet")
    assert logged() == 0
    done = sessiond(daemon, "config", "set", "debug.sessions", "true")
    assert "debug.sessions = true" in done.stdout
    append(daemon, SHOWN, "told")
    wait_for(lambda: logged() == 1)
    called(daemon, "config", "set", "debug.sessions", "false")
    append(daemon, SHOWN, "quiet again")
    assert logged() == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("api.port", "1", ["api.port cannot change while the daemon runs", "debug.sessions"]),
        ("debug.session", "true", ["debug.session", "did you mean", "sessions"]),
        ("debug.sessions", "maybe", ["debug.sessions", "true or false"]),
    ],
)
def test_config_set_refuses_what_cannot_be_and_says_what_can(
    daemon: RunningDaemon, key: str, value: str, words: list[str]
) -> None:
    done = called(daemon, "config", "set", key, value, code=4)
    for word in words:
        assert word in done.stderr
    assert (
        ask(daemon, lambda client: client.call("GET", "/v1/config", dict[str, str]))[0][
            "debug.sessions"
        ]
        == "false"
    )

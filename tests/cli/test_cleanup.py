"""`sessiond cleanup`, and what `status` says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from redis import Redis

from sessiond.model import NewSession
from sessiond.store.keys import Keys
from tests.api.client import Client
from tests.api.wire import assert_problem
from tests.cli.commands import EVIL, ask, controls, following, sessiond, status_of
from tests.daemons import RunningDaemon, running_daemon, wait_for

KEYS = Keys()
LONG_AGO = "2001-01-13T10:30:00.000Z"


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """A daemon that keeps archived sessions for a day; two sessions are over its limits."""
    with running_daemon(start=False) as daemon:
        daemon.configure("retention: {delete_archived_days: 1}\n")
        daemon.start()

        def age(name: str, **more: str) -> None:
            ask(daemon, lambda client: client.create(NewSession(session_id=name, title=EVIL)))
            with Redis(unix_socket_path=str(daemon.redis_socket)) as redis:
                redis.hset(KEYS.metadata(name), mapping={"last_activity": LONG_AGO, **more})
                redis.delete(KEYS.reads(name))

        age("ses_old")
        age("ses_archived", status="archived")
        ask(daemon, lambda client: client.create(NewSession(session_id="ses_new")))
        yield daemon


def test_a_dry_run_shows_what_would_go_and_why_and_changes_nothing(daemon: RunningDaemon) -> None:
    told = sessiond(daemon, "cleanup", "--dry-run").stdout
    lines = told.splitlines()
    assert lines[0].split() == ["session", "would", "be", "why"]
    assert lines[1].startswith("ses_old       archived  not used for ")
    assert lines[2].startswith("ses_archived  deleted   archived, and not used for ")
    assert "retention.delete_archived_days: 1" in lines[2]
    assert lines[-1] == "would be: 1 archived, 1 deleted, of 3 sessions"
    assert "ses_new" not in told
    assert controls(told) == set()
    found = json.loads(sessiond(daemon, "cleanup", "--dry-run", "--json").stdout)
    assert found["dry_run"] is True
    assert [row["outcome"] for row in found["found"]] == ["planned", "planned"]
    assert "not done yet" in sessiond(daemon, "status").stdout
    cleanup = status_of(daemon).cleanup
    assert cleanup is not None
    assert cleanup.last is None


def test_it_is_done_now_and_status_tells_of_it(daemon: RunningDaemon) -> None:
    told = sessiond(daemon, "cleanup").stdout
    assert told.splitlines()[-1] == "1 archived, 1 deleted, of 3 sessions"
    assert sessiond(daemon, "show", "ses_archived", code=8).stdout == ""
    assert "1 archived, 1 deleted, 0 left; next " in sessiond(daemon, "status").stdout
    cleanup = status_of(daemon).cleanup
    assert cleanup is not None
    assert cleanup.last is not None
    assert (cleanup.last.archived, cleanup.last.deleted) == (1, 1)
    assert '"event": "retention.deleted"' in daemon.log
    assert '"session_id": "ses_archived"' in daemon.log


def test_reading_a_session_keeps_it(daemon: RunningDaemon) -> None:
    ask(daemon, lambda client: client.load("ses_old"))

    def is_noted() -> bool:
        with Redis(unix_socket_path=str(daemon.redis_socket)) as redis:
            return bool(redis.exists(KEYS.reads("ses_old")))

    wait_for(is_noted)
    told = sessiond(daemon, "cleanup").stdout
    assert told == "nothing to do: 2 sessions, all within the limits\n"


def test_while_another_daemon_cleans_up_it_is_refused(daemon: RunningDaemon) -> None:
    with Redis(unix_socket_path=str(daemon.redis_socket)) as redis:
        redis.hset(KEYS.janitor, mapping={"instance": "other", "until_ms": "99999999999999"})
        done = sessiond(daemon, "cleanup", code=15)
        assert "'other' cleans up" in done.stderr
        assert "sessiond status" in done.stderr
        assert "other cleans up now" in sessiond(daemon, "status").stdout
        answer = Client(daemon.socket).call("POST", "/v1/cleanup")
        assert assert_problem(answer, 409, "cleanup-held").retryable
        redis.hset(KEYS.janitor, mapping={"instance": "", "until_ms": "0"})


@pytest.mark.parametrize("value", ["1", "True", "", "yes", "%00"])
def test_a_dry_run_that_is_neither_true_nor_false_is_refused(
    daemon: RunningDaemon, value: str
) -> None:
    """Else whoever only wanted to look would lose sessions."""
    answer = Client(daemon.socket).call("POST", f"/v1/cleanup?dry_run={value}")
    assert "dry_run" in assert_problem(answer, 400, "invalid-input").detail


def test_a_watched_session_is_in_use(daemon: RunningDaemon) -> None:
    """Whoever follows a session live asks for nothing, and yet reads it."""
    with Redis(unix_socket_path=str(daemon.redis_socket)) as redis:
        redis.delete(KEYS.reads("ses_new"))
        with following(daemon, "tail", "ses_new", "--after", "0") as tail:
            wait_for(lambda: tail.lines)
            wait_for(lambda: redis.exists(KEYS.reads("ses_new")))

"""Who is at a session, in `sessiond status` and `sessiond show`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from redis import Redis

from sessiond.model import NewSession
from tests.cli.commands import EVIL, ask, called, controls, on_terminal
from tests.daemons import RunningDaemon


def announce(daemon: RunningDaemon, session_id: str, name: str, *files: str) -> None:
    ask(daemon, lambda client: client.announce(session_id, name, list(files)))


def leave(daemon: RunningDaemon, session_id: str, name: str) -> None:
    ask(daemon, lambda client: client.leave(session_id, name))


@pytest.fixture
def busy(daemon: RunningDaemon) -> Iterator[str]:
    """A session where two are, both with the same file open."""
    session_id = ask(daemon, lambda client: client.create(NewSession())).metadata.session_id
    announce(daemon, session_id, "ann", "src/a.py", "README.md")
    announce(daemon, session_id, "bob", "README.md")
    yield session_id
    ask(daemon, lambda client: client.delete(session_id))


def test_show_begins_with_who_is_there_and_warns_of_what_both_have_open(
    daemon: RunningDaemon, busy: str
) -> None:
    ann, bob, warning, rest = called(daemon, "show", busy).stdout.splitlines()[:4]
    assert ann == "present        ann on here (test), works on src/a.py, README.md"
    assert bob == "present        bob on here (test), works on README.md"
    assert warning == "warning        README.md is open at ann on here and at bob on here"
    assert rest == f"session_id     {busy}"
    assert json.loads(called(daemon, "show", busy, "--json").stdout)["metadata"]


def test_show_says_who_answers(daemon: RunningDaemon, busy: str) -> None:
    with Redis(unix_socket_path=str(daemon.redis_socket)) as redis:
        held = {"instance": "bob", "until_ms": "99999999999999"}
        redis.hset(f"sessiond:{{{busy}}}:lease", mapping=held)
    shown = called(daemon, "show", busy).stdout
    assert "present        bob on here (test), answering…, works on README.md\n" in shown


def test_status_shows_the_sessions_where_somebody_is(daemon: RunningDaemon, busy: str) -> None:
    shown = called(daemon, "status").stdout
    assert (
        f"present      {busy}: ann on here (test), works on src/a.py, README.md; "
        "bob on here (test), works on README.md\n"
        f"warning      {busy}: README.md is open at ann on here and at bob on here\n"
    ) in shown


def test_where_nobody_is_nothing_is_said(daemon: RunningDaemon, busy: str) -> None:
    for name in ("ann", "bob"):
        leave(daemon, busy, name)
    assert "present" not in called(daemon, "show", busy).stdout
    assert not re.search("^(present|warning)", called(daemon, "status").stdout, re.MULTILINE)


def test_one_who_works_alone_is_warned_of_nothing(daemon: RunningDaemon, busy: str) -> None:
    leave(daemon, busy, "bob")
    shown = called(daemon, "show", busy).stdout
    assert "ann on here" in shown
    assert "warning" not in shown


def test_many_files_are_counted(daemon: RunningDaemon, busy: str) -> None:
    announce(daemon, busy, "eve", *(f"f{number}" for number in range(12)))
    assert "works on f0, f1, f2, f3, f4, f5, f6, f7, f8, f9 and 2 more\n" in (
        called(daemon, "show", busy).stdout
    )


def test_names_of_files_move_no_terminal(daemon: RunningDaemon, busy: str) -> None:
    for name in ("ann", "eve"):
        announce(daemon, busy, name, f"{EVIL}a\npresent        root on here")
    for shown in (called(daemon, "show", busy).stdout, called(daemon, "status").stdout):
        assert not controls(shown)
        assert not re.search("^present +root", shown, re.MULTILINE)
    assert "\x1b]0" not in on_terminal(daemon, "show", busy)

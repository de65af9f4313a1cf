"""`sessiond status`."""

from __future__ import annotations

import json
import re

from tests.cli.commands import SHOWN, called, controls, sessiond, status_of
from tests.daemons import RunningDaemon


def test_status_tells_people_what_runs_and_how_to_look_inside(daemon: RunningDaemon) -> None:
    status = status_of(daemon)
    shown = sessiond(daemon, "status").stdout
    assert not controls(shown)
    for text in (f"pid {status.pid}", "here", str(daemon.socket), status.address, "embedded"):
        assert text
        assert text in shown
    assert status.server.redis_cli in shown
    assert re.search(rf"^sessions +{status.sessions}$", shown, re.MULTILINE)


def test_status_tells_programs_the_same(daemon: RunningDaemon) -> None:
    told = json.loads(called(daemon, "status", "--json").stdout)
    assert (told["pid"], told["instance"]) == (status_of(daemon).pid, "here")
    assert told["server"]["owned"] is True
    assert called(daemon, "status", "--socket-path").stdout == f"{daemon.socket}\n"


def test_without_a_daemon_commands_say_how_to_start_one(nobody: RunningDaemon) -> None:
    for done in (sessiond(nobody, "status", code=7), called(nobody, "tail", SHOWN, code=7)):
        assert done.stdout == ""
        error, hint = done.stderr.splitlines()
        assert error.startswith(f"error: no daemon answers at {nobody.socket}")
        assert "`sessiond run`" in hint
        assert "ssl" not in error, "an inner matter of the HTTP client"

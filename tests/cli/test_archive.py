"""`sessiond archive` and `restore`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sessiond.model import NewSession
from tests.cli.commands import append, ask, called, sessiond
from tests.daemons import RunningDaemon


def created(daemon: RunningDaemon) -> str:
    session = ask(daemon, lambda client: client.create(NewSession(workspace="shed", title="Old")))
    append(daemon, session.metadata.session_id, "hello")
    return session.metadata.session_id


def test_a_session_leaves_for_a_file_and_comes_back(daemon: RunningDaemon) -> None:
    name = created(daemon)
    done = sessiond(daemon, "archive", name, "--idle", "0").stdout
    assert re.fullmatch(rf"{name} is archived, [\d,]+ bytes\n", done)
    folder = Path(daemon.environ["XDG_DATA_HOME"]) / "sessiond" / "archive"
    assert len(list(folder.glob(f"{name}.*.archive"))) == 1
    (row,) = called(daemon, "sessions", "--status", "archived").stdout.splitlines()[1:]
    assert row.split()[:3] == [name, "archived", "1"]
    assert called(daemon, "archive", name).stdout == f"{name} was archived before\n"

    told = json.loads(called(daemon, "restore", name, "--json").stdout)
    assert (told["session_id"], told["archived"]) == (name, False)
    assert f"{name} is in Redis, up to {told['position']}" in called(daemon, "restore", name).stdout
    assert "hello" in called(daemon, "show", name).stdout


def test_an_archived_session_is_shown_as_ever(daemon: RunningDaemon) -> None:
    name = created(daemon)
    before = called(daemon, "show", name, "--json").stdout
    assert json.loads(called(daemon, "archive", name, "--idle", "0", "--json").stdout)["archived"]
    assert called(daemon, "show", name, "--json").stdout == before


def test_what_cannot_be_archived_has_its_own_exit_code(daemon: RunningDaemon) -> None:
    name = created(daemon)
    refused = called(daemon, "archive", name, code=13).stderr
    assert "was written to" in refused
    assert "hint:  archive it when" in refused
    assert "--idle is -1" in called(daemon, "archive", name, "--idle", "-1", code=3).stderr
    assert "no session" in called(daemon, "archive", "ses_unknown", code=8).stderr
    assert "no session" in called(daemon, "restore", "ses_unknown", code=8).stderr

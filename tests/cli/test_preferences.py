"""`sessiond preferences`."""

from __future__ import annotations

import json

from tests.cli.commands import called, sessiond
from tests.daemons import RunningDaemon


def test_preferences_are_set_shown_and_removed(daemon: RunningDaemon) -> None:
    assert sessiond(daemon, "preferences", "get", "cleo").stdout == ""
    called(daemon, "preferences", "set", "cleo", "theme", "dark")
    shown = called(daemon, "preferences", "set", "cleo", "tab", '{"size": 4}').stdout
    assert shown.splitlines() == ["theme = dark", 'tab = {"size":4}']
    told = called(daemon, "preferences", "get", "cleo", "--json").stdout
    assert json.loads(told) == {"theme": "dark", "tab": {"size": 4}}
    assert called(daemon, "preferences", "get", "cleo", "theme").stdout == "theme = dark\n"
    called(daemon, "preferences", "unset", "cleo", "theme")
    assert (
        "no preference 'theme'"
        in called(daemon, "preferences", "get", "cleo", "theme", code=8).stderr
    )


def test_what_cannot_be_is_refused(daemon: RunningDaemon) -> None:
    assert "user_id" in called(daemon, "preferences", "get", "no id", code=3).stderr
    called(daemon, "preferences", "set", "cleo", "_version", "1", code=3)

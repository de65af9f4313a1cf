"""`sessiond doctor`."""

from __future__ import annotations

import json
from typing import Any

from sessiond.service.health.promise import COMMITTED, DELIVERY, JOURNALED
from tests.cli.commands import called, controls, sessiond
from tests.daemons import RunningDaemon

CHECKS = [
    *("daemon", "redis", "persistence", "WAITAOF", "memory", "replicas", "clock", "journal"),
    *("data folder", "journal folder", "redis folder", "files"),
    *("sessions", "largest", "process", "conflicts"),
    *("round trip", "disk sync", "event loop", "slow commands", "opencode"),
]


def told(place: RunningDaemon, *, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(called(place, "doctor", "--json", code=code).stdout)
    return found


def test_the_doctor_tells_people_what_it_checked_and_what_they_can_rely_on(
    daemon: RunningDaemon,
) -> None:
    shown = sessiond(daemon, "doctor").stdout
    assert not controls(shown)
    for check in CHECKS:
        assert f" {check.ljust(14)} " in shown
    assert "\nAll is well.\n" in shown
    flowing = " ".join(shown.split())
    for sentence in (JOURNALED, COMMITTED, DELIVERY):
        assert sentence in flowing
    assert "here the embedded server runs with appendfsync everysec" in flowing


def test_the_doctor_tells_programs_the_same(daemon: RunningDaemon) -> None:
    found = told(daemon)
    assert found["ok"] is True
    assert [finding["check"] for finding in found["findings"]] == CHECKS
    assert {finding["exit_code"] for finding in found["findings"]} == {0}
    promised = {promise["of"]: promise["promise"] for promise in found["promises"]}
    assert list(promised) == ["journaled", "delivery", "committed", "here"]
    assert promised["committed"] == COMMITTED


def test_without_a_daemon_the_doctor_says_how_to_start_one(nobody: RunningDaemon) -> None:
    found = told(nobody, code=7)
    assert found["ok"] is False
    assert found["promises"] == []
    (daemon, opencode) = found["findings"]
    assert (daemon["check"], daemon["state"], daemon["code"]) == (
        *("daemon", "failed"),
        "daemon-unreachable",
    )
    assert "`sessiond run`" in daemon["remedy"]
    assert opencode["state"] == "skipped"
    assert "rely on" not in called(nobody, "doctor", code=7).stdout


def test_a_plugin_that_is_installed_is_looked_at_too(daemon: RunningDaemon) -> None:
    plugins = daemon.folder / "opencode" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "sessiond.js").write_text("// of another version")
    try:
        found = json.loads(called(daemon, "doctor", "--json", code=8, PATH="/none").stdout)
    finally:
        (plugins / "sessiond.js").unlink()
    states = {finding["check"]: finding["state"] for finding in found["findings"]}
    assert (states["redis"], states["opencode"], states["plugin"]) == ("ok", "failed", "failed")

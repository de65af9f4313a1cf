"""`sessiond redis`."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.cli.commands import SHOWN, called, sessiond
from tests.daemons import RunningDaemon


def test_redis_keys_explains_every_key(nobody: RunningDaemon) -> None:
    shown = sessiond(nobody, "redis", "keys").stdout
    told = json.loads(called(nobody, "redis", "keys", "--json").stdout)
    assert len(shown.splitlines()) == 1 + len(told)
    for kind in told:
        assert kind["pattern"] in shown
        assert kind["meaning"] in shown


def test_redis_cat_shows_what_a_key_holds_decoded(daemon: RunningDaemon) -> None:
    shown = sessiond(daemon, "redis", "cat", f"sessiond:{{{SHOWN}}}:conversation", "--limit", "99")
    heading, _, content = shown.stdout.partition("\n")
    assert heading.startswith("# stream, ")
    (first, *_) = json.loads(content)
    assert (first["op"], first["json"]["title"]) == ("session.create", "My first")
    preferences = called(daemon, "redis", "cat", f"sessiond:{{{SHOWN}}}:preferences").stdout
    assert '"theme": "dark"' in preferences
    refused = called(daemon, "redis", "cat", "other:key", code=8).stderr
    assert "`sessiond redis keys`" in refused


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
def test_redis_cli_prints_a_command_that_reaches_the_server(daemon: RunningDaemon) -> None:
    line = sessiond(daemon, "redis", "cli").stdout.strip()
    pinged = subprocess.run(
        ["bash", "-c", f"{line} HGET 'sessiond:{{{SHOWN}}}:metadata' title"],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert pinged.stdout == "My first\n", pinged.stderr

"""What `sessiond opencode install` put in place, in a real opencode."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sessiond.opencode import locate
from sessiond.opencode.install import install, uninstall
from sessiond.opencode.seed import LOCK, MODULES
from sessiond.opencode.trial import try_out
from tests.cli.commands import called
from tests.daemons import RunningDaemon, running_daemon
from tests.opencode.binary import SUPPORTED
from tests.opencode.conftest import StartOpencode
from tests.opencode.instance import Opencode
from tests.opencode.test_install import tree
from tests.opencode.waiting import until
from tests.readme import README, blocks

START, OPENCODE, DAEMON = "sessiond opencode install", ["opencode"], ["sessiond", "run", "&"]
NPM_WAIT_SECONDS = 60.0
"""Without a network, and without the seed, opencode waits longer than this (measured: 71 s)."""


@pytest.fixture
def daemon() -> Iterator[RunningDaemon]:
    with running_daemon("--instance", "laptop") as daemon:
        yield daemon


async def offline(start_opencode: StartOpencode, **options: Any) -> Opencode:
    """An opencode as a person has it, where no npm answers; not started yet."""
    opencode = await start_opencode(start=False, **options)
    (opencode.configuration / LOCK).unlink()
    (opencode.configuration / MODULES).rmdir()
    del opencode.environ["npm_config_fetch_retries"]
    opencode.environ["npm_config_registry"] = "http://127.0.0.1:9"
    return opencode


def own(project: Path) -> dict[str, bytes | str | None]:
    """What a project holds beside git's folder, where opencode keeps a note of its own."""
    return {name: content for name, content in tree(project).items() if name[:4] != ".git"}


def status(daemon: RunningDaemon) -> Any:
    return json.loads(called(daemon, "opencode", "status", "--json").stdout)


async def test_an_installed_plugin_attaches_at_once_without_a_network(
    start_opencode: StartOpencode, daemon: RunningDaemon
) -> None:
    opencode = await offline(start_opencode)
    place = RunningDaemon(opencode.folder)
    place.environ |= opencode.environ
    given = ["--socket", str(daemon.socket), "--opencode", str(opencode.binary)]
    await asyncio.to_thread(called, place, "opencode", "install", *given)
    before = tree(opencode.configuration)

    began = time.monotonic()
    await opencode.start()
    assert time.monotonic() - began < NPM_WAIT_SECONDS / 2
    session = await opencode.create_session("shared at once")

    async def shown() -> Any:
        return await asyncio.to_thread(status, daemon)

    async def is_shared() -> bool:
        return session in [one["session_id"] for one in (await shown())["sessions"]]

    await until(is_shared)
    (attached,) = (await shown())["instances"]
    assert attached["version"] == SUPPORTED
    assert attached["machine"] == "laptop"
    assert attached["live"]
    assert attached["directory"] == str(opencode.project)
    found = await asyncio.to_thread(
        called, place, "opencode", "doctor", "--quick", "--opencode", str(opencode.binary)
    )
    assert "failed" not in found.stdout
    after = tree(opencode.configuration)
    assert {name for name in before if after.get(name, "") != before[name]} == {"opencode.json"}

    await opencode.stop()
    await asyncio.to_thread(called, place, "opencode", "uninstall")
    assert tree(opencode.configuration).keys() == {".gitignore", "opencode.json"}


async def test_a_projects_plugin_leaves_no_trace_after_opencode_used_it(
    start_opencode: StartOpencode, daemon: RunningDaemon
) -> None:
    opencode = await start_opencode(start=False, environ={"SESSIOND_SOCKET": str(daemon.socket)})
    before = own(opencode.project)
    folder = opencode.project / ".opencode"
    install(folder, {"mode": "atomic"}, opencode=SUPPORTED)
    await opencode.start()
    await until((folder / ".gitignore").exists)

    async def modes() -> list[str]:
        return [one["mode"] for one in (await asyncio.to_thread(status, daemon))["instances"]]

    async def attached() -> bool:
        return await modes() == ["atomic"]

    await until(attached)
    await opencode.stop()
    assert uninstall(folder).changed
    assert own(opencode.project) == before


async def test_the_trial_of_a_supported_opencode_finds_all_it_needs(binary: Path) -> None:
    trial = await asyncio.to_thread(try_out, binary, SUPPORTED)
    assert trial.fault == ""
    assert trial.live
    assert trial.replayed == 3
    assert trial.boot_seconds < NPM_WAIT_SECONDS / 2


async def test_a_trial_says_what_is_missing(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a new version no longer loaded plugins from that folder."""
    monkeypatch.setattr("sessiond.opencode.trial._PLUGIN_SECONDS", 1.0)
    without = tmp_path / "opencode"
    without.write_text(
        f'#!/bin/sh\nrm -r "$XDG_CONFIG_HOME/opencode/plugin"\nexec {binary} "$@"\n',
        encoding="utf-8",
    )
    without.chmod(0o755)
    trial = await asyncio.to_thread(try_out, without, SUPPORTED)
    assert trial.replayed == 3
    assert "does not load the plugin" in trial.fault


def test_the_readmes_commands_work_word_for_word(
    binary: Path, daemon: RunningDaemon, tmp_path: Path
) -> None:
    (block,) = (
        block for block in blocks(README.read_text(encoding="utf-8"), "sh") if START in block
    )
    lines = block.splitlines()
    ours = [line for line in lines if line.split(" #")[0].split() not in (OPENCODE, DAEMON)]
    assert len(ours) == len(lines) - 2, "the daemon runs, and opencode wants a terminal"
    (tmp_path / "opencode").symlink_to(binary)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{tmp_path}"
    done = subprocess.run(
        ["bash", "-euc", "\n".join(ours)],
        cwd=tmp_path,
        env={**daemon.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Sessions can be shared." in done.stdout
    assert "no opencode is attached" in done.stderr


def test_one_version_is_supported_tested_and_promised() -> None:
    assert locate.SUPPORTED == (SUPPORTED,)
    assert f"Tested with opencode {SUPPORTED}." in README.read_text(encoding="utf-8")

"""`sessiond run`: it starts, stops, and says what keeps it from starting."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path

import pytest

from sessiond.client import DaemonClient
from sessiond.errors import Unauthenticated
from tests.cli.commands import SHOWN, ask, sessiond, status_of
from tests.daemons import RunningDaemon, running_daemon


def test_run_is_ready_within_five_seconds_and_sigterm_stops_all_of_it() -> None:
    with running_daemon("--port", "0", start=False) as daemon:
        began = time.monotonic()
        daemon.start()
        assert ask(daemon, lambda client: client.call("GET", "/v1/ready", None))
        assert time.monotonic() - began < 5
        status = status_of(daemon)
        assert daemon.process
        assert status.pid == daemon.process.pid
        (server,) = re.findall(r'"pid": (\d+), "version"', daemon.log)
        assert Path(f"/proc/{server}").exists()

        token_file = Path(status.token_file or "")
        assert token_file.stat().st_mode & 0o777 == 0o600
        assert asyncio.run(_health(status.address or "", token_file.read_text(encoding="ascii")))
        with pytest.raises(Unauthenticated):
            asyncio.run(_health(status.address or "", "wrong"))

        daemon.stop()
        assert daemon.process.returncode == 0
        assert '"event": "daemon.stopped"' in daemon.log
        assert not daemon.socket.exists()
        assert not Path(f"/proc/{server}").exists()


async def _health(address: str, token: str) -> object:
    client = DaemonClient(address=address, token=token)
    try:
        return await client.call("GET", "/v1/health", None)
    finally:
        await client.close()


def test_a_second_run_on_the_folder_says_who_holds_it(daemon: RunningDaemon) -> None:
    done = sessiond(daemon, "run", code=4)
    assert daemon.process
    assert f"pid {daemon.process.pid}" in done.stderr
    assert "hint:" in done.stderr
    assert status_of(daemon).pid == daemon.process.pid


def test_a_second_daemon_on_the_socket_is_refused_and_the_first_goes_on(
    daemon: RunningDaemon, nobody: RunningDaemon
) -> None:
    url = f"unix://{daemon.redis_socket}"
    done = sessiond(nobody, "run", "--redis-url", url, "--socket", str(daemon.socket), code=4)
    assert f"another daemon listens on {daemon.socket}" in done.stderr
    assert daemon.process
    assert status_of(daemon).pid == daemon.process.pid


def test_run_uses_the_redis_it_is_given_and_ctrl_c_stops_it_alone(daemon: RunningDaemon) -> None:
    url = f"unix://{daemon.redis_socket}"
    with running_daemon("--redis-url", url, "--instance", "second") as second:
        shown = sessiond(second, "status").stdout
        assert "configured" in shown
        assert "here (" in shown, "it names the other daemon"
        assert f"redis-cli -u {url}" in shown or f"redis-cli -s {daemon.redis_socket}" in shown
        assert ask(second, lambda client: client.load(SHOWN)).metadata.title == "My first"
        assert second.process
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(timeout=15) == 0
        assert "Traceback" not in second.log
    assert [each.name for each in status_of(daemon).instances] == ["here"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("sync:\n  workspace: garden\n  batch_operation: 5\n", ["line 3", "batch_operation"]),
        ("api:\n  max_body_bytes: many\n", ["line 2", "api.max_body_bytes", "whole number"]),
    ],
    ids=["unknown key", "wrong type"],
)
def test_a_wrong_configuration_is_refused_with_its_place(
    nobody: RunningDaemon, content: str, words: list[str]
) -> None:
    file = nobody.folder / "sessions.yaml"
    file.write_text(content, encoding="utf-8")
    done = sessiond(nobody, "run", "--config", str(file), code=4)
    for word in (str(file), "hint:", *words):
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "word"),
    [
        (["--config", "/nowhere/sessions.yaml"], {}, 4, "/nowhere/sessions.yaml"),
        ([], {"SESSIOND_REDIS_EMBEDDED_BINARY": "/bin/false"}, 5, "/bin/false"),
        (["--host", "0.0.0.0"], {}, 4, "loopback"),  # noqa: S104 - to see it refused
        (["--port", "many"], {}, 2, "usage:"),
    ],
    ids=["no such file", "no server", "not loopback", "wrong use"],
)
def test_what_keeps_run_from_starting_has_a_code_and_a_reason(
    nobody: RunningDaemon, arguments: list[str], environ: dict[str, str], code: int, word: str
) -> None:
    assert word in sessiond(nobody, "run", *arguments, code=code, **environ).stderr


def test_run_starts_though_its_redis_is_away_and_says_so() -> None:
    url = "redis://someone:secret-word@127.0.0.1:1/0"
    with running_daemon("--redis-url", url) as daemon:
        told = sessiond(daemon, "status").stdout
        assert re.search(r"^server +configured, away for ", told, re.MULTILINE)
        assert "daemon.starts_without_redis" in daemon.log
        assert "127.0.0.1:1" in daemon.log
        assert "secret-word" not in daemon.log + told
        assert "a write" not in daemon.log, "there was none"
        age, nothing = sessiond(daemon, "sessions").stderr.splitlines()
        assert re.fullmatch(r"Redis is away: this is what this machine knew \d\d? s ago", age)
        assert nothing == "no sessions"

"""What the README says is true: its commands are run, its tables are generated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessiond import config
from tests.daemons import RunningDaemon, running_daemon
from tests.readme import README, blocks, with_generated

TEXT = README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with running_daemon() as daemon:
        yield daemon


def run_shell(script: str, daemon: RunningDaemon) -> str:
    """Run lines of a shell as a reader would; every line must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script],
        env={**daemon.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_generated_tables_are_up_to_date() -> None:
    assert with_generated(TEXT) == TEXT, "run `python -m tests.readme`"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_http_and_redis_cli_commands_work_word_for_word(daemon: RunningDaemon) -> None:
    http = next(block for block in blocks(TEXT, "sh") if "curl" in block)
    # the last one follows events until its time is over, which curl reports as an error
    first = run_shell(http.replace("events\n", "events || true\n"), daemon)
    assert '"title":"my first"' in first
    assert "event: message.append" in first
    (conflicts,) = (block for block in blocks(TEXT, "sh") if "sessiond conflicts" in block)
    decided = run_shell(f"{http.splitlines()[0]}\n{conflicts}", daemon)
    assert "+/home/ana" in decided
    assert "conflict 5 is resolved: theirs was taken" in decided
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed: its commands were not run")
    (redis_cli,) = (block for block in blocks(TEXT, "sh") if "R XRANGE" in block)
    shown = run_shell(redis_cli, daemon)
    for word in ("ses_first", "my first", "message.append", "hello", "origin"):
        assert word in shown
    assert "ERR" not in shown


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
def test_redis_cli_shows_a_write_to_a_subscriber(daemon: RunningDaemon) -> None:
    script = """
        R=$(sessiond redis cli)
        SOCKET=$(sessiond status --socket-path)
        post() { curl -sf --unix-socket "$SOCKET" -H 'Content-Type: application/json' "$@"; }
        post -d '{"session_id": "ses_watched"}' http://localhost/v1/sessions >/dev/null
        $R SUBSCRIBE 'sessiond:{ses_watched}:events' > "$OUT" &
        watcher=$!
        until grep -q subscribe "$OUT"; do :; done
        post -d '{"role": "user", "content": "x", "id": "msg_watched"}' \
            http://localhost/v1/sessions/ses_watched/messages >/dev/null
        for _ in $(seq 200); do grep -q msg_watched "$OUT" && break; sleep 0.05; done
        kill $watcher
        cat "$OUT"
    """
    out = daemon.folder / "subscribed"
    shown = run_shell(script.replace("$OUT", str(out)), daemon)
    assert '"last":"message.append msg_watched"' in shown


def test_python_example_runs_word_for_word(daemon: RunningDaemon) -> None:
    (example,) = blocks(TEXT, "python")
    done = subprocess.run(
        [sys.executable, "-c", example],
        env=daemon.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Here's the analysis..." in done.stdout


def test_every_option_named_in_the_readme_exists() -> None:
    known = {row.key for row in config.option_table()}
    for name in ("redis.url", "debug.sessions", "sync.subscriber_buffer_bytes"):
        assert name in TEXT
        assert name in known


def test_the_test_command_is_what_ci_runs() -> None:
    command = "pip install '.[test]' && pytest -n 2 --dist loadfile"
    assert command in TEXT
    ci = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    assert command.replace("pip install", "pip install --quiet --disable-pip-version-check") in ci

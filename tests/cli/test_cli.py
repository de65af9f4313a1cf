"""The command line as people use it: real commands, real daemons."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest

from sessiond.cli import exits, main
from sessiond.cli.terminal import plain
from sessiond.client import DaemonClient
from sessiond.errors import SessiondError, Unauthenticated
from sessiond.model import Context, NewMessage, NewSession
from sessiond.service.status import Status
from tests.daemons import RunningDaemon, running_daemon, wait_for

Answer = TypeVar("Answer")
Done = subprocess.CompletedProcess[str]

COMMANDS = (
    *("run", "status", "sessions", "show", "tail", "redis", "redis keys", "redis cat"),
    *("redis cli", "config", "config get", "config set", "demo"),
)
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r"
"""What could clear a terminal, name its window, colour it, turn its text around, hide a line."""
LONG = "ses_long"
SHOWN = "ses_shown"
SPOOF = "ses_spoof"


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """A daemon with a few sessions."""
    with running_daemon("--instance", "here", "--port", "0") as daemon:
        ask(daemon, furnish)
        yield daemon


@pytest.fixture(scope="module", autouse=True)
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A daemon that waits for a Redis in vain; it takes seconds, while the other tests run."""
    place = RunningDaemon(tmp_path_factory.mktemp("waiting"))
    url = "redis://someone:secret-word@127.0.0.1:1/0"
    with subprocess.Popen(
        command("run", "--redis-url", url),
        env=people(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.fixture
def nobody(tmp_path: Path) -> RunningDaemon:
    """A place where no daemon was ever started."""
    return RunningDaemon(tmp_path)


async def furnish(client: DaemonClient) -> None:
    await client.create(
        NewSession(
            session_id=SHOWN,
            title="My first",
            user_id="ann",
            workspace="garden",
            preferences={"theme": "dark"},
            context=Context(active_files=["README.md"]),
        )
    )
    await client.append(SHOWN, [NewMessage(role="user", content="Help me")])
    await client.append(
        SHOWN, [NewMessage(role="assistant", content="Two\nlines", tool_calls=["grep"])]
    )
    await client.create(NewSession(session_id=SPOOF, title=f"{EVIL}title\nses_fake", user_id="bob"))
    await client.append(
        SPOOF,
        [NewMessage(role="user", content=f"{EVIL}content", tool_calls=[f"{EVIL}tool"])],
    )
    await client.create(NewSession(session_id=LONG, user_id="eve"))
    await client.append(LONG, [NewMessage(role="user", content="line\n" * 40_000)])


def ask(daemon: RunningDaemon, action: Callable[[DaemonClient], Awaitable[Answer]]) -> Answer:
    """Do something as a client of a daemon."""

    async def asking() -> Answer:
        client = DaemonClient(socket=str(daemon.socket), name="test")
        try:
            return await action(client)
        finally:
            await client.close()

    return asyncio.run(asking())


def append(daemon: RunningDaemon, session_id: str, content: str) -> None:
    ask(
        daemon, lambda client: client.append(session_id, [NewMessage(role="user", content=content)])
    )


def status_of(daemon: RunningDaemon) -> Status:
    return ask(daemon, lambda client: client.call("GET", "/v1/status", Status))[0]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sessiond", *arguments]


def people(place: RunningDaemon, **more: str) -> dict[str, str]:
    """The environment of somebody who did not prepare for tests: Python buffers what it prints."""
    environ = place.environ | more
    environ.pop("PYTHONUNBUFFERED", None)
    return environ


def sessiond(place: RunningDaemon, *arguments: str, code: int = 0, **environ: str) -> Done:
    """Run a command, expecting this exit code, never a traceback, and no colours in a pipe."""
    done = subprocess.run(
        command(*arguments),
        env=people(place, **environ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.returncode == code, (done.returncode, done.stderr, done.stdout)
    return done


def called(place: RunningDaemon, *arguments: str, code: int = 0, **environ: str) -> Done:
    """Run a command as `sessiond` does, but here: a process of its own takes half a second."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, place.environ | environ, clear=True),
        redirect_stdout(out),
        redirect_stderr(errors),
    ):
        returned = main(arguments)
    assert returned == code, (returned, errors.getvalue(), out.getvalue())
    return Done(arguments, returned, out.getvalue(), errors.getvalue())


def on_terminal(place: RunningDaemon, *arguments: str, **environ: str) -> str:
    """Run a command whose output is a terminal, and return what it printed there."""
    terminal, end = os.openpty()
    process = subprocess.Popen(
        command(*arguments), env=people(place, **environ), stdout=end, stderr=end
    )
    os.close(end)
    printed = b""
    try:
        while chunk := os.read(terminal, 65536):
            printed += chunk
    except OSError:  # how Linux says that nobody holds the other end
        pass
    os.close(terminal)
    process.wait(timeout=30)
    return printed.decode()


class Following:
    """A command that goes on, and what it has printed so far."""

    def __init__(self, place: RunningDaemon, *arguments: str) -> None:
        self._out, self._err = (place.folder / f"{arguments[0]}.{kind}" for kind in ("out", "err"))
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command(*arguments), env=people(place), stdout=out, stderr=err
            )

    @property
    def lines(self) -> list[str]:
        return self._out.read_text(encoding="utf-8").splitlines()

    @property
    def errors(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def shows(self, text: str) -> bool:
        assert self.process.poll() is None or text in "".join(self.lines), self.errors
        return any(text in line for line in self.lines)


@contextmanager
def following(place: RunningDaemon, *arguments: str) -> Iterator[Following]:
    started = Following(place, *arguments)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait(timeout=30)


def controls(text: str) -> set[str]:
    """Characters that a terminal would act on."""
    return {character for character in text if not character.isprintable()} - {"\n"}


# run


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


# status and config


def test_status_tells_people_what_runs_and_how_to_look_inside(daemon: RunningDaemon) -> None:
    status = status_of(daemon)
    shown = sessiond(daemon, "status").stdout
    assert not controls(shown)
    for text in (f"pid {status.pid}", "here", str(daemon.socket), status.address, "embedded"):
        assert text
        assert text in shown
    assert status.server.redis_cli in shown
    assert re.search(r"^sessions +3$", shown, re.MULTILINE)


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


def test_config_get_shows_the_options_of_the_daemon_or_of_the_next_one(
    daemon: RunningDaemon, nobody: RunningDaemon
) -> None:
    assert sessiond(daemon, "config", "get", "sync.instance").stdout == "here\n"
    url = "redis://:secret-word@127.0.0.1:1/0"
    shown = called(nobody, "config", "get", SESSIOND_REDIS_URL=url).stdout
    assert "sync.workspace = default\n" in shown
    assert "secret-word" not in shown
    refused = called(nobody, "config", "get", "sync.workspac", code=4)
    assert "sync.workspac" in refused.stderr
    assert "hint:" in refused.stderr


def test_config_set_turns_detailed_session_logging_on_and_off(daemon: RunningDaemon) -> None:
    def logged() -> int:
        return daemon.log.count('"event": "session.message_append"')

    append(daemon, SHOWN, "quiet")
    assert logged() == 0
    done = sessiond(daemon, "config", "set", "debug.sessions", "true")
    assert "debug.sessions = true" in done.stdout
    append(daemon, SHOWN, "told")
    wait_for(lambda: logged() == 1)
    called(daemon, "config", "set", "debug.sessions", "false")
    append(daemon, SHOWN, "quiet again")
    assert logged() == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("api.port", "1", ["api.port cannot change while the daemon runs", "debug.sessions"]),
        ("debug.session", "true", ["debug.session", "did you mean", "sessions"]),
        ("debug.sessions", "maybe", ["debug.sessions", "true or false"]),
    ],
)
def test_config_set_refuses_what_cannot_be_and_says_what_can(
    daemon: RunningDaemon, key: str, value: str, words: list[str]
) -> None:
    done = called(daemon, "config", "set", key, value, code=4)
    for word in words:
        assert word in done.stderr
    assert (
        ask(daemon, lambda client: client.call("GET", "/v1/config", dict[str, str]))[0][
            "debug.sessions"
        ]
        == "false"
    )


# sessions, show


def test_sessions_lists_what_the_filters_ask_for(daemon: RunningDaemon) -> None:
    heading, *rows = sessiond(daemon, "sessions").stdout.splitlines()
    assert heading.split() == [
        *("SESSION", "STATUS", "MESSAGES", "LAST", "ACTIVITY", "WORKSPACE", "TITLE")
    ]
    assert {row.split()[0] for row in rows} >= {LONG, SHOWN, SPOOF}
    (row,) = called(daemon, "sessions", "--workspace", "garden").stdout.splitlines()[1:]
    assert re.fullmatch(rf"{SHOWN} +active +\d+ +[\d-]+ [\d:]+ +garden +My first", row)
    told = json.loads(called(daemon, "sessions", "--json", "--limit", "2").stdout)
    assert len(told) == 2
    told = json.loads(called(daemon, "sessions", "--json", "--user-id", "nobody").stdout)
    assert told == []


def test_show_prints_a_session_for_people_and_for_programs(daemon: RunningDaemon) -> None:
    shown = sessiond(daemon, "show", SHOWN).stdout
    assert re.search(r"^title +My first$", shown, re.MULTILINE)
    assert re.search(r"^user_id +ann$", shown, re.MULTILINE)
    conversation = re.search(
        r"^user .*\nHelp me\n\nassistant .*\nTwo\nlines\n  tool: grep$", shown, re.MULTILINE
    )
    assert conversation
    told = json.loads(called(daemon, "show", SHOWN, "--json").stdout)
    assert told["metadata"]["title"] == "My first"
    assert told["conversation"]["messages"][1]["tool_calls"] == ["grep"]
    assert told["preferences"] == {"theme": "dark"}


def test_what_is_not_there_has_its_own_exit_code(daemon: RunningDaemon) -> None:
    gone = ask(daemon, lambda client: client.create(NewSession())).metadata.session_id
    ask(daemon, lambda client: client.delete(gone))
    done = sessiond(daemon, "show", "ses_unknown", code=8)
    assert "error: there is no session 'ses_unknown'" in done.stderr
    assert "`sessiond sessions`" in done.stderr
    assert "was deleted" in called(daemon, "show", gone, code=8).stderr
    called(daemon, "tail", "ses_unknown", code=8)


@pytest.mark.parametrize("name", ["../status", f"{SHOWN}?limit=1", ""])
def test_what_is_no_id_is_refused_as_such(daemon: RunningDaemon, name: str) -> None:
    done = called(daemon, "show", name, code=3)
    assert "error:" in done.stderr
    assert "openapi" not in done.stderr, "help for people who write HTTP"


# tail


def test_tail_shows_everything_once_across_a_restart_and_ends_with_the_session() -> None:
    with running_daemon() as daemon:
        name = ask(daemon, lambda client: client.create(NewSession())).metadata.session_id
        append(daemon, name, "before")
        with following(daemon, "tail", name, "--after", "0", "--json") as tail:
            wait_for(lambda: tail.shows("before"))
            append(daemon, name, "live")
            wait_for(lambda: tail.shows("live"))
            daemon.stop()
            daemon.start()
            append(daemon, name, "after the restart")
            wait_for(lambda: tail.shows("after the restart"))
            ask(daemon, lambda client: client.delete(name))
            assert tail.process.wait(timeout=15) == 0
            operations = [json.loads(line) for line in tail.lines]
            assert tail.errors == ""
        assert [each["op"] for each in operations] == [
            *("session.create", "message.append", "message.append", "message.append"),
            "session.delete",
        ]
        assert [each["position"].partition(":")[2] for each in operations] == list("12345")


def test_tail_shows_what_happens_from_now_on_until_ctrl_c(daemon: RunningDaemon) -> None:
    append(daemon, SHOWN, "earlier")
    before = status_of(daemon).subscribers
    with following(daemon, "tail", SHOWN) as tail:
        wait_for(lambda: status_of(daemon).subscribers > before)
        append(daemon, SHOWN, "now\nand here")
        ask(daemon, lambda client: client.send_live(SHOWN, {"text": "typing"}))
        wait_for(lambda: tail.shows("typing"))
        tail.process.send_signal(signal.SIGINT)
        assert tail.process.wait(timeout=15) == 130
        first, live = tail.lines
        assert tail.errors == ""
    assert re.fullmatch(r" +\d+  [\d-]+ [\d:]+  message.append +user: now and here .*", first)
    assert "test@here" in first
    assert live.startswith("live")


def test_tail_after_no_position_is_refused(daemon: RunningDaemon) -> None:
    done = called(daemon, "tail", SHOWN, "--after", "yesterday", code=3)
    assert "'yesterday' is not a position" in done.stderr


# redis


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


# What is printed, and where


def test_a_terminal_gets_colours_unless_it_wants_none(
    daemon: RunningDaemon, nobody: RunningDaemon
) -> None:
    assert "\x1b[32muser\x1b[0m" in on_terminal(daemon, "show", SHOWN)
    assert "\x1b" not in on_terminal(daemon, "show", SHOWN, NO_COLOR="1")
    assert "\x1b[31merror:\x1b[0m" in on_terminal(nobody, "status")


@pytest.mark.parametrize("arguments", [["sessions"], ["show", SPOOF]], ids=" ".join)
def test_what_others_wrote_cannot_act_on_the_terminal(
    daemon: RunningDaemon, arguments: list[str]
) -> None:
    shown = called(daemon, *arguments).stdout
    assert "title" in shown
    assert not controls(shown)
    assert "\nses_fake" not in shown, "a title must not look like a line of its own"


@pytest.mark.parametrize(
    "text",
    [
        "Bonjour\u202f! \u00ab\u00a0oui\u00a0\u00bb",
        "\u5168\u89d2\u3000",
        "\U0001f469\u200d\U0001f4bb",
    ],
    ids=["no-break spaces", "wide space", "joined emoji"],
)
def test_words_of_any_language_are_shown_as_they_are(text: str) -> None:
    assert plain(text) == text


def test_lines_that_end_as_on_windows_are_shown_as_lines() -> None:
    assert plain("one\r\ntwo") == "one\ntwo"


def test_what_others_write_cannot_act_on_the_terminal_of_tail(daemon: RunningDaemon) -> None:
    with following(daemon, "tail", SPOOF, "--after", "0") as tail:
        wait_for(lambda: tail.shows("content"))
        shown = "\n".join(tail.lines)
    assert not controls(shown)


def test_json_cannot_act_on_the_terminal_either(daemon: RunningDaemon) -> None:
    shown = called(daemon, "show", SPOOF, "--json").stdout
    assert json.loads(shown)["metadata"]["title"] == f"{EVIL}title\nses_fake"
    assert not controls(shown)


@pytest.mark.parametrize(
    "line",
    [
        f"show {LONG} | head -1",
        "sessions | true",
        f"tail {LONG} --after 0 | true",
    ],
)
def test_a_reader_that_leaves_is_no_error(daemon: RunningDaemon, line: str) -> None:
    script = f"set -o pipefail; {sys.executable} -m sessiond {line}"
    done = subprocess.run(
        ["bash", "-c", script],
        env=people(daemon),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0


# Help and exit codes


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: sessiond {name}".strip() in shown
    bare = re.findall(r"^  (-\S+(?: [A-Z_]+)?|[a-z]+)$(?!\n {10})", shown, re.MULTILINE)
    assert bare == [], "arguments without a word about them"


def test_the_installed_program_is_the_module(nobody: RunningDaemon) -> None:
    program = Path(sys.executable).with_name("sessiond")
    if not program.exists():
        pytest.skip("the package is not installed with its program")
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == sessiond(nobody, "--version").stdout
    assert re.fullmatch(r"sessiond \d+\.\d+\.\d+\n", done.stdout)


def test_every_exit_code_has_one_meaning() -> None:
    table = exits.table()
    assert len({code for code, _ in table}) == len(table) == len({what for _, what in table})


def test_every_error_has_a_code_of_the_table() -> None:
    known = {code for code, _ in exits.table()}
    kinds: list[Any] = [SessiondError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        assert exits.exit_code(kind("x")) in known - {exits.OK, exits.USAGE, exits.INTERRUPTED}


def test_a_redis_that_does_not_answer_ends_run_with_its_own_code(
    waiting: subprocess.Popen[str],
) -> None:
    _, errors = waiting.communicate(timeout=30)
    assert waiting.returncode == 6
    assert "error: Redis does not answer" in errors
    assert "127.0.0.1:1" in errors
    assert "secret-word" not in errors
    assert "the write" not in errors, "there was none"

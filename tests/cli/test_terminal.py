"""What is printed, and where: colours, and words that must not act on a terminal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sessiond.cli.terminal import plain
from tests.cli.commands import (
    EVIL,
    LONG,
    SHOWN,
    SPOOF,
    called,
    controls,
    following,
    on_terminal,
    people,
)
from tests.daemons import RunningDaemon, wait_for


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

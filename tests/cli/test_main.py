"""Every command explains itself, and the installed program is the module."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sessiond.cli import main
from tests.cli.commands import sessiond
from tests.daemons import RunningDaemon

COMMANDS = (
    *("run", "status", "sessions", "show", "tail", "redis", "redis keys", "redis cat"),
    *("redis cli", "config", "config get", "config set", "demo"),
)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: sessiond {name}".strip() in shown
    bare = re.findall(r"^  (-\S+(?: [A-Z_]+)?|[a-z]+)$(?!\n {10})", shown, re.MULTILINE)
    assert bare == [], "arguments without a word about them"


@pytest.mark.parametrize(("name", "shown"), [("", "demo "), ("redis", "keys ")])
def test_without_a_command_all_of_them_are_shown(
    name: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(name.split())
    assert ended.value.code == 2
    assert shown in capsys.readouterr().err


def test_an_option_before_its_command_is_told_its_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--json", "status"])
    assert ended.value.code == 2
    assert "options stand behind their command" in capsys.readouterr().err


def test_the_installed_program_is_the_module(nobody: RunningDaemon) -> None:
    program = Path(sys.executable).with_name("sessiond")
    if not program.exists():
        pytest.skip("the package is not installed with its program")
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == sessiond(nobody, "--version").stdout
    assert re.fullmatch(r"sessiond \d+\.\d+\.\d+\n", done.stdout)

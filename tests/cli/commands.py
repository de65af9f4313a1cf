"""Commands as the tests run them: as processes, here, on a terminal; and sessions to look at."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TypeVar
from unittest.mock import patch

from sessiond.cli import main
from sessiond.client import DaemonClient
from sessiond.model import Context, NewMessage, NewSession
from sessiond.service.status import Status
from tests.daemons import RunningDaemon

Answer = TypeVar("Answer")
Done = subprocess.CompletedProcess[str]

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r"
"""What could clear a terminal, name its window, colour it, turn its text around, hide a line."""
LONG = "ses_long"
SHOWN = "ses_shown"
SPOOF = "ses_spoof"


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

"""The demo shows what it says and leaves nothing behind; logs never show what people write."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sessiond.client import DaemonClient
from sessiond.errors import SessiondError
from sessiond.model import Context, NewMessage, NewSession
from sessiond.service.status import Status
from tests.daemons import RunningDaemon, running_daemon, wait_for


class Demo:
    """A demo under way: what it prints, and the processes below it, by pid."""

    def __init__(self, folder: Path, *flags: str, terminal: bool = False) -> None:
        self.folder = folder
        self.pids: set[int] = set()
        self._out = folder.parent / f"{folder.name}.out"
        environ = RunningDaemon(folder).environ | {"TMPDIR": str(folder), "NO_COLOR": "1"}
        environ.pop("PYTHONUNBUFFERED", None)
        self._terminal: int | None = None
        end: int | None = None
        if terminal:
            self._terminal, end = os.openpty()
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sessiond", "demo", "--fast", *flags],
                env=environ,
                stdin=end or subprocess.DEVNULL,
                stdout=end or out,
                stderr=subprocess.STDOUT,
            )
        if self._terminal is not None and end is not None:
            os.close(end)
            os.set_blocking(self._terminal, False)

    @property
    def output(self) -> str:
        """What it printed so far."""
        if self._terminal is not None:
            with self._out.open("ab") as out, suppress(OSError):  # nothing new, or all closed
                while chunk := os.read(self._terminal, 65536):
                    out.write(chunk)
        return self._out.read_text(encoding="utf-8").replace("\r\n", "\n")

    def shows(self, text: str) -> bool:
        """Tell whether it has printed something; note the processes that it runs meanwhile."""
        self.pids |= below(self.process.pid)
        shown = text in self.output
        assert shown or self.process.poll() is None, self.output
        return shown

    def has_ended(self) -> bool:
        """Tell whether it is over; note the processes that it runs meanwhile."""
        self.pids |= below(self.process.pid)
        return self.process.poll() is not None

    def remains(self) -> list[str]:
        """Name what is left of it: processes and folders."""
        folders = [path.name for path in self.folder.glob("sessiond-demo-*")]
        return [f"pid {pid}" for pid in self.pids if is_running(pid)] + folders

    def clean(self) -> None:
        """End whatever is left."""
        for pid in {self.process.pid, *self.pids}:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=30)
        if self._terminal is not None:
            os.close(self._terminal)
        self._out.unlink()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name (socket paths are limited)."""
    folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def below(pid: int) -> set[int]:
    """The processes that a process runs, and those that they run."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return set()
    return {int(child) for child in children}.union(*(below(int(child)) for child in children))


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2][1] != "Z"
    except OSError:
        return False


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="needs /proc to see which processes are left"
)


def test_the_demo_shows_one_conversation_on_two_daemons_and_leaves_nothing(folder: Path) -> None:
    demo = Demo(folder)
    try:
        wait_for(demo.has_ended, 30)
        assert demo.process.returncode == 0
        assert len(demo.pids) >= 3, "two daemons and a server"
        assert "Both histories are identical: 5 messages, 35 operations" in demo.output
        assert "bash completed: tool-77" in demo.output
        assert "MOCK-REPLY[6]: B asks: which word?" in demo.output
        (median,) = re.findall(r"([\d.]+) ms \(median\)", demo.output)
        assert 0 < float(median) < 1000
        wait_for(lambda: not demo.remains())
    finally:
        demo.clean()


def test_kept_the_demo_stays_until_ctrl_c_and_its_commands_work(folder: Path) -> None:
    demo = Demo(folder, "--keep", terminal=True)
    try:
        wait_for(lambda: demo.shows("until Ctrl-C"), 30)
        commands = re.findall(r"^  (redis-cli .*)$", demo.output, re.MULTILINE)
        assert len(commands) == 4
        if shutil.which("redis-cli") is not None:
            shown = [run_shell(command) for command in commands]
            (name,) = re.findall(r"^ses_\w+$", shown[0], re.MULTILINE)
            assert "shared one" in shown[1]
            assert "session.create" in shown[2]
            assert f"subscribe\nsessiond:{{{name}}}:events" in shown[3]
        assert demo.process.poll() is None
        demo.process.send_signal(signal.SIGINT)
        wait_for(demo.has_ended, 30)
        assert demo.process.returncode == 0
        assert "Traceback" not in demo.output
        wait_for(lambda: not demo.remains())
    finally:
        demo.clean()


def run_shell(command: str) -> str:
    """Run a line of a shell; one that waits for more is ended after a moment."""
    done = subprocess.run(
        ["timeout", "1" if "SUBSCRIBE" in command else "10", "bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def test_kept_the_demo_can_be_read_through_a_pipe_while_it_runs(folder: Path) -> None:
    demo = Demo(folder, "--keep")
    try:
        wait_for(lambda: demo.shows("MOCK-REPLY[6]: B asks: which word?"), 30)
        wait_for(lambda: demo.shows("until Ctrl-C"), 5)
        assert demo.process.poll() is None, "it runs while it is read"
    finally:
        demo.process.send_signal(signal.SIGINT)
        demo.process.wait(timeout=30)
        demo.clean()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_leaves_nothing(folder: Path, how: signal.Signals) -> None:
    """SIGHUP is what a terminal sends when its window is closed."""
    demo = Demo(folder)

    def second_daemon_starts() -> bool:
        demo.has_ended()
        return any(folder.glob("sessiond-demo-*/b/log"))

    try:
        wait_for(second_daemon_starts, 30)
        demo.process.send_signal(how)
        wait_for(demo.has_ended, 30)
        wait_for(lambda: not demo.remains(), 5)
        assert demo.remains() == []
    finally:
        demo.clean()


# Logs


async def write_everywhere(client: DaemonClient, canary: str) -> None:
    """Put a word wherever people write, and wherever they may by mistake."""
    new = NewSession(
        session_id="ses_canary",
        title=canary,
        user_id=canary,
        preferences={canary: canary},
        context=Context(working_directory=canary, state={"key": canary}),
    )
    await client.create(new)
    part = {"id": "p", "type": "text", "text": canary}
    await client.append(
        "ses_canary",
        [
            NewMessage(role="user", id="plain", content=canary, tool_calls=[{"say": canary}]),
            NewMessage(role="user", id="parted", parts=[part], metadata={canary: canary}),
        ],
    )
    await client.edit("ses_canary", "plain", {"content": f"{canary} again"})
    await client.put_part("ses_canary", "parted", "p", part | {"more": canary})
    for name in ("context", "preferences"):
        await client.change_document("ses_canary", name, {"state": {"new": canary}})
    await client.change_document("ses_canary", "metadata", {"title": f"{canary} again"})
    await client.send_live("ses_canary", {"typing": canary})
    refused: list[tuple[str, str, Any]] = [
        ("POST", "/v1/sessions", {"session_id": canary, "unknown": canary}),
        ("POST", "/v1/sessions/ses_canary/messages", {"role": canary}),
        ("PATCH", "/v1/sessions/ses_canary/metadata", {canary: canary}),
        ("PATCH", "/v1/config", {"redis.url": f"redis://:{canary}@127.0.0.1:1"}),
        ("PATCH", "/v1/config", {canary: canary}),
        ("GET", f"/v1/{canary}", None),
        ("GET", f"/v1/sessions?{canary}={canary}", None),
    ]
    for method, path, body in refused:
        with pytest.raises(SessiondError):
            await client.call(method, path, None, body=body)


async def knock_wrongly(address: str, canary: str) -> None:
    """Knock at the port with a wrong token, and with what is not HTTP or not JSON."""
    async with aiohttp.ClientSession() as http:
        for headers in ({"Authorization": f"Bearer {canary}"}, {"Cookie": canary}):
            async with http.get(f"{address}/v1/health", headers=headers) as response:
                assert response.status == 401
    host, _, port = address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{canary}\r\n\x00{canary}\r\n\r\n".encode())
    await reader.read(100)
    writer.close()


async def damage(redis: Path, canary: str) -> None:
    """Put what nobody wrote into Redis, so that reading it fails."""
    reader, writer = await asyncio.open_unix_connection(redis)
    for key in ("context", "preferences"):
        writer.write(f"HSET sessiond:{{ses_canary}}:{key} state {canary}\r\n".encode())
    writer.write(f"XADD sessiond:{{ses_canary}}:conversation * json {canary}\r\n".encode())
    writer.write(f"PUBLISH sessiond:{{ses_canary}}:events {canary}\r\n".encode())
    await reader.readline()
    writer.close()


def test_no_log_shows_what_people_write_even_with_all_details() -> None:
    canary = f"canary{secrets.token_hex(6)}"
    with running_daemon("--port", "0", start=False) as daemon:
        daemon.environ |= {"SESSIOND_DEBUG_SESSIONS": "true", "SESSIOND_DEBUG_LOG_LEVEL": "debug"}
        daemon.start()

        async def story() -> str:
            client = DaemonClient(socket=str(daemon.socket), name="test")
            status: Status = (await client.call("GET", "/v1/status", Status))[0]
            await write_everywhere(client, canary)
            await knock_wrongly(status.address or "", canary)
            await damage(daemon.redis_socket, canary)
            for read in (client.load, client.operations):
                with suppress(SessiondError):
                    await read("ses_canary")
            with suppress(SessiondError):
                await client.append("ses_canary", [NewMessage(role="user", content=canary)])
            with suppress(SessiondError):
                await client.delete("ses_canary")
            await client.close()
            return status.token_file or ""

        token = Path(asyncio.run(story())).read_text(encoding="ascii")
        daemon.stop()
        assert '"event": "session.message_append"' in daemon.log, "details were not on"
        logs = [daemon.log, *(file.read_text() for file in daemon.folder.rglob("*.log"))]
        for log in logs:
            assert canary not in log
            assert token not in log

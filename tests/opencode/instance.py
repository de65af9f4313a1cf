"""One opencode of its own: home, configuration, process, API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.opencode import model
from tests.opencode.binary import SUPPORTED
from tests.opencode.events import Events

_BOOT_SECONDS = 20.0
_BOOTS = 3
_PROBE_SECONDS = 0.2
_WARM_SECONDS = 5.0
_TERM_SECONDS = 3.0

_OFFLINE = (
    "AUTOUPDATE",
    "DEFAULT_PLUGINS",
    "LSP_DOWNLOAD",
    "MODELS_FETCH",
    "SHARE",
)

_PLUGIN_PACKAGE = {"dependencies": {"@opencode-ai/plugin": SUPPORTED}}


class OpencodeRefused(Exception):
    """opencode answered with an error."""

    def __init__(self, status: int, text: str, request: str) -> None:
        super().__init__(f"{request}: {status} {text[:600]}")
        self.status = status
        self.text = text


class Opencode:
    """An opencode with folders, configuration and process of its own.

    Nothing of the machine's user is seen by it. All waiting is asyncio's, so that a test can
    drive several; a started instance belongs to the event loop that started it. Two instances
    with the same folder share home and database.

    Args:
        folder: where its home and everything else is kept; may exist.
        project: the directory it works in.
        binary: the executable.
        model_url: the base of the model's API.
        plugins: files to load, in its configuration. Others go below `configuration`.
        environ: more environment.
        configured: more of `opencode.json`.
    """

    def __init__(
        self,
        folder: Path,
        project: Path,
        *,
        binary: Path,
        model_url: str,
        plugins: Sequence[Path] = (),
        environ: Mapping[str, str] | None = None,
        configured: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.project = project
        self.binary = binary
        self.environ = _environ(folder) | dict(environ or {})
        self.configuration = folder / "config" / "opencode"
        """Its configuration folder, where `plugin/` may be put."""
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._streams: list[Events] = []
        _prepare(folder, _configuration(model_url, plugins) | dict(configured or {}))

    @property
    def database(self) -> Path:
        """Where its database is."""
        named = self.environ.get("OPENCODE_DB", "opencode.db")
        return self.folder / "data" / "opencode" / named  # an absolute name stands for itself

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self.process, "opencode was not started"
        return self.process.pid

    @property
    def log(self) -> str:
        """What it logged so far."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    async def start(self) -> None:
        """Start its server and return when it answers and has loaded the project's plugins.

        A request that comes while opencode boots may never be answered (nearly every boot
        swallows one), so that none is waited for long.
        """
        assert self.process is None, "opencode runs already"
        for _ in range(_BOOTS):
            self._launch()
            if await self._ready():
                return
            await self.kill()
        raise AssertionError(f"opencode did not start:\n{self.log[-4000:]}")

    async def stop(self) -> None:
        """End it with SIGTERM, or with SIGKILL when it takes too long over that."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End it with SIGKILL."""
        await self._end(signal.SIGKILL)

    def suspend(self, *, on: bool = True) -> None:
        """Stop it as Ctrl-Z does, or let it go on."""
        os.kill(self.pid, signal.SIGSTOP if on else signal.SIGCONT)

    async def run(self, *arguments: str, seconds: float = 60.0) -> str:
        """Run the command line in the project and return what it printed.

        Raises:
            AssertionError: it failed, or took too long.
        """
        process = await asyncio.create_subprocess_exec(
            self.binary,
            *arguments,
            cwd=self.project,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), seconds)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, f"opencode {arguments} failed: {(output + errors).decode()}"
        return output.decode()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        directory: Path | None = None,
        seconds: float = 30.0,
    ) -> Any:
        """Call its API for a directory, which is the project unless another is given.

        Returns:
            The JSON of the answer, None when it is empty.

        Raises:
            OpencodeRefused: the status is no success.
        """
        async with self._http().request(
            method,
            self.url + path,
            json=body,
            headers={"x-opencode-directory": quote(str(directory or self.project))},
            timeout=aiohttp.ClientTimeout(total=seconds),
        ) as response:
            text = await response.text()
            if not response.ok:
                raise OpencodeRefused(response.status, text, f"{method} {path}")
            return json.loads(text) if text else None

    async def create_session(self, title: str = "test", **fields: Any) -> str:
        """Create a session and return its id."""
        created = await self.request("POST", "/session", {"title": title, **fields})
        return str(created["id"])

    async def session(self, session: str) -> Any:
        """Return a session's `info`."""
        return await self.request("GET", f"/session/{session}")

    async def messages(self, session: str) -> list[dict[str, Any]]:
        """Return a session's messages, each with `info` and `parts`."""
        found: list[dict[str, Any]] = await self.request("GET", f"/session/{session}/message")
        return found

    async def texts(self, session: str) -> list[tuple[str, str]]:
        """Return role and text of a session's messages: what a person reads of it."""
        return [
            (
                message["info"]["role"],
                "".join(part["text"] for part in message["parts"] if part["type"] == "text"),
            )
            for message in await self.messages(session)
        ]

    async def prompt(self, session: str, text: str, *, seconds: float = 60.0, **fields: Any) -> Any:
        """Run a turn and return its last message, with `info` and `parts`."""
        path = f"/session/{session}/message"
        return await self.request("POST", path, _prompt(text, fields), seconds=seconds)

    async def prompt_async(self, session: str, text: str, **fields: Any) -> None:
        """Begin a turn."""
        await self.request("POST", f"/session/{session}/prompt_async", _prompt(text, fields))

    async def replay(self, *events: Mapping[str, Any]) -> Any:
        """Write events into a session's log: each with id, aggregateID, seq, type and data."""
        body = {"directory": str(self.project), "events": events}
        return await self.request("POST", "/sync/replay", body)

    async def events(self) -> Events:
        """Collect its events from now on."""
        response = await self._http().get(
            f"{self.url}/global/event", timeout=aiohttp.ClientTimeout(sock_connect=10.0)
        )
        collected = Events(response)
        self._streams.append(collected)
        await collected.connected()
        return collected

    def sql(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Read from its database."""
        where = f"file:{quote(str(self.database))}?mode=ro"
        with closing(sqlite3.connect(where, uri=True, timeout=5.0)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, values)]

    def seq(self, session: str) -> int:
        """Return the number of the last event in a session's log, -1 when it has none."""
        rows = self.sql("SELECT seq FROM event_sequence WHERE aggregate_id = ?", session)
        return int(rows[0]["seq"]) if rows else -1

    def history(self, session: str) -> list[dict[str, Any]]:
        """Return a session's log: seq, id, type and data of each event."""
        rows = self.sql(
            "SELECT seq, id, type, data FROM event WHERE aggregate_id = ? ORDER BY seq", session
        )
        return [row | {"data": json.loads(row["data"])} for row in rows]

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    def _launch(self) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, "serve", f"--port={port}", "--hostname=127.0.0.1", "--print-logs"],
                cwd=self.project,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _ready(self) -> bool:
        """Wait until it answers; False when it ended, or hangs."""
        deadline = time.monotonic() + _BOOT_SECONDS
        patience = _PROBE_SECONDS
        while time.monotonic() < deadline and self.process and self.process.poll() is None:
            try:
                await self.request("GET", "/global/health", seconds=patience)
                await self.request("GET", "/session", seconds=_WARM_SECONDS)
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
            except TimeoutError:
                patience *= 1.5
            else:
                return True
        return False

    async def _end(self, wanted: signal.Signals) -> None:
        process, self.process = self.process, None
        for stream in self._streams:
            stream.close()
        self._streams.clear()
        if self._session:
            await self._session.close()
            self._session = None
        if process is None:
            return
        process.send_signal(wanted)
        try:
            await asyncio.to_thread(process.wait, _TERM_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)


def _environ(folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_DATA_HOME": str(folder / "data"),
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "npm_config_fetch_retries": "0",
    } | {f"OPENCODE_DISABLE_{name}": "1" for name in _OFFLINE}


def _configuration(model_url: str, plugins: Sequence[Path]) -> dict[str, Any]:
    name = f"mock/{model.NAME}"
    return {
        "model": name,
        "small_model": name,
        "share": "disabled",
        "autoupdate": False,
        "enabled_providers": ["mock"],
        "lsp": False,
        "permission": "allow",
        "plugin": [plugin.resolve().as_uri() for plugin in plugins],
        "provider": {
            "mock": {
                "npm": "@ai-sdk/openai-compatible",  # comes with opencode
                "options": {"baseURL": model_url, "apiKey": "none"},
                "models": {
                    model.NAME: {
                        "tool_call": True,
                        "reasoning": True,
                        "limit": {"context": 100_000, "output": 4_096},
                    }
                },
            }
        },
    }


def _prepare(folder: Path, configured: Mapping[str, Any]) -> None:
    """Write the folders and the configuration.

    With any plugin opencode installs a package into its configuration folder: 4 s, and over a
    minute offline. `node_modules` and a lock that names the package, both together, make it
    believe that this was done: 0.1 s.
    """
    configuration = folder / "config" / "opencode"
    for path in ("home", "tmp", "data", "state", "cache", "config/opencode/node_modules"):
        (folder / path).mkdir(parents=True, exist_ok=True)
    lock = {"lockfileVersion": 3, "requires": True, "packages": {"": _PLUGIN_PACKAGE}}
    for name, content in (
        ("opencode.json", configured),
        ("package-lock.json", lock),
    ):
        (configuration / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _prompt(text: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"parts": [{"type": "text", "text": text}], **fields}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])

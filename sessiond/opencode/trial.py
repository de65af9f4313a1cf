"""A trial of an opencode: does it still do what sessiond rests on?

It runs in a folder of its own, sees nothing of the user's, and is gone afterwards. What sessiond
uses of opencode is partly private there: a new version may take it away without a word.
"""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import msgspec
from msgspec import Struct

from sessiond.errors import DatabaseUnreadable
from sessiond.opencode.database import Database
from sessiond.opencode.install import install
from sessiond.opencode.locate import scratch_environ

_BOOT_SECONDS = 30.0
_BOOTS = 2
_PROBE_SECONDS = 1.0
_ANSWER_SECONDS = 15.0
_PLUGIN_SECONDS = 10.0
_TERM_SECONDS = 5.0
_TEXT = "sent by a trial of sessiond"


class Trial(Struct, kw_only=True):
    """What came of it. `fault`: what is not as sessiond needs it; empty when all is well.

    `live`: the plugin was loaded and can move the views; without, they show what comes from
    elsewhere only when it is complete.
    """

    version: str
    boot_seconds: float = 0.0
    replayed: int = 0
    live: bool = False
    fault: str = ""


class TrialFailed(Exception):
    """opencode does not do what was expected; the message says what."""


def try_out(binary: Path, version: str) -> Trial:
    """Start an opencode in a scratch folder and let it do what sessiond asks of it."""
    trial = Trial(version=version)
    with tempfile.TemporaryDirectory(prefix="sessiond-trial-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        try:
            install(folder / "opencode", {}, opencode=version)
            with _Scratch(binary, folder) as opencode:
                trial.boot_seconds = round(opencode.boot(), 2)
                trial.replayed = _replay(opencode)
                trial.live = _is_live(opencode)
        except (TrialFailed, DatabaseUnreadable, OSError) as error:
            trial.fault = str(error)
    return trial


class _Scratch:
    """An opencode in a scratch folder, and its process."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self.project = folder / "project"
        self.database = folder / "opencode" / "opencode.db"
        self.plugin_log = folder / "plugin.log"
        self._binary = binary
        self._log = folder / "log"
        self._environ = scratch_environ(folder) | {
            "SESSIOND_SOCKET": str(folder / "nobody.sock"),
            "SESSIOND_PLUGIN_LOG": str(self.plugin_log),
        }
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.project.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def boot(self) -> float:
        """Start it and return how many seconds it took until it answered.

        A request that comes while it boots may never be answered: then it is started again.
        """
        for _ in range(_BOOTS):
            began = time.monotonic()
            if self._answers(self._launch(), began + _BOOT_SECONDS):
                return time.monotonic() - began
            self._end()
        words = self._log.read_text(encoding="utf-8", errors="replace").strip()[-300:]
        raise TrialFailed(f"it does not start: {words or 'it says nothing'}")

    def call(
        self, method: str, path: str, body: Any = None, seconds: float = _ANSWER_SECONDS
    ) -> Any:
        """Call its API for the project and return what it answers, None when that is nothing.

        Raises:
            TrialFailed: it refuses.
            OSError: it does not answer.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=seconds)
        headers = {
            "Content-Type": "application/json",
            "x-opencode-directory": quote(str(self.project)),
        }
        try:
            data = None if body is None else msgspec.json.encode(body)
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            content = response.read()
        except http.client.HTTPException as error:
            raise TrialFailed(f"{method} {path} is answered by {error!r}") from error
        finally:
            connection.close()
        if response.status >= 400:  # noqa: PLR2004 - where errors begin
            raise TrialFailed(f"{method} {path} is refused: {response.status} {content[:200]!r}")
        try:
            return msgspec.json.decode(content) if content else None
        except msgspec.DecodeError:
            raise TrialFailed(f"{method} {path} is not answered in JSON") from None

    def _answers(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                self.call("GET", "/global/health", seconds=_PROBE_SECONDS)
                self.call("GET", "/session", seconds=deadline - time.monotonic())
            except (OSError, ValueError):
                time.sleep(0.05)
            else:
                return True
        return False

    def _launch(self) -> subprocess.Popen[bytes]:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self._port = taken.getsockname()[1]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the opencode that the user runs too
                [self._binary, "serve", f"--port={self._port}", "--hostname=127.0.0.1"],
                cwd=self.project,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._process

    def _end(self) -> None:
        """End it and what it started: the npm package's `opencode` starts another program."""
        process, self._process = self._process, None
        if process is None:
            return
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, wanted)
                process.wait(_TERM_SECONDS)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _replay(opencode: _Scratch) -> int:
    """Write a session as it would come from another machine, and look where it arrived."""
    project = opencode.call("GET", "/project/current")
    if not isinstance(project, dict) or not isinstance(project.get("id"), str):
        raise TrialFailed("it does not tell the current project")
    events = scratch_events(project["id"], str(opencode.project), round(time.time() * 1000))
    session_id = events[0]["aggregateID"]
    body = {"directory": str(opencode.project), "events": events}
    opencode.call("POST", "/sync/replay", body)
    messages = opencode.call("GET", f"/session/{session_id}/message")
    if _texts(messages) != [_TEXT]:
        raise TrialFailed(f"a replayed message does not appear: {str(messages)[:200]}")
    database = Database(opencode.database)
    try:
        stored = [event.id for event in database.events(session_id, -1, len(events) - 1)]
        state = database.state(session_id)
    finally:
        database.close()
    if stored != [event["id"] for event in events]:
        raise TrialFailed(f"its log does not hold what was replayed: {stored}")
    if state is None or not state.messages or not state.parts:
        raise TrialFailed("its tables do not hold what was replayed")
    return len(stored)


def _texts(messages: Any) -> list[str]:
    try:
        return [part["text"] for message in messages for part in message["parts"]]
    except (KeyError, TypeError):
        return []


def _is_live(opencode: _Scratch) -> bool:
    """Tell whether the plugin found the emitter that moves the views."""

    def said() -> str:
        try:
            return opencode.plugin_log.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    if not _until(lambda: "bus.captured" in said() or "bus.missing" in said(), _PLUGIN_SECONDS):
        raise TrialFailed("it does not load the plugin")
    return "bus.captured" in said()


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def scratch_events(project_id: str, directory: str, now_ms: int) -> list[dict[str, Any]]:
    """Return a session with one message, as the events of opencode's log."""
    word = secrets.token_hex(12)
    session_id, message_id = f"ses_{word}", f"msg_{word}"
    session = {
        "id": session_id,
        "slug": f"trial-{word[:6]}",
        "projectID": project_id,
        "directory": directory,
        "path": directory.lstrip("/"),
        "title": "trial",
        "version": "0",
        "cost": 0,
        "tokens": {"input": 0, "output": 0, "reasoning": 0, "cache": {"read": 0, "write": 0}},
        "time": {"created": now_ms, "updated": now_ms},
    }
    message = {
        "id": message_id,
        "sessionID": session_id,
        "role": "user",
        "time": {"created": now_ms},
        "agent": "build",
        "model": {"providerID": "none", "modelID": "none"},
    }
    part = {
        "id": f"prt_{word}",
        "sessionID": session_id,
        "messageID": message_id,
        "type": "text",
        "text": _TEXT,
    }
    told: list[tuple[str, dict[str, Any]]] = [
        ("session.created.1", {"info": session}),
        ("message.updated.1", {"info": message}),
        ("message.part.updated.1", {"part": part, "time": now_ms}),
    ]
    return [
        {
            "id": f"evt_{word}{seq}",
            "aggregateID": session_id,
            "seq": seq,
            "type": kind,
            "data": {"sessionID": session_id, **data},
        }
        for seq, (kind, data) in enumerate(told)
    ]

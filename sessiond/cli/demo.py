"""`sessiond demo`: two daemons on one server share a conversation recorded from opencode."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from sessiond.backend import RawEvent
from sessiond.cli.connecting import add_command
from sessiond.cli.exits import FAILED, INTERRUPTED, OK
from sessiond.cli.terminal import paint, plain
from sessiond.client import DaemonClient
from sessiond.errors import DaemonUnreachable, SessiondError
from sessiond.model import NewMessage, NewSession, Operation, Part
from sessiond.service.status import Status

_LONGEST_PAUSE_SECONDS = 0.25
_START_SECONDS = 15.0


class Step(Struct):
    """One thing that happened in the recorded conversation."""

    at_ms: int
    do: str
    message: NewMessage | UnsetType = UNSET
    message_id: str = ""
    metadata: dict[str, Any] | UnsetType = UNSET
    part: Part | UnsetType = UNSET
    body: Any = None


class Recording(Struct):
    """The recorded conversation."""

    about: str
    title: str
    steps: list[Step]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "demo",
        help="show two daemons sharing a conversation",
        description="Start two daemons on one embedded server in a temporary folder, replay a "
        "conversation recorded from opencode through the first and show it arriving at the second.",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep it running for redis-cli (as on a terminal)"
    )
    parser.add_argument("--fast", action="store_true", help="without the pauses of the recording")
    parser.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    keep = options.keep or (sys.stdin.isatty() and sys.stdout.isatty())
    folder = Path(tempfile.mkdtemp(prefix="sessiond-demo-"))
    try:
        return asyncio.run(_run(folder, keep=keep, fast=options.fast))
    except asyncio.CancelledError:  # SIGTERM, or the terminal was closed
        return INTERRUPTED
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run(folder: Path, *, keep: bool, fast: bool) -> int:
    for ending in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(ending, _cancel, asyncio.current_task())
    server = folder / "a" / "sessiond" / "redis.sock"
    async with (
        _daemon(folder / "a", "laptop") as first,
        _daemon(folder / "b", "desktop", "--redis-url", f"unix://{server}") as second,
    ):
        status: Status = (await first.call("GET", "/v1/status", Status))[0]
        print(f"Two daemons, laptop and desktop, share one {status.server.version}.")
        recording = _recording()
        session = await first.create(NewSession(title=recording.title))
        session_id = session.metadata.session_id
        print(f"A conversation recorded from opencode is replayed through laptop ({session_id}).")
        print(f"What follows is what a client of {paint('desktop', 'cyan')} sees, as it arrives:\n")
        screen = _Screen()
        async with second.events(session_id, session.position) as events:
            watching = asyncio.create_task(screen.watch(events))
            await _replay(first, session_id, recording, screen, fast=fast)
            arrival = asyncio.create_task(screen.complete(await first.position(session_id)))
            await asyncio.wait({watching, arrival}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            arrived = arrival.done()
            for task in (watching, arrival):
                task.cancel()
            ends = await asyncio.gather(watching, arrival, return_exceptions=True)
            if not arrived:
                raise ends[0] if isinstance(ends[0], Exception) else _not_arrived()
        print()
        same = await _compare(first, second, session_id, screen)
        _explain(status.server.redis_cli, session_id)
        if keep:
            print(
                paint("\nIt runs until Ctrl-C; then everything is removed.", "yellow"), flush=True
            )
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return OK if same else FAILED


def _cancel(task: asyncio.Task[int] | None) -> None:
    if task:
        task.cancel()


@asynccontextmanager
async def _daemon(folder: Path, name: str, *flags: str) -> AsyncIterator[DaemonClient]:
    """Run a daemon that keeps everything in a folder, and give a client of it."""
    folder.mkdir(mode=0o700)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SESSIOND_")}
    environ |= {
        "XDG_RUNTIME_DIR": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sessiond", "run", "--instance", name, *flags,
            env=environ, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    client = DaemonClient(socket=str(folder / "sessiond" / "api.sock"), name="demo")
    try:
        await _ready(client, process, folder / "log")
        yield client
    finally:
        await client.close()
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _ready(client: DaemonClient, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            await client.call("GET", "/v1/ready", None)
        except DaemonUnreachable:
            if process.returncode is not None or time.monotonic() > deadline:
                sys.stderr.write(log.read_text(errors="replace"))
                raise
            await asyncio.sleep(0.02)
        else:
            return


def _recording() -> Recording:
    data = (files("sessiond") / "demo" / "conversation.json").read_bytes()
    return msgspec.json.decode(data, type=Recording)


async def _replay(
    client: DaemonClient, session_id: str, recording: Recording, screen: _Screen, *, fast: bool
) -> None:
    before = recording.steps[0].at_ms
    for step in recording.steps:
        if not fast:
            await asyncio.sleep(min(_LONGEST_PAUSE_SECONDS, (step.at_ms - before) / 1000))
        before = step.at_ms
        sent = time.perf_counter()
        match step.do:
            case "append" if isinstance(step.message, NewMessage):
                position = (await client.append(session_id, [step.message])).position
            case "edit":
                patch = {"metadata": step.metadata}
                position = (await client.edit(session_id, step.message_id, patch)).version
            case "put_part" if isinstance(step.part, dict):
                part_id = step.part["id"]
                position = (
                    await client.put_part(session_id, step.message_id, part_id, step.part)
                ).version
            case _:
                await client.send_live(session_id, step.body)
                continue
        screen.sent[position] = sent


class _Screen:
    """What a client of the second daemon sees, printed as it arrives."""

    def __init__(self) -> None:
        self.sent: dict[str, float] = {}
        self.arrived: dict[str, float] = {}
        self.live = 0
        self._roles: dict[str, str] = {}
        self._typed: set[str] = set()
        self._line_is_open = False
        self._moved = asyncio.Event()
        self._tools: dict[str, str] = {}

    async def watch(self, events: AsyncIterator[RawEvent]) -> None:
        """Print events until cancelled."""
        async for event in events:
            if event.name == "live":
                self.live += 1
                self._type(msgspec.json.decode(event.data)["body"])
                continue
            operation = msgspec.json.decode(event.data, type=Operation)
            self.arrived[operation.position] = time.perf_counter()
            self._show(operation)
            self._moved.set()

    async def complete(self, position: str) -> None:
        """Return when everything up to a position has arrived."""
        while position not in self.arrived:
            self._moved.clear()
            await self._moved.wait()

    def delays_ms(self) -> list[float]:
        """Return how long each operation was under way, from its sending to its arrival."""
        return [
            (self.arrived[position] - sent) * 1000
            for position, sent in self.sent.items()
            if position in self.arrived
        ]

    def _show(self, operation: Operation) -> None:
        if operation.op == "message.append":
            self._roles[operation.id] = operation.body["role"]
        if operation.op != "part.put":
            return
        part, role = operation.body, self._roles[operation.id.partition("/")[0]]
        if part["type"] == "text" and part.get("text"):
            if part["id"] not in self._typed:
                self._line(role, plain(part["text"]).strip())
        elif part["type"] == "tool" and part["state"]["status"] != self._tools.get(part["id"]):
            state = part["state"]
            self._tools[part["id"]] = state["status"]
            detail = state.get("output") or state.get("input", {}).get("command", "")
            text = f"{part['tool']} {state['status']}: {plain(detail).strip()}"
            self._line(role, paint(text, "yellow"))

    def _type(self, delta: dict[str, Any]) -> None:
        if delta["part_id"] not in self._typed:
            self._typed.add(delta["part_id"])
            self._line("assistant", "", end="")
            self._line_is_open = True
        print(plain(delta["text"]).replace("\n", " "), end="", flush=True)

    def _line(self, role: str, text: str, *, end: str = "\n") -> None:
        if self._line_is_open:
            print()
        self._line_is_open = False
        print(f"{_speaker(role)} {text}", end=end, flush=True)


def _speaker(role: str) -> str:
    return paint(role.rjust(10), "green" if role == "user" else "blue")


async def _compare(
    first: DaemonClient, second: DaemonClient, session_id: str, screen: _Screen
) -> bool:
    """Say whether both daemons tell the same history, and return it."""
    histories = [
        (await client.load(session_id), await client.operations(session_id))
        for client in (first, second)
    ]
    session, log = histories[0]
    same = histories[0] == histories[1]
    delays = screen.delays_ms()
    print(
        f"\n{len(delays)} operations and {screen.live} pieces of typing arrived; from sending to "
        f"arrival {statistics.median(delays):.1f} ms (median)."
    )
    verdict = paint("identical", "green") if same else paint("DIFFERENT", "red")
    print(
        f"Both histories are {verdict}: {len(session.conversation.messages)} messages, "
        f"{len(log.operations)} operations, position {session.position}."
    )
    return same


def _not_arrived() -> SessiondError:
    return SessiondError("the conversation did not arrive within 10 s")


def _explain(redis_cli: str, session_id: str) -> None:
    print("\nLook for yourself (in another terminal, while this runs):")
    for command in (
        "ZREVRANGE sessiond:sessions 0 -1",
        f"HGETALL 'sessiond:{{{session_id}}}:metadata'",
        f"XRANGE 'sessiond:{{{session_id}}}:conversation' - + COUNT 3",
        f"SUBSCRIBE 'sessiond:{{{session_id}}}:events'",
    ):
        print(f"  {paint(f'{redis_cli} {command}', 'cyan')}")
    if shutil.which("redis-cli") is None:
        print(
            "(redis-cli is not installed here: it comes with redis-tools on Debian, redis on macOS)"
        )

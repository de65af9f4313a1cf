"""Machines that share sessions: each a sidecar and an opencode, all on one Redis."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sessiond
from sessiond.client import DaemonClient
from sessiond.opencode import mapping
from tests.daemons import RunningDaemon
from tests.opencode.events import Events
from tests.opencode.instance import Opencode
from tests.opencode.projects import git_project
from tests.opencode.waiting import until

PLUGIN = Path(sessiond.__file__).parent / "opencode" / "plugin" / "sessiond.js"


class Machine:
    """A sidecar, and an opencode attached to it.

    Args:
        name: the machine's name among the others.
        folder: a short name, because sockets lie below it.
        binary: opencode's executable.
        model_url: the model that opencode asks.
        redis_url: the Redis that all share; empty for an embedded one.
        environ: more environment of opencode.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        binary: Path,
        model_url: str,
        redis_url: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        (folder / "sidecar").mkdir(parents=True)
        flags = ["--redis-url", redis_url] if redis_url else []
        self.sidecar = RunningDaemon(folder / "sidecar", *flags)
        self.sidecar.environ |= {
            "SESSIOND_SYNC_INSTANCE": name,
            "SESSIOND_SYNC_LEASE_SECONDS": "3",
            "SESSIOND_DEBUG_SESSIONS": "true",
        }
        self.project = git_project(folder / name / "project")
        self.opencode = Opencode(
            folder / "opencode",
            self.project,
            binary=binary,
            model_url=model_url,
            plugins=[PLUGIN],
            environ={
                "SESSIOND_SOCKET": str(self.sidecar.socket),
                "SESSIOND_PLUGIN_LOG": str(folder / "plugin.log"),
            }
            | dict(environ or {}),
        )

    async def start(self) -> None:
        """Start both, and return when they are attached to each other."""
        await self.start_sidecar()
        await self.opencode.start()
        await self.attached()

    async def start_sidecar(self) -> None:
        await asyncio.to_thread(self.sidecar.start)

    async def attached(self) -> None:
        """Return when this machine's opencode is attached to its sidecar."""

        async def is_attached() -> bool:
            found = await self.overview()
            return any(one["machine"] == self.name for one in found["instances"])

        await until(is_attached)

    async def stop(self) -> None:
        await self.opencode.stop()
        await asyncio.to_thread(self.sidecar.stop)

    async def overview(self) -> dict[str, Any]:
        """What the sidecar tells of opencode."""
        client = DaemonClient(socket=str(self.sidecar.socket))
        try:
            found: dict[str, Any]
            found, _ = await client.call("GET", "/v1/opencode", dict[str, Any])
            return found
        finally:
            await client.close()

    async def history(self, session: str, *, times: bool = True) -> str:
        """A session's messages as opencode shows them, with what is this machine's made neutral.

        Each machine has times by its own clock: leave out `times` where one is wrong.
        """
        messages = await self.opencode.messages(session)
        neutral = mapping.Machine("", str(self.project)).neutral(messages)
        shown = neutral if times else _without_times(neutral)
        return json.dumps(shown, sort_keys=True, indent=1)

    async def turns(self, session: str) -> list[tuple[str, str]]:
        """Role and text of a session's messages, in opencode's order."""
        return await self.opencode.texts(session)

    async def events(self) -> Events:
        """What opencode's views are told from now on."""
        return await self.opencode.events()

    @property
    def plugin_log(self) -> str:
        """What the plugin logged."""
        return (self.folder / "plugin.log").read_text(encoding="utf-8")


class Team:
    """Machines that share one Redis: the first one's embedded server."""

    def __init__(self, binary: Path, model_url: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
        self.machines: list[Machine] = []
        self._binary = binary
        self._model_url = model_url

    def add(self, name: str, **options: Any) -> Machine:
        """Add a machine, not yet started."""
        url = f"unix://{self.machines[0].sidecar.redis_socket}" if self.machines else ""
        machine = Machine(
            name,
            self.folder / name,
            binary=self._binary,
            model_url=self._model_url,
            redis_url=url,
            **options,
        )
        self.machines.append(machine)
        return machine

    async def start(self, *names: str, **options: Any) -> list[Machine]:
        """Add machines and start them."""
        added = [self.add(name, **options) for name in names]
        for machine in added:
            await machine.start_sidecar()
        await asyncio.gather(*(machine.opencode.start() for machine in added))
        await asyncio.gather(*(machine.attached() for machine in added))
        return added

    async def stop(self) -> None:
        """Stop all, the one with the Redis last."""
        await asyncio.gather(*(machine.opencode.stop() for machine in self.machines))
        for machine in reversed(self.machines):
            await asyncio.to_thread(machine.sidecar.stop)
        shutil.rmtree(self.folder, ignore_errors=True)


def _without_times(value: Any) -> Any:
    """Return a JSON value in which times say no more than that they are there."""
    if isinstance(value, list):
        return [_without_times(each) for each in value]
    if isinstance(value, dict):
        return {
            name: sorted(each)
            if name == "time" and isinstance(each, dict)
            else _without_times(each)
            for name, each in value.items()
        }
    return value


async def same_history(
    session: str, *machines: Machine, seconds: float = 20.0, times: bool = True
) -> str:
    """Return a session's history when all machines show the same, and nothing else comes.

    Raises:
        AssertionError: they do not agree in time.
    """

    async def agreed() -> str:
        histories = [await machine.history(session, times=times) for machine in machines]
        return histories[0] if len(set(histories)) == 1 else ""

    async def settled() -> str:
        first = await agreed()
        await asyncio.sleep(0.3)
        return first if first and first == await agreed() else ""

    try:
        return await until(settled, seconds)
    except AssertionError as error:
        told = "\n".join(
            [f"--- {m.name}\n{await m.history(session, times=times)}" for m in machines]
        )
        raise AssertionError(f"the histories of {session} differ:\n{told}") from error


async def known(machine: Machine, session: str) -> Any:
    """Return a session when a machine's opencode has it."""

    async def found() -> Any:
        sessions = await machine.opencode.request("GET", "/session")
        return next((each for each in sessions if each["id"] == session), None)

    return await until(found)


async def gone(machine: Machine, session: str) -> None:
    """Return when a machine's opencode has a session no more."""

    async def is_gone() -> bool:
        sessions = await machine.opencode.request("GET", "/session")
        return session not in [each["id"] for each in sessions]

    await until(is_gone)


async def lengthen(machine: Machine, session: str, count: int, batch: int = 200) -> None:
    """Have opencode log a long past of a session."""
    user = (await machine.opencode.messages(session))[0]
    seq = machine.opencode.seq(session)
    events = []
    for number in range(count):
        name = f"1{number:011d}{session[-14:]}"
        message = f"msg_{name}"
        at = user["info"]["time"]["created"] - 1000 * (count - number)
        info = user["info"] | {"id": message, "time": {"created": at}}
        place = {"id": f"prt_{name}", "messageID": message}
        part = user["parts"][0] | place | {"text": f"message {number}"}
        told = {"sessionID": session}
        for kind, data in (("", {"info": info}), ("part.", {"part": part, "time": at})):
            seq += 1
            events.append(
                {
                    "id": f"evt_test{session}{seq}",
                    "aggregateID": session,
                    "seq": seq,
                    "type": f"message.{kind}updated.1",
                    "data": told | data,
                }
            )
    for start in range(0, len(events), batch):
        await machine.opencode.replay(*events[start : start + batch])

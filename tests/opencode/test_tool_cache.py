"""What a real opencode's tools answer is cached in the session, where that is wanted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from sessiond.client import DaemonClient
from sessiond.errors import SessiondError
from sessiond.manager.session_cache import SessionCache
from sessiond.model import CachedCall
from tests.opencode.machines import Machine, Team
from tests.opencode.waiting import until

LONG_AGO = 1_700_000_000


@pytest_asyncio.fixture
async def client_of() -> AsyncIterator[Any]:
    """Makes a client of a machine's daemon."""
    clients: list[DaemonClient] = []

    def made(machine: Machine) -> DaemonClient:
        clients.append(DaemonClient(socket=str(machine.sidecar.socket)))
        return clients[-1]

    yield made
    for client in clients:
        await client.close()


def old_file(machine: Machine, name: str, text: str) -> Path:
    """Write a file, and wait until it is older than what may change without a trace."""
    file = machine.project / name
    file.write_text(text, encoding="utf-8")
    os.utime(file, (LONG_AGO, LONG_AGO))
    return file


async def settled(*files: Path) -> None:
    """Return when files were not touched for more than two seconds."""
    await until(lambda: all(time.time() - file.stat().st_ctime > 2.2 for file in files))


async def run_tool(machine: Machine, session: str, tool: str, **given: Any) -> None:
    await machine.opencode.prompt(session, f"TOOLX:{tool} {json.dumps(given)}")


async def begun(machine: Machine, client: DaemonClient, session: str) -> None:
    """Say something in a session, and return when it is shared: before, nothing is cached."""
    await machine.opencode.prompt(session, "hello")

    async def is_shared() -> bool:
        try:
            return bool((await client.page(session)).messages)
        except SessiondError:
            return False

    await until(is_shared)


async def cached(client: DaemonClient, session: str) -> list[CachedCall]:
    try:
        return (await client.cached(session)).entries
    except SessiondError:  # it is not shared yet
        return []


async def test_what_tools_answer_is_cached_for_programs_until_a_file_changes(
    team: Team, client_of: Any
) -> None:
    ana, ben = await team.start("ana", "ben", environ={"SESSIOND_OPENCODE_CACHE": "on"})
    for machine in (ana, ben):
        old_file(machine, "a.txt", "needle\nhay\n")
    await settled(ana.project / "a.txt", ben.project / "a.txt")
    client = client_of(ana)
    session = await ana.opencode.create_session("cached")
    await begun(ana, client, session)
    read = {"filePath": str(ana.project / "a.txt")}
    await run_tool(ana, session, "read", **read)

    async def is_cached() -> bool:
        return bool(await cached(client, session))

    await until(is_cached)
    (entry,) = await cached(client, session)
    assert (entry.tool, entry.path, entry.scope) == ("opencode 1.18.33 read", "a.txt", "file")
    await run_tool(ana, session, "grep", pattern="needle")  # fails where ripgrep is not installed
    assert '"what":"cache.looked","tool":"grep","outcome":"miss","reason":""' in ana.plugin_log

    there = SessionCache(client_of(ben), session, str(ben.project))
    read_there = {"filePath": str(ben.project / "a.txt")}
    answer = await there.get("opencode 1.18.33 read", read_there, path="a.txt")
    assert answer.is_hit, answer
    assert "needle" in answer.value["output"]
    assert str(ana.project) not in json.dumps(answer.value)
    old_file(ben, "a.txt", "needle\nhaY\n")
    assert not (await there.get("opencode 1.18.33 read", read_there, path="a.txt")).is_hit

    await run_tool(ana, session, "write", filePath=read["filePath"], content="new\n")

    async def dropped() -> bool:
        return not await cached(client, session)

    await until(dropped)


async def test_without_the_switch_nothing_is_cached(team: Team, client_of: Any) -> None:
    (ana,) = await team.start("ana")
    old = old_file(ana, "a.txt", "needle\n")
    await settled(old)
    session = await ana.opencode.create_session("not cached")
    await begun(ana, client_of(ana), session)
    await run_tool(ana, session, "read", filePath=str(old))
    assert await cached(client_of(ana), session) == []

"""Programs go on while Redis is away: what they wrote is shown, and gets its place afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sessiond import SessionManager
from sessiond.client import DaemonClient
from tests.api.servers import DurableServer
from tests.daemons import RunningDaemon
from tests.system.observing import settled

JAVASCRIPT = Path(__file__).parent / "offline.mjs"


@pytest.fixture
async def manager(daemon: RunningDaemon) -> AsyncIterator[SessionManager]:
    async with SessionManager.connect(socket=str(daemon.socket)) as manager:
        yield manager


async def back(server: DurableServer, daemon: RunningDaemon) -> None:
    server.start()
    client = DaemonClient(socket=str(daemon.socket))
    await settled(client)
    await client.close()


async def test_a_python_program_writes_saves_and_follows(
    server: DurableServer, daemon: RunningDaemon, manager: SessionManager
) -> None:
    session = await manager.create(session_id="s", preferences={"theme": "dark"})
    await session.add_message(role="user", content="before", id="m1")
    server.kill()
    message = await session.add_message(role="user", content="offline")
    session.context.state["count"] = 1
    assert await session.save() == []
    session.context.state["count"] = 2
    assert await session.save() == []
    await session.edit_message("m1", content="edited")
    new = await manager.create(session_id="t", title="made offline")
    await new.add_message(role="user", content="first of all")
    assert [shown.content for shown in session.messages] == ["before", "offline"]
    await back(server, daemon)
    await session.add_message(role="user", content="after")
    assert [shown.content for shown in session.messages] == ["edited", "offline", "after"]
    assert session.messages[1].id == message.id
    again = await manager.load("s")
    assert [shown.id for shown in again.messages] == [shown.id for shown in session.messages]
    assert again.context.state == session.context.state == {"count": 2}
    assert await session.conflicts() == []
    await new.add_message(role="user", content="second")
    assert [shown.content for shown in new.messages] == ["first of all", "second"]
    new.preferences["theme"] = "light"
    await new.save()
    assert (await manager.load("t")).preferences == {"theme": "light"}


async def test_a_javascript_program_does_too(server: DurableServer, daemon: RunningDaemon) -> None:
    async with SessionManager.connect(socket=str(daemon.socket)) as manager:
        await manager.create(session_id="s")
    program = await asyncio.create_subprocess_exec(
        "node", str(JAVASCRIPT), str(daemon.socket),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert program.stdin
    assert program.stdout
    assert await program.stdout.readline() == b"loaded\n"
    server.kill()
    program.stdin.write(b"\n")
    assert json.loads(await program.stdout.readline()) == ["before", "offline"]
    await back(server, daemon)
    program.stdin.write(b"\n")
    shown, context, conflicts = json.loads(await program.stdout.readline())
    assert shown == ["before", "offline", "after"]
    assert (context, conflicts) == ({"count": 2}, [])
    assert await program.wait() == 0

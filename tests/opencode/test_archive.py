"""A session of a real opencode leaves Redis, comes back, and goes on."""

from __future__ import annotations

import json

import pytest

from sessiond.client import DaemonClient
from sessiond.errors import SessionInUse
from tests.opencode.machines import Machine, Team, known, same_history
from tests.opencode.model import Model
from tests.opencode.waiting import until


async def archived(machine: Machine) -> list[str]:
    """The sessions that are archived."""
    client = DaemonClient(socket=str(machine.sidecar.socket))
    try:
        found = (await client.list_sessions(status="archived")).sessions
        return [summary.metadata.session_id for summary in found]
    finally:
        await client.close()


async def archive(machine: Machine, session: str) -> None:
    """Archive a session as soon as nobody is there any more."""
    client = DaemonClient(socket=str(machine.sidecar.socket))

    async def done() -> bool:
        try:
            return (await client.archive(session, idle_seconds=0)).archived
        except SessionInUse:
            return False

    try:
        await until(done, 60)
    finally:
        await client.close()


async def test_a_session_is_archived_restored_and_continued(team: Team, model: Model) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ana.opencode.create_session("an old one")
    await ana.opencode.prompt(session, "TOOL:echo tool-77")
    history = await same_history(session, ana, ben)
    other = await ana.opencode.create_session("not an old one")
    client = DaemonClient(socket=str(ana.sidecar.socket))
    with pytest.raises(SessionInUse):
        await client.archive(session, idle_seconds=0)

    await ana.opencode.stop()
    await ben.opencode.stop()
    await archive(ben, session)
    await ana.opencode.start()  # it has the session itself: nothing is to be fetched
    await ana.attached()
    assert await ana.history(session) == history
    (cara,) = await team.start("cara")
    await known(cara, other)
    listed = await cara.opencode.request("GET", "/session")
    assert session not in [each["id"] for each in listed]  # who does not have it does not get it
    assert await archived(ana) == [session]

    model.forget()
    await ana.opencode.prompt(session, "and what now?")
    assert await archived(ana) == []
    (request,) = model.turn_requests("and what now?")
    assert "tool-77" in json.dumps(request.messages)
    await ben.opencode.start()
    await ben.attached()
    await known(cara, session)
    assert len(await same_history(session, ana, ben, cara)) > len(history)
    await client.close()

"""Two real opencodes in one session: each is seen at work, with the same names for the files."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sessiond.client import DaemonClient
from sessiond.model import SessionPresence
from tests.opencode.machines import Machine, Team, known
from tests.opencode.model import Model
from tests.opencode.waiting import until


async def presence(machine: Machine, session: str) -> SessionPresence:
    client = DaemonClient(socket=str(machine.sidecar.socket))
    try:
        return await client.presence(session)
    finally:
        await client.close()


def machines(found: SessionPresence) -> Sequence[str]:
    return [who.machine for who in found.present]


async def write(machine: Machine, session: str, name: str) -> None:
    written = {"filePath": str(machine.project / name), "content": "hello\n"}
    await machine.opencode.prompt(session, f"TOOLX:write {json.dumps(written)}")


async def test_each_sees_who_is_there_who_answers_and_what_both_write(
    team: Team, model: Model
) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ana.opencode.create_session("at work")
    with model.holding("SLOW:8", pieces=2) as gate:
        await ana.opencode.prompt_async(session, "SLOW:8")
        await until(lambda: gate.held)

        async def is_answering() -> bool:
            found = (await presence(ben, session)).present
            return [who.has_turn for who in found] == [True]

        await until(is_answering)
    await known(ben, session)
    await write(ana, session, "notes.md")
    await write(ben, session, "notes.md")

    async def both_write() -> SessionPresence | None:
        found = await presence(ana, session)
        return found if "notes.md" in found.shared_files else None

    found = await until(both_write)
    assert found
    assert machines(found) == ["ana", "ben"]
    assert [who.client for who in found.present] == ["opencode", "opencode"]
    assert [who.active_files for who in found.present] == [["notes.md"], ["notes.md"]]
    await ben.opencode.kill()

    async def is_gone() -> bool:
        return machines(await presence(ana, session)) == ["ana"]

    await until(is_gone)

"""What a real opencode's tools did stands in the session's context, for whoever joins it."""

from __future__ import annotations

import asyncio
import json

import msgspec

from sessiond.client import DaemonClient
from sessiond.errors import NotFound
from sessiond.model import Context, Session
from tests.cli.commands import sessiond
from tests.opencode.machines import Machine, Team, known, same_history
from tests.opencode.waiting import until


async def use_tool(machine: Machine, session: str, tool: str, **given: str) -> None:
    """Have the model call a tool in the session."""
    await machine.opencode.prompt(session, f"TOOLX:{tool} {json.dumps(given)}")


async def context_at(machine: Machine, session: str, *, commands: int) -> Context:
    """Return what a machine's daemon tells of a session's context, once it has that many tools."""
    client = DaemonClient(socket=str(machine.sidecar.socket))

    async def noted() -> Context | None:
        try:
            context = (await client.load(session)).context
        except NotFound:  # it is not shared yet
            return None
        return context if len(context.recent_commands) == commands else None

    try:
        context = await until(noted)
        assert context
        return context
    finally:
        await client.close()


def work(context: Context) -> tuple[str, list[str], list[str]]:
    """Return what a context says of the work: the folder, the files, the tools."""
    return context.working_directory, context.active_files, context.recent_commands


async def test_who_joins_finds_what_tools_did_and_goes_on_from_there(team: Team) -> None:
    ana = team.add("ana")
    (ana.project / "a.txt").write_text("needle\n", encoding="utf-8")
    (ana.project / "b.txt").write_text("hay\n", encoding="utf-8")
    await ana.start()
    session = await ana.opencode.create_session("worked on")
    read, edited = str(ana.project / "a.txt"), str(ana.project / "b.txt")
    await use_tool(ana, session, "read", filePath=edited)  # opencode edits only what it has read
    await use_tool(ana, session, "read", filePath=read)
    await use_tool(ana, session, "edit", filePath=edited, oldString="hay", newString="straw")
    await ana.opencode.prompt(session, "TOOL:pwd")
    assert (ana.project / "b.txt").read_text(encoding="utf-8") == "straw\n"

    left = work(await context_at(ana, session, commands=4))
    assert left == ("${WORKTREE}", ["a.txt", "b.txt"], ["read", "read", "edit", "bash"])
    await ana.opencode.stop()

    ben = team.add("ben")
    (ben.project / "c.txt").write_text("needle\n", encoding="utf-8")
    await ben.start()
    await known(ben, session)
    assert work(await context_at(ben, session, commands=4)) == left
    shown = await asyncio.to_thread(sessiond, ben.sidecar, "show", session, "--json")
    assert work(msgspec.json.decode(shown.stdout, type=Session).context) == left

    await use_tool(ben, session, "read", filePath=str(ben.project / "c.txt"))
    joined = work(await context_at(ana, session, commands=5))
    folder, files, commands = left
    assert joined == (folder, [*files, "c.txt"], [*commands, "read"])
    await ana.opencode.start()
    await ana.attached()
    await same_history(session, ana, ben)

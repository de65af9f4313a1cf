"""What two people see who share a session, each at a terminal."""

from __future__ import annotations

from pathlib import Path

from tests.opencode.machines import Team
from tests.opencode.model import Model
from tests.opencode.terminals import Terminal
from tests.opencode.waiting import until

_REPLY = ": {}"  # how the model's answer ends; before it stands what Markdown may swallow


async def test_two_people_at_two_terminals_see_one_conversation(binary: Path, model: Model) -> None:
    model.delay = 0.05
    team = Team(binary, model.url)
    ana, ben = team.add("ana"), team.add("ben")
    at_anas = Terminal(team.folder / "terminal-a", ana.opencode)
    at_bens = Terminal(team.folder / "terminal-b", ben.opencode)
    try:
        for machine in (ana, ben):
            await machine.start_sidecar()
        for terminal in (at_anas, at_bens):
            terminal.start()
        for terminal in (at_anas, at_bens):
            await terminal.shows("Ask anything")
        for machine in (ana, ben):
            await machine.attached()

        await at_anas.ask("hello from ana")
        await at_anas.shows(_REPLY.format("hello from ana"))

        async def arrived() -> bool:
            return bool((await ben.overview())["sessions"])

        await until(arrived)
        await at_bens.ask("/sessions")
        await at_bens.shows("Sessions", "Mock title")
        at_bens.press("Enter")
        await at_bens.shows(_REPLY.format("hello from ana"))

        with model.holding("then SLOW:30", pieces=4):
            await at_anas.ask("then SLOW:30")
            await at_bens.shows("then SLOW:30", "w2")
            await at_bens.ask("a word from ben")
            await at_bens.shows("ana is answering; your message waits")
            assert "w29" not in at_bens.screen, "text is to be seen while it is written"
        await at_bens.shows("w29", _REPLY.format("a word from ben"))
        await at_anas.shows("w29", _REPLY.format("a word from ben"))
    finally:
        at_anas.stop()
        at_bens.stop()
        await team.stop()

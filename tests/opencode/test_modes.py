"""Turns without a lease: at once, and yet never one that answers for another."""

from __future__ import annotations

import asyncio

import pytest

from tests.opencode.machines import Team, known, same_history
from tests.opencode.model import Model
from tests.opencode.waiting import until


@pytest.mark.parametrize("mode", ["atomic", "defer"])
async def test_two_turns_at_once_cost_what_two_turns_cost(
    team: Team, model: Model, mode: str
) -> None:
    ana, ben = (team.add(name, environ={"SESSIOND_OPENCODE_MODE": mode}) for name in ("ana", "ben"))
    await ana.start()
    await ben.start()
    session = await ana.opencode.create_session("at once")
    await known(ben, session)
    for number in range(3):
        model.forget()
        with model.holding("TOOL:echo"):
            prompts = [
                asyncio.ensure_future(
                    machine.opencode.prompt(session, f"TOOL:echo {machine.name}{number}")
                )
                for machine in (ana, ben)
            ]
            await until(lambda: len(model.turn_requests()) >= 2)
        await asyncio.gather(*prompts)
        await same_history(session, ana, ben, seconds=40)
        assert len(model.turn_requests()) == 4


async def test_in_mode_atomic_a_remote_turn_comes_in_when_it_is_complete(
    team: Team, model: Model
) -> None:
    ana, ben = (
        team.add(name, environ={"SESSIOND_OPENCODE_MODE": "atomic"}) for name in ("ana", "ben")
    )
    await ana.start()
    await ben.start()
    session = await ana.opencode.create_session("atomic")
    await known(ben, session)
    events = await ben.events()
    with model.holding("SLOW:6", pieces=3):
        await ana.opencode.prompt_async(session, "SLOW:6")
        await until(lambda: len(events.of("message.part.delta", session=session)) >= 2)
        assert await ben.opencode.messages(session) == [], "seen, but not written"
    await same_history(session, ana, ben)
    assert len(await ben.opencode.messages(session)) == 2
    events.close()


async def test_without_the_bus_views_move_and_nothing_goes_round_in_circles(
    team: Team, model: Model
) -> None:
    ana, ben = (team.add(name, environ={"SESSIOND_PLUGIN_LIVE": "off"}) for name in ("ana", "ben"))
    await ana.start()
    await ben.start()
    session = await ana.opencode.create_session("degraded")
    await known(ben, session)
    events = await ben.events()
    await ana.opencode.prompt(session, "TOOL:echo hello")
    await events.wait_for_type("message.part.updated", session)
    await same_history(session, ana, ben)
    log = [ana.opencode.seq(session), ben.opencode.seq(session)]
    await asyncio.sleep(1.0)
    assert log == [ana.opencode.seq(session), ben.opencode.seq(session)]
    assert not (await ana.overview())["instances"][0]["live"]
    events.close()

"""An opencode that joins when there is much already: what its person sees, and in which order."""

from __future__ import annotations

from tests.opencode.events import Events
from tests.opencode.machines import Machine, Team, known, lengthen, same_history

SESSIONS = 8
PAST_MESSAGES = 300


async def test_the_opened_session_comes_first_and_the_rest_is_told_of(team: Team) -> None:
    (ana,) = await team.start("ana")
    sessions = [await _session(ana, number) for number in range(SESSIONS)]
    ben = team.add("ben")
    await ben.opencode.start()
    events = await ben.events()
    await ben.start_sidecar()
    oldest, *others = sessions  # it would be the last one to come in
    for session in sessions:
        await known(ben, session)
    await ben.opencode.prompt(oldest, "I want this one", noReply=True)
    coming = [session for session in others if await _lacks_some(ben, session)]
    assert not await _lacks_some(ben, oldest)
    assert coming
    for session in sessions:
        await same_history(session, ana, ben, seconds=60)
    await _toast(events, f"{SESSIONS} shared sessions are coming in")
    await _toast(events, f"{SESSIONS} shared sessions are here")
    assert (await ben.turns(oldest))[-1] == ("user", "I want this one")
    events.close()


async def test_a_long_session_is_told_of_while_it_comes_in(team: Team) -> None:
    (ana,) = await team.start("ana")
    await _session(ana, 0)
    ben = team.add("ben")
    await ben.opencode.start()
    events = await ben.events()
    await ben.start_sidecar()
    await _toast(events, "'number 0' is coming in, ")
    events.close()


async def _session(machine: Machine, number: int) -> str:
    session = await machine.opencode.create_session(f"number {number}")
    await machine.opencode.prompt(session, "hello", noReply=True)
    await lengthen(machine, session, PAST_MESSAGES)
    return session


async def _lacks_some(machine: Machine, session: str) -> bool:
    return len(await machine.opencode.messages(session)) < PAST_MESSAGES + 1


async def _toast(events: Events, words: str) -> None:
    await events.wait_for(
        lambda e: e.type == "tui.toast.show" and words in e.properties["message"], seconds=60
    )

"""Real opencodes: how long until what one writes is shown in the other."""

from __future__ import annotations

import asyncio
import time

from tests.bench.machinery import Figure, figure, p50, p99
from tests.opencode.binary import opencode_binary
from tests.opencode.events import SeenEvent
from tests.opencode.machines import Machine, Team, known, lengthen, same_history
from tests.opencode.model import Model

_NOTES = 200
_IDLE_SECONDS = 0.1
"""Between two notes: by then both machines have nothing to do any more."""
_PAST_MESSAGES = 1_000


def figures() -> list[Figure]:
    """Measure two opencodes on one Redis."""
    return asyncio.run(_figures())


async def _figures() -> list[Figure]:
    model = Model()
    team = Team(opencode_binary(), model.url)
    try:
        ana, ben = await team.start("ana", "ben")
        return [*await _latency(ana, ben), *await _late_joiner(team, ana)]
    finally:
        await team.stop()
        model.close()


async def _latency(ana: Machine, ben: Machine) -> list[Figure]:
    """Time parts from the call that writes them to both machines' `/global/event`."""
    session = await ana.opencode.create_session("latency")
    await known(ben, session)
    here, there = await ana.events(), await ben.events()
    asked: dict[str, float] = {}
    for number in range(_NOTES):
        text = f"note {number}"
        asked[text] = time.time()
        await ana.opencode.prompt(session, text, noReply=True)
        await asyncio.sleep(_IDLE_SECONDS)
    await same_history(session, ana, ben)
    own = _after(here.of("message.part.updated", session=session), asked)
    other = _after(there.of("message.part.updated", session=session), asked)
    crossing = [other[text] - own[text] for text in own]
    return [
        figure("opencode: a part in its own /global/event p50", p50([*own.values()]) * 1e3, "ms"),
        figure("opencode: from there to the other's p50", p50(crossing) * 1e3, "ms", most=10),
        figure("opencode: from there to the other's p99", p99(crossing) * 1e3, "ms"),
    ]


def _after(events: list[SeenEvent], asked: dict[str, float]) -> dict[str, float]:
    """Return how long after its call each text was shown first (s)."""
    shown: dict[str, float] = {}
    for event in events:
        text = event.properties["part"].get("text", "")
        shown.setdefault(text, event.at - asked.get(text, event.at))
    return {text: shown[text] for text in asked}


async def _late_joiner(team: Team, ana: Machine) -> list[Figure]:
    """Compare a join with opencode's own replay of the same events in the same batches."""
    session = await ana.opencode.create_session("long")
    await ana.opencode.prompt(session, "hello", noReply=True)
    await same_history(session, ana)
    began = time.perf_counter()
    await lengthen(ana, session, _PAST_MESSAGES, batch=50)
    replaying = time.perf_counter() - began
    await same_history(session, *team.machines)
    late = team.add("late")
    await late.start_sidecar()
    await late.opencode.start()
    began = time.perf_counter()
    await known(late, session)
    listed = time.perf_counter() - began
    while len(await late.opencode.messages(session)) <= _PAST_MESSAGES:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    joining = time.perf_counter() - began
    name = f"late joiner, {_PAST_MESSAGES:,} messages"
    return [
        figure("late joiner: a session is listed", listed * 1e3, "ms", most=1_000),
        figure(f"{name}: to be there / opencode's own replay", joining / replaying, "×", most=1.2),
    ]

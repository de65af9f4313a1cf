"""What must hold when all are at rest."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial

from tests.opencode.machines import Machine, same_history
from tests.opencode.soak.ledger import TOKEN, unanswered, wrong_calls, wrong_history
from tests.opencode.soak.machinery import Scene
from tests.opencode.waiting import until

_REST_SECONDS = 40.0
_AGREE_SECONDS = 60.0
_FAILED = re.compile(r"[a-z]+\.[a-z_]*failed\b")


async def violations(scene: Scene) -> list[str]:
    """Return what does not hold, once nothing moves any more."""
    found = [told async for told in _restless(scene)]
    found += [told async for told in _sessions(scene)]
    for session in scene.living():
        found += [told async for told in _history(scene, session)]
    found += unanswered(scene.ledger)
    found += wrong_calls(scene.ledger, _calls(scene))
    for machine in scene.machines:
        found += _logs(machine)
    return found


def _calls(scene: Scene) -> Counter[str]:
    """Count the requests of turns by the token of the last prompt."""
    last = (TOKEN.findall(request.last) for request in scene.model.turn_requests())
    return Counter(found[-1] for found in last if found)


async def _restless(scene: Scene) -> AsyncIterator[str]:
    for machine in scene.machines:
        try:
            await until(partial(_rests, machine), _REST_SECONDS)
        except AssertionError:
            turns = [each["turns"] for each in (await machine.overview())["instances"]]
            yield f"{machine.name} still believes in turns: {turns}"


async def _rests(machine: Machine) -> bool:
    return not any(each["turns"] for each in (await machine.overview())["instances"])


async def _sessions(scene: Scene) -> AsyncIterator[str]:
    """All machines have the sessions that nobody deleted, with the same titles."""
    wanted = set(scene.living())

    async def agreed() -> bool:
        titles = [await _titles(machine) for machine in scene.machines]
        return titles.count(titles[0]) == len(titles) and set(titles[0]) == wanted

    try:
        await until(agreed, _AGREE_SECONDS)
    except AssertionError:
        for machine in scene.machines:
            titles = await _titles(machine)
            told = {"lacks": wanted - set(titles), "has": set(titles) - wanted, "titles": titles}
            yield f"sessions differ: {machine.name} {told}"


async def _titles(machine: Machine) -> dict[str, str]:
    sessions = await machine.opencode.request("GET", "/session?limit=500")
    return {each["id"]: each["title"] for each in sessions}


async def _history(scene: Scene, session: str) -> AsyncIterator[str]:
    try:
        times = scene.clock is None
        await same_history(session, *scene.machines, seconds=_AGREE_SECONDS, times=times)
    except AssertionError:
        yield f"histories of {session} differ: {await _difference(scene, session)}"
    except Exception as error:  # noqa: BLE001 - one lacks the session, which is told of above
        yield f"no history of {session}: {error!r}"
        return
    for machine in scene.machines:
        messages = await machine.opencode.messages(session)
        for told in wrong_history(scene.ledger, session, messages):
            yield f"on {machine.name}: {told}"


async def _difference(scene: Scene, session: str) -> str:
    """Return the records of a session that are not the same everywhere."""
    records: list[dict[str, str]] = []
    for machine in scene.machines:
        told = json.loads(await machine.history(session, times=scene.clock is None))
        records.append(
            {m["info"]["id"]: json.dumps(m["info"], sort_keys=True) for m in told}
            | {p["id"]: json.dumps(p, sort_keys=True) for m in told for p in m["parts"]}
            | {"order": json.dumps([m["info"]["id"] for m in told])}
        )
    names = [m.name for m in scene.machines]
    lines = []
    for record in sorted(set().union(*records)):
        found = [each.get(record, "-") for each in records]
        if len(set(found)) > 1:
            lines += [record, *(f"    {n}: {f[:700]}" for n, f in zip(names, found, strict=True))]
    await asyncio.sleep(0)
    return "\n".join(lines)


def _logs(machine: Machine) -> Iterator[str]:
    log = machine.sidecar.log
    for line in log.splitlines():
        if "Traceback" in line or _FAILED.search(line):
            yield f"the sidecar of {machine.name} logged: {line[:3000]}"
    for line in machine.plugin_log.splitlines():
        if '"plugin.failed"' in line or '"view.failed"' in line:
            yield f"the plugin of {machine.name} logged: {line}"

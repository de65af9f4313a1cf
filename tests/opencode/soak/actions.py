"""What people do with the sessions that they share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from tests.opencode.instance import OpencodeRefused
from tests.opencode.machines import Machine
from tests.opencode.soak.ledger import Message, Prompt, text_of
from tests.opencode.soak.machinery import Scene

_ANSWER_SECONDS = 150.0
_MOST_SESSIONS = 6
_FEWEST_SESSIONS = 2

_KINDS = (
    "plain {}",
    "plain {}",
    "TOOL:echo {}",
    "SLOW:6 {}",
    "SLOW:25 {}",
    "THINK {}",
)

Action = Callable[[Scene, Machine, str], Awaitable[None]]

UNANSWERED = (aiohttp.ClientError, OSError, TimeoutError, RuntimeError)
"""How a request ends whose opencode is killed."""


async def prompt(scene: Scene, machine: Machine, session: str) -> None:
    """One after the other for each machine and session, as at one keyboard."""
    place = (machine.name, session)
    if place in scene.taken:
        return
    scene.taken.add(place)
    try:
        await _prompt(scene, machine, session)
    finally:
        scene.taken.discard(place)


async def prompt_all(scene: Scene, machine: Machine, session: str) -> None:
    """Prompt at once on all machines."""
    await asyncio.gather(*(prompt(scene, each, session) for each in scene.standing()))


async def revert_and_prompt(scene: Scene, machine: Machine, session: str) -> None:
    """Go back to before one of the last prompts, and go on from there."""
    place = (machine.name, session)
    if place in scene.taken:
        return
    scene.taken.add(place)
    try:
        reverted = await _revert(scene, machine, session)
        if not reverted:
            return
        await asyncio.sleep(scene.chance.choice((0.0, 0.0, 1.0, 3.0)))
        asked = await _prompt(scene, machine, session)
        is_certain = asked.is_answered and not scene.ledger.interruptions(asked)
        # Where somebody removed the very message meanwhile, opencode takes nothing else out.
        if is_certain and reverted[0] not in scene.ledger.removed.get(session, ()):
            scene.ledger.take_out(session, reverted)
    finally:
        scene.taken.discard(place)


async def rename(scene: Scene, machine: Machine, session: str) -> None:
    title = f"title {scene.chance.randrange(10_000)}"
    await machine.opencode.request("PATCH", f"/session/{session}", {"title": title})
    scene.tell("rename", machine.name, session, title)


async def edit(scene: Scene, machine: Machine, session: str) -> None:
    """Add a word to a text that stands."""
    messages = await _complete(machine, session)
    texts = [part for m in messages for part in m["parts"] if part["type"] == "text"]
    if texts:
        part = scene.chance.choice(texts)
        word = f" edited-{scene.chance.randrange(10_000)}"
        path = f"/session/{session}/message/{part['messageID']}/part/{part['id']}"
        await machine.opencode.request("PATCH", path, part | {"text": part["text"] + word})
        scene.tell("edit", machine.name, session, part["messageID"], word)


async def remove(scene: Scene, machine: Machine, session: str) -> None:
    """Remove one of the messages that are complete."""
    messages = await _complete(machine, session)
    if not messages:
        return
    chosen = scene.chance.choice(messages[-8:])
    name = chosen["info"]["id"]
    scene.ledger.excuse([chosen])
    await machine.opencode.request("DELETE", f"/session/{session}/message/{name}")
    scene.ledger.take_out(session, [name])
    scene.tell("remove", machine.name, session, name, repr(text_of(chosen)))


async def create(scene: Scene, machine: Machine, session: str) -> None:
    if len(scene.living()) < _MOST_SESSIONS:
        made = await machine.opencode.create_session(f"session {len(scene.ledger.sessions)}")
        scene.ledger.sessions.append(made)
        scene.tell("create", machine.name, made)


async def fork(scene: Scene, machine: Machine, session: str) -> None:
    if len(scene.living()) < _MOST_SESSIONS:
        made = await machine.opencode.request("POST", f"/session/{session}/fork", {})
        scene.ledger.sessions.append(made["id"])
        scene.tell("fork", machine.name, session, made["id"])


async def delete(scene: Scene, machine: Machine, session: str) -> None:
    if len(scene.living()) > _FEWEST_SESSIONS:
        scene.ledger.deleted.add(session)
        scene.tell("delete", machine.name, session)
        try:
            await machine.opencode.request("DELETE", f"/session/{session}")
        except OpencodeRefused:  # it has not come to this machine
            scene.ledger.deleted.discard(session)
            raise


async def attempt(scene: Scene, action: Action, machine: Machine, session: str) -> str:
    """Do something; return what went wrong without a reason."""
    name = getattr(action, "__name__", "")
    began = time.monotonic()
    try:
        await action(scene, machine, session)
    except OpencodeRefused as refused:
        scene.tell("refused", name, machine.name, session, refused)
        scene.ledger.done[f"refused: {name}"] += 1
        is_known = session in scene.ledger.deleted or refused.status in (400, 404, 409)
        return "" if is_known else f"{name} was refused: {refused}"
    except UNANSWERED as error:
        scene.tell("no answer", name, machine.name, session, repr(error))
        return "" if _was_killed(scene, machine, began) else f"{name} on {machine.name}: {error!r}"
    scene.ledger.done[name] += 1
    return ""


ACTIONS: dict[Action, int] = {
    prompt: 10,
    prompt_all: 3,
    revert_and_prompt: 2,
    rename: 2,
    edit: 3,
    remove: 2,
    create: 1,
    fork: 1,
    delete: 1,
}


async def _prompt(scene: Scene, machine: Machine, session: str) -> Prompt:
    token = f"q{len(scene.ledger.prompts):05d}q"
    text = scene.chance.choice(_KINDS).format(token)
    asked = Prompt(token, session, machine.name, text, time.monotonic())
    scene.ledger.prompts[token] = asked
    scene.tell("prompt", machine.name, session, text)
    try:
        answer = await machine.opencode.prompt(session, text, seconds=_ANSWER_SECONDS)
        asked.error = str(answer["info"].get("error", ""))
        asked.message = str(answer["info"].get("parentID", ""))
        asked.is_answered = not asked.error
    except OpencodeRefused as refused:
        asked.error = str(refused)
        asked.is_unknown = refused.status == 404  # the session has not come to this machine
    except UNANSWERED as error:
        asked.error = repr(error)
    asked.ended = time.monotonic()
    scene.tell("answered" if asked.is_answered else "failed", asked.name, asked.error)
    return asked


async def _revert(scene: Scene, machine: Machine, session: str) -> list[str]:
    """Return the messages that a revert takes out, none when it was not possible."""
    before = await machine.opencode.messages(session)
    asked = [m for m in before if m["info"]["role"] == "user"][-3:]
    if not asked:
        return []
    chosen = scene.chance.choice(asked)["info"]["id"]
    gone = _since(chosen, before)
    try:
        path = f"/session/{session}/revert"
        made = await machine.opencode.request("POST", path, {"messageID": chosen})
        scene.ledger.excuse(gone)
        after = await machine.opencode.messages(session)
        scene.ledger.excuse(_since(chosen, after))
    except UNANSWERED:
        scene.ledger.excuse(gone)
        raise
    if "revert" not in made:  # opencode ignores one to a message whose parts have not come
        return []
    names = [message["info"]["id"] for message in gone]
    scene.tell("revert", machine.name, session, chosen, names)
    return names


def _since(name: str, messages: list[Message]) -> list[Message]:
    """Return the messages from one on."""
    places = [place for place, m in enumerate(messages) if m["info"]["id"] == name]
    return messages[places[0] :] if places else []


async def _complete(machine: Machine, session: str) -> list[dict[str, Any]]:
    """Return the messages of complete turns."""
    messages = await machine.opencode.messages(session)
    ended = {
        m["info"]["parentID"]
        for m in messages
        if m["info"].get("finish") == "stop" and "completed" in m["info"]["time"]
    }
    return [m for m in messages if {m["info"]["id"], m["info"].get("parentID")} & ended]


def _was_killed(scene: Scene, machine: Machine, began: float) -> bool:
    return any(
        fault.kind == "opencode" and fault.machine == machine.name and fault.ended >= began
        for fault in scene.ledger.faults
    )

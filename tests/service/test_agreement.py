"""Everybody who follows a session has the same session: by loading, folding, or applying."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from sessiond.errors import SessiondError
from sessiond.model import NewMessage, Operation
from sessiond.sync.replica import Conversation
from sessiond.sync.view import SessionView
from tests.service.support import create, load, said, text, watching
from tests.store.support import Services, assert_contract

STEPS = 60


def course(seed: int) -> random.Random:
    """What decides the steps of a test, the same in every run."""
    return random.Random(seed)  # noqa: S311 - no secret hangs on it


async def act(core: Services, chance: random.Random, number: int) -> None:
    """One change, any of them; about half of the messages and parts it names exist."""
    message = f"m{chance.randrange(max(number // 2, 1))}"
    part = f"p{chance.randrange(4)}"
    match chance.randrange(9):
        case 0 | 1:
            await core.messages.append("ses_1", [said(f"{number}", f"m{number // 2}")])
        case 2:
            parts = [text(f"e{number}", id=part), {"id": "call", "type": "tool", "tool": "ls"}]
            await core.messages.append(
                "ses_1", [NewMessage(role="assistant", id=f"x{number}", parts=parts)]
            )
        case 3:
            await core.records.edit("ses_1", message, {"content": f"edited {number}"})
        case 4:
            await core.records.remove("ses_1", message)
        case 5 | 6:
            await core.records.put_part("ses_1", message, part, text(f"put {number}"))
        case 7:
            await core.records.remove_part("ses_1", message, part)
        case _:
            patch: dict[str, Any] = {f"k{chance.randrange(3)}": chance.choice([None, number, {}])}
            await core.documents.change("ses_1", "preferences", patch)


async def folded(core: Services) -> tuple[list[Any], str]:
    conversation = Conversation()
    entries = await core.entries("ses_1")
    for entry in entries:
        conversation.apply(entry.op, entry.id, entry.offset, entry.json)
    return [msgspec.json.decode(m) for m in conversation.messages()], str(entries[-1].position)


@pytest.mark.parametrize("seed", range(3))
async def test_after_every_change_the_fold_of_the_log_is_what_a_load_returns(
    core: Services, seed: int
) -> None:
    chance = course(seed)
    await create(core)
    done = 0
    for number in range(STEPS):
        try:
            await act(core, chance, number)
            done += 1
        except SessiondError:
            continue
        loaded = msgspec.json.decode(await core.sessions.load("ses_1"))
        messages, position = await folded(core)
        assert loaded["conversation"]["messages"] == messages
        assert loaded["conversation"]["total_messages"] == len(messages)
        assert loaded["position"] == position
    assert done > STEPS // 3
    snapshot = await core.store.snapshot("ses_1")
    assert snapshot.total_messages == len(messages)
    assert_contract(await core.entries("ses_1"))


@pytest.mark.parametrize("seed", range(3))
async def test_a_message_read_alone_is_the_message_of_the_conversation(
    core: Services, seed: int
) -> None:
    chance = course(seed)
    await create(core)
    for number in range(STEPS):
        try:
            await act(core, chance, number)
        except SessiondError:
            continue
    for message in (await load(core)).conversation.messages:
        assert (await core.messages.read("ses_1", message.id)).message == message


@pytest.mark.parametrize("seed", range(3))
async def test_a_view_that_applied_every_event_is_what_a_load_returns(
    core: Services, seed: int
) -> None:
    chance = course(seed)
    await create(core)
    view = SessionView(await load(core))
    async with watching(core) as subscriber:
        for number in range(STEPS):
            try:
                await act(core, chance, number)
            except SessiondError:
                continue
        end = await load(core)
        await subscriber.until(lambda: subscriber.events[-1:] != [])
        await subscriber.until(lambda: subscriber.events[-1].id == end.position)
    for event in subscriber.events:
        view.apply(msgspec.json.decode(event.data, type=Operation))
    assert view.position == end.position
    assert view.messages == end.conversation.messages
    assert view.preferences == end.preferences
    assert view.context == end.context
    assert view.metadata == end.metadata

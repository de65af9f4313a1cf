"""Messages and parts of the Python API."""

from __future__ import annotations

import asyncio
import json
from importlib.resources import files
from typing import Any

import msgspec
import pytest

from sessiond import Session, SessionManager
from sessiond.errors import AlreadyExists, VersionMismatch
from sessiond.model import NewMessage, Part
from sessiond.sync.documents import merge_patch
from tests.manager.programs import Connect, contents, log_of, state, text_part


async def test_a_group_stands_together_however_many_write(connect: Connect) -> None:
    session = await connect().create()

    async def write(name: str) -> None:
        mine = await connect().load(session.id)
        for number in range(5):
            await mine.add_messages(
                [NewMessage(role="tool", content=f"{name}-{number}-{place}") for place in range(4)]
            )

    await asyncio.gather(*[write(name) for name in "abc"])
    await session.refresh()
    found = contents(session)
    assert len(found) == 60
    for start in range(0, 60, 4):
        group = found[start].removesuffix("-0")
        assert found[start : start + 4] == [f"{group}-{place}" for place in range(4)]
    for name in "abc":
        mine = [content for content in found if content.startswith(name)]
        assert mine == [f"{name}-{number}-{place}" for number in range(5) for place in range(4)]


async def test_a_group_with_one_impossible_message_writes_none(session: Session) -> None:
    before = await log_of(session)
    group = [NewMessage(role="user", content="first"), NewMessage(role="user", id="m")]
    with pytest.raises(AlreadyExists):
        await session.add_messages(group)
    assert await log_of(session) == before
    assert contents(session) == ["said"]


async def test_the_same_message_twice_is_written_once_and_another_one_is_refused(
    session: Session,
) -> None:
    first = await session.add_message(id="once", role="user", content="the same")
    await asyncio.sleep(0.002)  # another millisecond
    second = await session.add_message(id="once", role="user", content="the same")
    assert second == first
    assert contents(session) == ["said", "the same"]
    with pytest.raises(AlreadyExists):
        await session.add_message(id="once", role="user", content="something else")


async def test_messages_given_twice_are_two_messages(session: Session) -> None:
    again = NewMessage(role="user", content="again")
    await session.add_messages([again])
    await session.add_messages([again])
    await session.refresh()
    assert contents(session) == ["said", "again", "again"]


async def test_content_and_tool_calls_follow_from_parts(session: Session) -> None:
    call: Part = {"id": "p2", "type": "tool", "tool": "grep", "state": {"input": {}}, "new": [1]}
    added = await session.add_message(
        role="assistant", parts=[text_part("p1", "one"), call, text_part("p3", "two")]
    )
    assert (added.content, added.tool_calls) == ("one\ntwo", ["grep"])
    await session.put_part(added.id, text_part("p1", "ONE", unknown={"deep": None}))
    await session.put_part(added.id, text_part("p4", "three"))
    await session.remove_part(added.id, "p3")
    mine = session.messages[-1]
    assert mine.content == "ONE\nthree"
    assert mine.parts == [
        text_part("p1", "ONE", unknown={"deep": None}),
        call,
        text_part("p4", "three"),
    ]
    before = state(session)
    await session.refresh()
    assert state(session)[1:] == before[1:]


async def test_a_conversation_of_opencode_is_held_without_loss(manager: SessionManager) -> None:
    recording = json.loads((files("sessiond") / "demo" / "conversation.json").read_bytes())
    metadata: dict[str, Any] = {}
    parts: dict[str, dict[str, Part]] = {}
    session = await manager.create(title=recording["title"])
    for step in recording["steps"]:
        match step["do"]:
            case "append":
                message = step["message"]
                metadata[message["id"]], parts[message["id"]] = message["metadata"], {}
                await session.add_message(**message)
            case "edit":
                name = step["message_id"]
                metadata[name] = merge_patch(metadata[name], step["metadata"])
                await session.edit_message(name, metadata=step["metadata"])
            case "put_part":
                parts[step["message_id"]][step["part"]["id"]] = step["part"]
                await session.put_part(step["message_id"], step["part"])
            case "live":
                await session.send_live(step["body"])
    for held in (session, await manager.load(session.id)):
        assert [message.id for message in held.messages] == list(metadata)
        for message in held.messages:
            assert message.metadata == metadata[message.id]
            assert message.parts == list(parts[message.id].values())
    assert "MOCK-REPLY[6]: B asks: which word?" in contents(session)[-1]
    assert session.messages[1].tool_calls == ["bash"]


async def test_changes_of_messages_are_seen_at_once_and_by_who_loads(
    manager: SessionManager, session: Session
) -> None:
    await session.add_message(id="plain", role="user", content="plain", metadata={"keep": 1})
    edited = await session.edit_message("plain", content="edited", metadata={"added": 2})
    assert edited == msgspec.structs.replace(edited, id="plain", version=session.position)
    assert contents(session) == ["said", "edited"]
    assert session.messages[1].metadata == {"keep": 1, "added": 2}
    assert (await manager.load(session.id)).messages == session.messages
    await session.remove_message("m")
    assert contents(session) == ["edited"]
    assert (await manager.load(session.id)).messages == session.messages


async def test_a_change_based_on_an_old_version_is_refused_and_on_the_newest_is_done(
    session: Session,
) -> None:
    await session.add_message(id="plain", role="user", content="plain")
    first = session.position
    second = (await session.edit_message("plain", content="second", expected=first)).version
    for attempt in (
        session.edit_message("plain", content="x", expected=first),
        session.remove_message("plain", expected=first),
    ):
        with pytest.raises(VersionMismatch) as refused:
            await attempt
        assert refused.value.code == "version-mismatch"
    assert contents(session)[-1] == "second"
    await session.remove_message("plain", expected=second)

    one = (await session.put_part("m", text_part("q", "one"))).version
    two = (await session.put_part("m", text_part("q", "two"), expected=one)).version
    for attempt in (
        session.put_part("m", text_part("q", "x"), expected=one),
        session.remove_part("m", "q", expected=one),
    ):
        with pytest.raises(VersionMismatch):
            await attempt
    assert contents(session) == ["said\ntwo"]
    await session.remove_part("m", "q", expected=two)
    assert contents(session) == ["said"]

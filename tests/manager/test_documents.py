"""Documents of the Python API: conflicts, and what they may hold."""

from __future__ import annotations

import pytest

from sessiond import Session, SessionManager
from sessiond.errors import InvalidInput, NotFound, VersionMismatch
from tests.manager.programs import Connect, following
from tests.opencode.waiting import until


async def test_what_two_saved_at_once_is_merged_and_the_losing_side_told(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)
    other.preferences.update(theme="theirs", editor="theirs")
    assert await other.save() == []
    session.preferences.update(theme="mine", language="en")
    (conflict,) = await session.save()
    merged = {"theme": "mine", "editor": "theirs", "language": "en"}
    assert session.preferences == merged
    assert (await connect().load(session.id)).preferences == merged
    assert (conflict.path, conflict.outcome) == (["theme"], "ours")
    assert (conflict.ours.value, conflict.theirs.value) == ("mine", "theirs")
    assert await session.conflicts() == [conflict]
    assert await session.save() == []


async def test_who_follows_a_session_saves_on_what_it_was_changed_on(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)
    session.context.active_files.append("mine")
    async with following(session) as events:
        other.context.active_files.append("theirs")
        await other.save()
        await until(lambda: events)
    assert await session.save() == []
    assert session.context.active_files == ["theirs", "mine"]


async def test_a_strict_save_is_refused_and_keeps_what_is_here(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)
    other.preferences["theme"] = "theirs"
    await other.save()
    session.preferences.update(theme="mine", language="en")
    for _ in range(2):
        with pytest.raises(VersionMismatch) as refused:
            await session.save(strict=True)
        assert refused.value.code == "version-mismatch"
    assert session.preferences == {"theme": "mine", "language": "en"}
    assert (await connect().load(session.id)).preferences == {"theme": "theirs"}

    await session.refresh()
    assert session.preferences == {"theme": "theirs"}
    session.preferences["language"] = "en"
    await session.save(strict=True)
    assert (await connect().load(session.id)).preferences == {"theme": "theirs", "language": "en"}


async def test_a_conflict_can_be_found_and_decided(
    connect: Connect, manager: SessionManager, session: Session
) -> None:
    other = await connect().load(session.id)
    for one, theme in ((other, "theirs"), (session, "mine")):
        one.preferences["theme"] = theme
        await one.save()
    (conflict,) = await session.conflicts(state="settled")
    assert conflict in await manager.conflicts()
    resolved = await session.resolve(conflict.number, "theirs")
    assert (resolved.state, session.preferences["theme"]) == ("resolved", "theirs")
    resolved = await session.resolve(conflict.number, value="both")
    assert resolved.resolution
    assert (resolved.resolution.take, session.preferences["theme"]) == ("value", "both")
    assert await session.conflicts(state="open") == []
    with pytest.raises(InvalidInput):
        await session.resolve(conflict.number)
    with pytest.raises(NotFound):
        await session.resolve("999", "ours")
    with pytest.raises(InvalidInput):
        await session.resolve("../1", "ours")


async def test_edits_of_one_message_merge(connect: Connect, session: Session) -> None:
    message = await session.add_message(role="user", content="one\ntwo")
    other = await connect().load(session.id)
    base = (await session.edit_message(message.id, content="one\ntwo\nthree")).version
    await other.edit_message(message.id, base=base, content="ONE\ntwo\nthree")
    written = await session.edit_message(message.id, base=base, content="one\ntwo\nTHREE")
    assert not written.conflicts
    assert session.messages[-1].content == "ONE\ntwo\nTHREE"


async def test_what_others_wrote_can_be_changed_in_place_and_saved(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)
    other.context.state["findings"] = []
    other.preferences["editor"] = {"tabs": 2}
    await other.save()
    await session.add_message(role="user", content="reads the log")
    assert session.context.state == {"findings": []}
    session.context.state["findings"].append("mine")
    session.preferences["editor"]["tabs"] = 4
    await session.save()
    again = await connect().load(session.id)
    assert again.context.state == {"findings": ["mine"]}
    assert again.preferences["editor"] == {"tabs": 4}


async def test_fields_of_documents_can_be_removed_and_have_any_value(
    manager: SessionManager, session: Session
) -> None:
    odd = {"none": None, "list": [1, "a", {"b": None}], "number": 1.5, "é ü": "☃", "": "empty"}
    session.preferences.clear()
    session.preferences.update(odd)
    session.context.state = odd
    await session.save()
    again = await manager.load(session.id)
    assert again.preferences == odd
    assert again.context.state == odd

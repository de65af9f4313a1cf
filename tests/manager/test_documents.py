"""Documents of the Python API: conflicts, and what they may hold."""

from __future__ import annotations

import pytest

from sessiond import Session, SessionManager
from sessiond.errors import VersionMismatch
from tests.manager.programs import Connect, following
from tests.opencode.waiting import until


async def test_a_conflict_keeps_what_is_here_and_refresh_resolves_it(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)
    other.preferences["theme"] = "theirs"
    await other.save()
    session.preferences["theme"] = "mine"
    session.preferences["language"] = "en"
    with pytest.raises(VersionMismatch) as refused:
        await session.save()
    assert refused.value.code == "version-mismatch"
    assert session.preferences == {"theme": "mine", "language": "en"}
    with pytest.raises(VersionMismatch):
        await session.save()
    assert (await connect().load(session.id)).preferences == {"theme": "theirs"}

    await session.refresh()
    assert session.preferences == {"theme": "theirs"}
    session.preferences["language"] = "en"
    await session.save()
    assert (await connect().load(session.id)).preferences == {"theme": "theirs", "language": "en"}


async def test_a_conflict_is_met_by_who_follows_the_session_too(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)
    session.preferences["theme"] = "mine"
    async with following(session) as events:
        other.preferences["theme"] = "theirs"
        await other.save()
        await until(lambda: events)
    with pytest.raises(VersionMismatch):
        await session.save()


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

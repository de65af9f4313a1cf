"""Answers that get lost or come late: what was written is written once, and nothing is hidden."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from sessiond import Session, SessionManager
from sessiond.errors import InvalidInput, SessionDeleted, StoreUnavailable
from tests.manager.programs import Connect, following, forgetting, log_of, slow, text_part
from tests.opencode.waiting import until

WRITES: dict[str, Callable[[Session], Awaitable[object]]] = {
    "append": lambda session: session.add_message(role="user", content="new"),
    "edit": lambda session: session.edit_message("m", role="tool"),
    "remove": lambda session: session.remove_message("m"),
    "put_part": lambda session: session.put_part("m", text_part("q", "new")),
    "remove_part": lambda session: session.remove_part("m", "p"),
}


@pytest.mark.parametrize("call", WRITES)
async def test_a_write_whose_answer_was_lost_is_done_once(
    manager: SessionManager, session: Session, call: str
) -> None:
    before = await log_of(session)
    mine = await forgetting(manager, call).load(session.id)
    answer = await WRITES[call](mine)
    after = await log_of(session)
    assert len(after) == len(before) + 1
    assert mine.messages == (await manager.load(session.id)).messages
    if call != "append":
        assert cast("Any", answer).version == after[-1].position, "as without the loss"


async def test_a_creation_whose_answer_was_lost_is_done_once(manager: SessionManager) -> None:
    mine = f"user-{secrets.token_hex(4)}"
    created = await forgetting(manager, "create").create(user_id=mine)
    (found,) = (await manager.list(user_id=mine)).sessions
    assert found.metadata.session_id == created.id


async def test_a_deletion_whose_answer_was_lost_is_done_once(
    manager: SessionManager, session: Session
) -> None:
    await forgetting(manager, "delete").delete(session.id)
    with pytest.raises(SessionDeleted):
        await manager.load(session.id)


async def test_a_save_whose_answer_was_lost_is_done_once(
    manager: SessionManager, session: Session
) -> None:
    mine = await forgetting(manager, "change_document").load(session.id)
    before = await log_of(session)
    mine.preferences["theme"] = "light"
    await mine.save()
    assert len(await log_of(session)) == len(before) + 1
    await mine.save()
    assert len(await log_of(session)) == len(before) + 1


async def test_a_save_whose_answer_was_lost_does_not_hide_what_others_wrote_since(
    connect: Connect, session: Session
) -> None:
    async def meanwhile() -> None:
        other = await connect().load(session.id)
        other.preferences["language"] = "theirs"
        await other.save()

    forgetful = forgetting(connect(), "change_document", meanwhile)
    mine = await forgetful.load(session.id)
    mine.preferences["theme"] = "light"
    await mine.save()
    mine.preferences["theme"] = "lighter"
    assert await mine.save() == []
    after = (await connect().load(session.id)).preferences
    assert after == {"theme": "lighter", "language": "theirs"}


async def test_what_was_changed_during_a_save_is_sent_by_the_next(
    connect: Connect, session: Session
) -> None:
    async def meanwhile() -> None:
        mine.preferences["theme"] = "changed meanwhile"

    mine = await slow(connect(), "change_document", meanwhile).load(session.id)
    mine.preferences["theme"] = "light"
    await mine.save()
    await mine.save()
    assert (await connect().load(session.id)).preferences == {"theme": "changed meanwhile"}


async def test_what_was_changed_during_a_save_and_by_others_before_it_is_told(
    connect: Connect, session: Session
) -> None:
    async def meanwhile() -> None:
        mine.preferences["theme"] = "mine"

    mine = await slow(connect(), "change_document", meanwhile).load(session.id)
    other = await connect().load(session.id)
    other.preferences["theme"] = "theirs"
    await other.save()
    mine.preferences["language"] = "en"
    (told,) = await mine.save()
    assert (told.number, told.state, told.outcome) == ("", "open", "ours")
    assert (told.session_id, told.document, told.path) == (session.id, "preferences", ["theme"])
    assert (told.base, told.ours.value, told.theirs.value) == ("dark", "mine", "theirs")
    assert told.theirs.version == (await log_of(session))[-1].position
    assert await session.conflicts() == [], "it is not in Redis"
    assert (await connect().load(session.id)).preferences["theme"] == "theirs"
    assert await mine.save() == []
    assert (await connect().load(session.id)).preferences == {"theme": "mine", "language": "en"}


async def test_what_a_save_found_before_it_failed_is_told_by_the_next(
    connect: Connect, session: Session
) -> None:
    async def meanwhile() -> None:
        mine.context.working_directory = "mine"

    mine = await slow(connect(), "change_document", meanwhile).load(session.id)
    other = await connect().load(session.id)
    other.context.working_directory = "theirs"
    await other.save()
    mine.context.active_files.append("a")
    mine.preferences["_reserved"] = "refused"
    with pytest.raises(InvalidInput):
        await mine.save()
    del mine.preferences["_reserved"]
    (told,) = await mine.save()
    assert (told.number, told.path) == ("", ["working_directory"])
    assert await mine.save() == []


async def test_a_decision_is_sent_again_with_the_same_key(
    connect: Connect, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    manager = connect()
    resolve = manager._backend.resolve

    async def noting(*given: Any, key: str = "", **more: Any) -> Any:
        keys.append(key)
        answer = await resolve(*given, key=key, **more)
        if len(keys) == 1:
            raise StoreUnavailable("the answer was lost")
        return answer

    monkeypatch.setattr(manager._backend, "resolve", noting)
    other = await connect().load(session.id)
    for one, theme in ((other, "theirs"), (session, "mine")):
        one.preferences["theme"] = theme
        conflicts = await one.save()
    mine = await manager.load(session.id)
    await mine.resolve(conflicts[0].number, "theirs")
    assert mine.preferences["theme"] == "theirs"
    await mine.resolve(conflicts[0].number, "ours")
    first, again, another = keys
    assert first
    assert first == again != another


async def test_what_others_wrote_during_a_save_is_not_lost_to_who_follows(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)

    async def write(**preferences: str) -> None:
        await other.refresh()
        other.preferences.update(preferences)
        await other.save()
        end = await other._backend.position(session.id)
        await until(lambda: mine.position == end)

    async def meanwhile() -> None:
        await write(language="theirs")

    mine = await slow(connect(), "change_document", meanwhile).load(session.id)
    async with following(mine):
        mine.preferences["theme"] = "mine"
        await mine.save()
        await write(editor="theirs")
        mine.preferences["theme"] = "mine again"
        assert await mine.save() == []
    written = (await connect().load(session.id)).preferences
    assert written == {"theme": "mine again", "language": "theirs", "editor": "theirs"}

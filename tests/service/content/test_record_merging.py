"""Messages and parts that two changed at once."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from sessiond.errors import NotFound, SessionDeleted, TooLarge, VersionMismatch
from sessiond.model import ConflictRecord, WrittenRecord
from sessiond.service.content import deletion
from sessiond.service.writing import Request
from sessiond.store import conflicts as conflict_store
from sessiond.store.outcome import Committed
from tests.service.support import create, load, said, text
from tests.store.support import Services, StartServices

pytestmark = pytest.mark.usefixtures("session")
LINES = "one\ntwo\nthree"


@pytest.fixture
async def session(core: Services) -> str:
    return await create(core)


@pytest.fixture
async def base(core: Services, session: str) -> str:
    """The version of message m1, whose text has three lines."""
    return (await core.messages.append(session, [said(LINES, "m1")])).records[0].version


async def edit(core: Services, content: str, base: str = "", **more: Any) -> WrittenRecord:
    request = Request(base=base, **more)
    return await core.records.edit("ses_1", "m1", {"content": content}, request)


async def put(core: Services, part: dict[str, Any], base: str = "") -> WrittenRecord:
    return await core.records.put_part("ses_1", "m1", part["id"], part, Request(base=base))


async def contents(core: Services) -> list[str]:
    return [message.content for message in (await load(core)).conversation.messages]


async def conflicts(core: Services) -> list[ConflictRecord]:
    return await core.conflicts.of_session("ses_1")


async def test_edits_of_different_lines_are_both_there(core: Services, base: str) -> None:
    await edit(core, "ONE\ntwo\nthree", base)
    merged = await edit(core, "one\ntwo\nTHREE", base)
    assert await contents(core) == ["ONE\ntwo\nTHREE"]
    assert merged.conflicts is UNSET
    assert merged.version == (await core.messages.read("ses_1", "m1")).version


async def test_edits_of_the_same_line_leave_a_conflict(core: Services, base: str) -> None:
    await edit(core, "theirs\ntwo\nthree", base, client="ana")
    merged = await edit(core, "ours\ntwo\nTHREE", base, client="ben")
    (conflict,) = await conflicts(core)
    assert await contents(core) == ["ours\ntwo\nTHREE"]
    assert merged.conflicts == [conflict.number]
    assert (conflict.document, conflict.id, conflict.path) == ("message", "m1", ["content"])
    assert conflict.theirs.value == "theirs\ntwo\nthree"
    assert (conflict.base, conflict.base_version) == (LINES, base)


async def test_an_edit_in_time_needs_no_merge(core: Services, base: str) -> None:
    first = await edit(core, "one", base)
    await edit(core, "two", first.version)
    assert await contents(core) == ["two"]
    with pytest.raises(VersionMismatch):
        await edit(core, "three", expected=base)
    assert await conflicts(core) == []


async def test_an_edit_of_a_removed_message_is_refused_and_kept(core: Services, base: str) -> None:
    removed = await core.records.remove("ses_1", "m1")
    with pytest.raises(NotFound, match="kept as conflict 4"):
        await edit(core, "too late", base)
    (conflict,) = await conflicts(core)
    assert (conflict.strategy, conflict.outcome) == ("removal", "theirs")
    assert conflict.ours.value["content"] == "too late"
    assert (conflict.theirs.value, conflict.theirs.version) == (
        UNSET,
        removed.version.partition(":")[2],
    )
    assert await contents(core) == []


async def test_a_removal_of_what_was_edited_meanwhile_keeps_the_edit(
    core: Services, base: str
) -> None:
    await edit(core, "edited", base)
    removed = await core.records.remove("ses_1", "m1", Request(base=base))
    (conflict,) = await conflicts(core)
    assert removed.conflicts == [conflict.number]
    assert (conflict.strategy, conflict.outcome) == ("removal", "ours")
    assert conflict.theirs.value["content"] == "edited"
    assert conflict.base["content"] == LINES
    assert await contents(core) == []


async def test_an_edit_that_a_removal_overtakes_is_kept(
    core: Services, start: StartServices, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, commit = await start(instance="there"), core.store.commit

    async def overtaken(*arguments: Any) -> Committed:
        monkeypatch.undo()
        await there.records.remove("ses_1", "m1")
        return await commit(*arguments)

    monkeypatch.setattr(core.store, "commit", overtaken)
    with pytest.raises(NotFound, match="kept as conflict"):
        await edit(core, "overtaken", base)
    (conflict,) = await conflicts(core)
    assert conflict.ours.value["content"] == "overtaken"


async def test_a_removal_of_what_nobody_changed_is_no_conflict(core: Services, base: str) -> None:
    await core.records.remove("ses_1", "m1", Request(base=base))
    assert await conflicts(core) == []


@pytest.mark.usefixtures("base")
async def test_a_part_that_two_wrote_merges_line_by_line(core: Services) -> None:
    first = await put(core, text(LINES, id="p1"))
    await put(core, text("ONE\ntwo\nthree", id="p1"), first.version)
    merged = await put(core, text("one\ntwo\nTHREE", id="p1", tag=1), first.version)
    parts = (await core.messages.read("ses_1", "m1")).message.parts
    assert parts
    assert parts[-1] == text("ONE\ntwo\nTHREE", id="p1", tag=1)
    assert merged.conflicts is UNSET


@pytest.mark.usefixtures("base")
async def test_a_new_part_that_two_wrote_under_one_id_leaves_a_conflict(core: Services) -> None:
    await put(core, text("theirs", id="p1"), "0")
    await put(core, text("ours", id="p1"), "0")
    (conflict,) = await conflicts(core)
    assert (conflict.document, conflict.id, conflict.path) == ("part", "m1/p1", ["text"])
    assert {conflict.ours.value, conflict.theirs.value} == {"ours", "theirs"}


async def test_a_part_that_came_inside_its_message_merges_too(core: Services) -> None:
    given = said("", "m2", parts=[text(LINES, id="p1")])
    given.content = UNSET
    base = (await core.messages.append("ses_1", [given])).records[0].version
    for changed in ("ONE\ntwo\nthree", "one\ntwo\nTHREE"):
        part = text(changed, id="p1")
        await core.records.put_part("ses_1", "m2", "p1", part, Request(base=base))
    assert (await core.messages.read("ses_1", "m2")).message.content == "ONE\ntwo\nTHREE"


@pytest.mark.usefixtures("base")
async def test_a_part_against_its_removal_is_refused_and_kept(core: Services) -> None:
    first = await put(core, text("a", id="p1"))
    await core.records.remove_part("ses_1", "m1", "p1")
    with pytest.raises(NotFound, match="kept as conflict"):
        await put(core, text("late", id="p1"), first.version)
    (conflict,) = await conflicts(core)
    assert (conflict.id, conflict.ours.value["text"]) == ("m1/p1", "late")


@pytest.mark.usefixtures("base")
async def test_a_part_of_a_message_that_was_removed_is_refused_and_kept(core: Services) -> None:
    first = await put(core, text("a", id="p1"))
    await core.records.remove("ses_1", "m1")
    with pytest.raises(NotFound, match="kept as conflict"):
        await put(core, text("late", id="p1"), first.version)
    (conflict,) = await conflicts(core)
    assert (conflict.id, conflict.ours.value["text"]) == ("m1/p1", "late")


@pytest.mark.usefixtures("base")
async def test_a_removal_of_a_part_that_changed_meanwhile_keeps_it(core: Services) -> None:
    first = await put(core, text("a", id="p1"))
    await put(core, text("b", id="p1"))
    request = Request(base=first.version)
    removed = await core.records.remove_part("ses_1", "m1", "p1", request)
    (conflict,) = await conflicts(core)
    assert removed.conflicts == [conflict.number]
    assert conflict.theirs.value["text"] == "b"


async def test_a_base_that_nobody_knows_leaves_what_differs_to_the_last_writer(
    core: Services, base: str
) -> None:
    await edit(core, "theirs", base)
    await edit(core, "ours", "0123456789abcd:2")
    (conflict,) = await conflicts(core)
    assert (conflict.base_version, conflict.strategy) == ("", "last-writer-wins")
    assert await contents(core) == ["ours"]


async def test_what_comes_for_a_deleted_session_is_kept_with_its_deletion(core: Services) -> None:
    await core.messages.append("ses_1", [said("a", "m1")])
    await core.sessions.delete("ses_1", Request(client="ana"))
    with pytest.raises(SessionDeleted, match="kept as conflict 3, 3-1"):
        await core.messages.append("ses_1", [said("b", "m2"), said("c", "m3")])
    with pytest.raises(SessionDeleted, match="kept as conflict 3-2"):
        await edit(core, "late")
    with pytest.raises(SessionDeleted, match="kept as conflict 3-3"):
        await put(core, text("late", id="p1"))
    kept = await conflicts(core)
    assert [each.id for each in kept] == ["m2", "m3", "m1", "m1/p1"]
    assert kept[0].ours.value["content"] == "b"
    assert {each.theirs.version for each in kept} == {"3"}
    assert all(each.theirs.origin.startswith("ana@") for each in kept)
    assert kept == await core.conflicts.of_all()


async def test_what_comes_again_for_a_removed_record_is_kept_once(
    core: Services, base: str
) -> None:
    await core.records.remove("ses_1", "m1")
    for _ in range(2):
        with pytest.raises(NotFound, match="kept as conflict 4"):
            await edit(core, "too late", base, key="once")
    assert len(await conflicts(core)) == 1


async def test_what_comes_again_for_a_deleted_session_is_kept_once(core: Services) -> None:
    await core.sessions.delete("ses_1")
    for _ in range(2):
        with pytest.raises(SessionDeleted, match="kept as conflict 2, 2-1"):
            await core.messages.append(
                "ses_1", [said("a", "m1"), said("b", "m2")], Request(key="once")
            )
    assert [each.id for each in await conflicts(core)] == ["m1", "m2"]


async def test_no_more_is_kept_for_a_deleted_session_than_may_be(
    core: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conflict_store, "_MOST_KEPT", 2)
    await core.sessions.delete("ses_1")
    for number in range(4):
        with pytest.raises(SessionDeleted) as refused:
            await core.messages.append("ses_1", [said("late", f"m{number}")])
        assert ("kept as conflict" in refused.value.hint) == (number < 2)
    assert len(await conflicts(core)) == 2


async def test_a_deletion_that_had_not_seen_more_than_can_be_kept_is_refused(
    core: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "_MOST_UNSEEN", 3)
    base = (await core.messages.append("ses_1", [said("seen", "m0")])).position
    await core.messages.append("ses_1", [said("x", f"m{number}") for number in range(1, 5)])
    late = Request(base=base, client="ben")
    with pytest.raises(TooLarge, match="more was written"):
        await core.sessions.delete("ses_1", late)
    await core.sessions.delete("ses_1", Request(client="ben"))


async def test_what_a_deletion_had_not_seen_is_kept_as_it_was_last(core: Services) -> None:
    base = (await core.messages.append("ses_1", [said("seen", "m1")])).position
    ana = Request(client="ana")
    await core.messages.append("ses_1", [said("first", "m2"), said("gone", "m3")], ana)
    await core.records.edit("ses_1", "m2", {"content": "corrected"}, ana)
    await core.records.put_part("ses_1", "m2", "p1", text("a part"), ana)
    await core.records.put_part("ses_1", "m3", "p1", text("gone, too"), ana)
    await core.records.put_part("ses_1", "m1", "p2", text("gone again"), ana)
    await core.records.remove_part("ses_1", "m1", "p2", ana)
    await core.records.remove("ses_1", "m3", ana)
    await core.documents.change("ses_1", "context", {"working_directory": "/a"}, ana)
    await core.documents.change("ses_1", "context", {"active_files": ["a"]}, ana)
    await core.messages.append("ses_1", [said("my own", "m4")], Request(client="ben"))
    await core.sessions.delete("ses_1", Request(base=base, client="ben"))
    kept = {(each.document, each.id): each for each in await conflicts(core)}
    assert kept.keys() == {("message", "m2"), ("part", "m2/p1"), ("context", "")}
    assert {(each.strategy, each.outcome) for each in kept.values()} == {("deletion", "ours")}
    assert kept["message", "m2"].theirs.value["content"] == "corrected"
    assert kept["part", "m2/p1"].theirs.value["text"] == "a part"
    assert kept["context", ""].theirs.value == {"working_directory": "/a", "active_files": ["a"]}
    assert kept["message", "m2"].theirs.origin.startswith("ana@")

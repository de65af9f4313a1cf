"""Messages: appended as groups, paged, edited and removed by version, made of parts."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import UNSET

from sessiond.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    SessionDeleted,
    StoreWentBack,
    TooLarge,
    VersionMismatch,
)
from sessiond.model import Message, NewMessage
from sessiond.service.writing import Request
from sessiond.store.sessions import RecordVersion
from sessiond.sync.entry import Entry
from tests.service.support import create, load, page, said, text
from tests.store.support import Services, StartServices, appending, contents

NOW = datetime(2026, 1, 13, 10, 30, tzinfo=UTC)
KEY = Request(key="k1")
STALE = Request(expected="00000000000001:2")

pytestmark = pytest.mark.usefixtures("session")


@pytest.fixture
async def session(core: Services) -> str:
    return await create(core)


async def append(core: Services, *given: NewMessage, key: str = "") -> list[str]:
    written = await core.messages.append("ses_1", list(given), Request(key=key))
    assert written.position == written.records[-1].version
    return [record.version for record in written.records]


async def contents_of(core: Services) -> list[str]:
    return [message.content for message in (await load(core)).conversation.messages]


async def test_a_message_is_completed_appended_and_found(core: Services) -> None:
    (version,) = await append(core, said("hi", metadata={"n": 1}))
    (message,) = (await load(core)).conversation.messages
    assert message == Message(
        id=message.id, timestamp=NOW, role="user", content="hi", metadata={"n": 1}
    )
    found = await core.messages.read("ses_1", message.id)
    assert (found.message, found.version) == (message, version)


async def test_a_group_is_written_whole_or_not_at_all(core: Services) -> None:
    versions = await append(core, said("a"), said("b"), said("c", "m3"))
    assert [version.partition(":")[2] for version in versions] == ["2", "3", "4"]
    before = await contents(core)
    with pytest.raises(AlreadyExists):
        await append(core, said("d"), said("other", "m3"))
    with pytest.raises(InvalidInput):
        await append(core, said("d", "m4"), said("e", "m4"))
    with pytest.raises(InvalidInput):
        await append(core, said("d"), NewMessage(role="user", parts=[{"id": "p"}]))
    assert await contents(core) == before


async def test_groups_have_a_limit_and_at_least_one_message(core: Services) -> None:
    await append(core, *[said("x") for _ in range(64)])
    with pytest.raises(TooLarge):
        await append(core, *[said("x") for _ in range(65)])
    with pytest.raises(InvalidInput):
        await append(core)


@pytest.mark.parametrize("later_ms", [0, 90_000])
async def test_the_same_append_again_is_found_by_its_ids_or_its_key(
    core: Services, later_ms: int
) -> None:
    with_ids = [said("a", "m1"), said("b", "m2", timestamp=NOW)]
    first = await append(core, *with_ids), await append(core, said("c"), said("d"), key="k1")
    core.clock.ms += later_ms
    again = [
        await core.messages.append("ses_1", with_ids),
        await core.messages.append("ses_1", [said("c"), said("d")], KEY),
    ]
    assert [written.duplicate for written in again] == [True, True]
    assert tuple([r.version for r in written.records] for written in again) == first
    assert await contents_of(core) == ["a", "b", "c", "d"]


async def test_an_append_is_found_again_after_its_message_was_edited_or_removed(
    core: Services,
) -> None:
    await append(core, said("a", "m1"))
    await append(core, said("b", "m2"))
    await core.records.edit("ses_1", "m1", {"content": "A"})
    await core.records.remove("ses_1", "m2")
    for given in (said("a", "m1"), said("b", "m2")):
        assert (await core.messages.append("ses_1", [given])).duplicate
    assert await contents_of(core) == ["A"]


async def test_an_id_or_key_stands_for_one_message_for_ever(core: Services) -> None:
    await append(core, said("a", "m1"))
    await append(core, said("b"), said("c"), key="k1")
    for group, key in (
        ([said("other", "m1")], ""),
        ([NewMessage(role="tool", content="a", id="m1")], ""),
        ([said("other"), said("c")], "k1"),
        ([said("b"), said("c"), said("d")], "k1"),
    ):
        with pytest.raises(AlreadyExists):
            await append(core, *group, key=key)
    assert await contents_of(core) == ["a", "b", "c"]


async def test_the_refusal_names_the_id_that_is_taken(core: Services) -> None:
    await append(core, said("a", "taken"))
    with pytest.raises(AlreadyExists, match="'taken'"):
        await append(core, said("b", "fresh"), said("other", "taken"))


async def test_pages_go_through_the_conversation_with_the_log_as_it_is(core: Services) -> None:
    for number in range(10):
        await append(core, said(f"{number}", f"m{number}"))
        await core.documents.change("ses_1", "preferences", {"n": number})
    found: list[str] = []
    after: int | None = 0
    while after is not None:
        part = await page(core, after, 3)
        assert len(part.messages) <= 3
        found += [message.content for message in part.messages]
        assert part.position == str(await core.sessions.position("ses_1"))
        after = part.next
    assert found == [f"{number}" for number in range(10)]


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 100])
async def test_pages_are_the_same_whether_the_log_was_amended_or_not(
    core: Services, limit: int
) -> None:
    """Without amendments bodies pass from the log as they are; with any, the log is folded."""
    parts = [text("x", id="p1"), {"id": "p2", "type": "tool", "tool": "ls", "odd": [{}, None]}]
    await append(core, said("a", "m1"), NewMessage(role="assistant", id="m2", parts=parts))
    await append(core, *[said(f"{n}", f"n{n}", metadata={"é": [n]}) for n in range(5)])
    offsets = range(10)
    fast = [await core.messages.page("ses_1", after, limit) for after in offsets]
    loaded = (await load(core)).conversation

    await append(core, said("gone", "gone"))
    await core.records.remove("ses_1", "gone")
    slow = [await core.messages.page("ses_1", after, limit) for after in offsets]
    assert [_without_position(p) for p in slow] == [_without_position(p) for p in fast]
    assert (await load(core)).conversation == loaded


def _without_position(encoded: bytes) -> tuple[bytes, bytes]:
    head, _, rest = encoded.rpartition(b'"position":')
    return head, rest.partition(b",")[2]


async def test_a_page_after_the_end_is_empty(core: Services) -> None:
    await append(core, said("a"))
    for after in (2, 3, 10**15 - 1):
        part = await page(core, after)
        assert (part.messages, part.next) == ([], None)
        assert part.position == str(await core.sessions.position("ses_1"))


async def test_an_edit_changes_the_fields_it_names(core: Services) -> None:
    await append(core, said("a", "m1", metadata={"keep": 1, "drop": 2, "deep": {"x": 1}}))
    edited = await core.records.edit(
        "ses_1",
        "m1",
        {"content": "A", "role": "system", "metadata": {"drop": None, "deep": {"y": 2}}},
    )
    found = await core.messages.read("ses_1", "m1")
    assert found.message == Message(
        id="m1",
        timestamp=NOW,
        role="system",
        content="A",
        metadata={"keep": 1, "deep": {"x": 1, "y": 2}},
    )
    assert found.version == edited.version


@pytest.mark.parametrize(
    "patch",
    [
        None,
        [],
        "x",
        {"id": "m2"},
        {"timestamp": "2026-01-01T00:00:00Z"},
        {"parts": []},
        {"unknown": 1},
        {"role": "king"},
        {"role": None},
        {"content": 1},
        {"metadata": []},
        {"tool_calls": {}},
    ],
)
async def test_an_edit_that_leaves_no_message_is_refused(core: Services, patch: Any) -> None:
    await append(core, said("a", "m1"))
    before = await contents(core)
    with pytest.raises(InvalidInput):
        await core.records.edit("ses_1", "m1", patch)
    assert await contents(core) == before


async def test_an_edit_expects_the_version_it_is_based_on(core: Services) -> None:
    (first,) = await append(core, said("a", "m1"))
    second = await core.records.edit("ses_1", "m1", {"content": "b"}, Request(expected=first))
    for stale in (first, first.partition(":")[2], STALE.expected):
        with pytest.raises(VersionMismatch) as refused:
            await core.records.edit("ses_1", "m1", {"content": "c"}, Request(expected=stale))
        assert second.version in refused.value.detail
    offset = second.version.partition(":")[2]
    await core.records.edit("ses_1", "m1", {"content": "c"}, Request(expected=offset))
    assert await contents_of(core) == ["c"]


async def test_edits_without_a_version_are_all_applied_however_many_race(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    await append(core, said("a", "m1"))
    await asyncio.gather(
        *(
            (core, there)[n % 2].records.edit("ses_1", "m1", {"metadata": {f"k{n}": n}})
            for n in range(12)
        )
    )
    found = await core.messages.read("ses_1", "m1")
    assert found.message.metadata == {f"k{n}": n for n in range(12)}


async def test_of_racing_edits_of_one_version_one_is_applied(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    (first,) = await append(core, said("a", "m1"))
    outcomes = await asyncio.gather(
        *(
            (core, there)[n % 2].records.edit(
                "ses_1", "m1", {"content": f"{n}"}, Request(expected=first)
            )
            for n in range(6)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, VersionMismatch) for outcome in outcomes) == 5


async def test_a_removed_message_is_gone_from_everywhere_but_the_log(core: Services) -> None:
    await append(core, said("a", "m1"), said("b", "m2"))
    await core.records.put_part("ses_1", "m1", "p1", text("x"))
    await core.records.remove("ses_1", "m1")
    assert [message.id for message in (await page(core)).messages] == ["m2"]
    session = await load(core)
    assert session.conversation.total_messages == len(session.conversation.messages) == 1
    for change in (
        core.messages.read("ses_1", "m1"),
        core.records.remove("ses_1", "m1"),
        core.records.edit("ses_1", "m1", {"content": "x"}),
        core.records.put_part("ses_1", "m1", "p1", text("x")),
        core.records.remove_part("ses_1", "m1", "p1"),
    ):
        with pytest.raises(NotFound):
            await change
    assert [entry.op for entry in await core.entries("ses_1")][-1] == "message.remove"


async def test_a_part_is_put_replaced_and_removed(core: Services) -> None:
    await append(core, NewMessage(role="assistant", id="m1", parts=[text("a", id="p1")]))
    put = core.records.put_part
    await put("ses_1", "m1", "p2", {"type": "tool", "tool": "ls", "state": {"x": []}})
    await put("ses_1", "m1", "p1", text("A"))
    await put("ses_1", "m1", "p3", text("z", id="p3"))
    message = (await core.messages.read("ses_1", "m1")).message
    assert message.parts == [
        text("A", id="p1"),
        {"id": "p2", "type": "tool", "tool": "ls", "state": {"x": []}},
        text("z", id="p3"),
    ]
    assert (message.content, message.tool_calls) == ("A\nz", ["ls"])
    for name in ("p1", "p3"):
        await core.records.remove_part("ses_1", "m1", name)
    (message,) = (await load(core)).conversation.messages
    assert (message.content, message.tool_calls) == ("", ["ls"])
    assert [part["id"] for part in message.parts or []] == ["p2"]


async def test_a_part_needs_a_type_and_the_id_of_its_address(core: Services) -> None:
    await append(core, said("a", "m1"))
    for part in ({}, {"type": ""}, text("x", id="other"), {"type": "text", "id": 5}):
        with pytest.raises(InvalidInput):
            await core.records.put_part("ses_1", "m1", "p1", part)
    assert (await core.messages.read("ses_1", "m1")).message.parts is UNSET


async def test_putting_a_part_leaves_what_the_caller_gave_as_it_was(core: Services) -> None:
    await append(core, said("a", "m1"))
    part = text("x")
    await core.records.put_part("ses_1", "m1", "p1", part)
    assert part == text("x")
    await core.records.put_part("ses_1", "m1", "p2", part)


async def test_a_part_that_is_not_there_cannot_be_removed_and_not_twice(core: Services) -> None:
    await append(core, NewMessage(role="user", id="m1", parts=[text("a", id="p1")]))
    with pytest.raises(NotFound):
        await core.records.remove_part("ses_1", "m1", "p9")
    await core.records.remove_part("ses_1", "m1", "p1")
    with pytest.raises(NotFound):
        await core.records.remove_part("ses_1", "m1", "p1")
    with pytest.raises(NotFound):
        await core.records.put_part("ses_1", "m1", "p1", text("again"))


async def test_parts_expect_the_version_they_are_based_on(core: Services) -> None:
    await append(core, said("a", "m1"))
    first = await core.records.put_part("ses_1", "m1", "p1", text("x"))
    based = Request(expected=first.version)
    await core.records.put_part("ses_1", "m1", "p1", text("y"), based)
    for change in (
        core.records.put_part("ses_1", "m1", "p1", text("z"), based),
        core.records.remove_part("ses_1", "m1", "p1", based),
    ):
        with pytest.raises(VersionMismatch):
            await change
    assert await contents_of(core) == ["a\ny"]


async def test_a_version_nobody_gave_is_refused_for_every_kind_of_part(core: Services) -> None:
    embedded = NewMessage(role="user", id="m1", parts=[text("a", id="p1")])
    await append(core, embedded)
    for change in (
        core.records.put_part("ses_1", "m1", "p1", text("mine"), STALE),
        core.records.put_part("ses_1", "m1", "new", text("mine"), STALE),
        core.records.remove_part("ses_1", "m1", "p1", STALE),
    ):
        with pytest.raises(VersionMismatch):
            await change
    assert await contents_of(core) == ["a"]


async def test_what_follows_from_parts_is_not_edited(core: Services) -> None:
    await append(core, NewMessage(role="user", id="m1", parts=[text("a", id="p1")]))
    patches: list[dict[str, Any]] = [{"content": "b"}, {"tool_calls": []}]
    for patch in patches:
        with pytest.raises(InvalidInput):
            await core.records.edit("ses_1", "m1", patch)
    await core.records.edit("ses_1", "m1", {"metadata": {"n": 1}})
    message = (await core.messages.read("ses_1", "m1")).message
    assert (message.content, message.metadata) == ("a", {"n": 1})


@pytest.mark.parametrize("change", ["edit", "remove", "put_part", "remove_part"])
async def test_a_change_with_a_key_is_done_once_and_answers_the_same(
    core: Services, change: str
) -> None:
    await append(core, said("a", "m1"))
    await core.records.put_part("ses_1", "m1", "p1", text("x"))
    arguments: dict[str, tuple[Any, ...]] = {
        "edit": ({"content": "b"},),
        "remove": (),
        "put_part": ("p2", text("y")),
        "remove_part": ("p1",),
    }
    act = getattr(core.records, change)
    first = await act("ses_1", "m1", *arguments[change], KEY)
    again = await act("ses_1", "m1", *arguments[change], KEY)
    assert again == first
    assert len(await core.entries("ses_1")) == 4
    with pytest.raises(AlreadyExists):
        await core.documents.change("ses_1", "preferences", {"a": 1}, KEY)


async def test_the_same_change_with_one_key_many_times_at_once_is_done_once(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    await append(core, said("a", "m1"))
    await asyncio.gather(
        *((core, there)[n % 2].records.edit("ses_1", "m1", {"content": "b"}, KEY) for n in range(8))
    )
    assert [entry.op for entry in await core.entries("ses_1")].count("message.edit") == 1


async def test_a_key_used_for_another_change_is_refused(core: Services) -> None:
    await append(core, said("a", "m1"))
    await core.records.edit("ses_1", "m1", {"content": "b"}, KEY)
    for change in (
        core.records.edit("ses_1", "m1", {"content": "c"}, KEY),
        core.records.remove("ses_1", "m1", KEY),
        core.records.put_part("ses_1", "m1", "p1", text("x"), KEY),
    ):
        with pytest.raises(AlreadyExists):
            await change
    assert await contents_of(core) == ["b"]


async def test_who_asked_is_part_of_the_origin(core: Services) -> None:
    asking = Request(client="tui")
    await core.messages.append("ses_1", [said("a", "m1")], asking)
    await core.records.edit("ses_1", "m1", {"content": "b"}, asking)
    await core.records.put_part("ses_1", "m1", "p1", text("x"), asking)
    origins = [entry.origin for entry in await core.entries("ses_1")][1:]
    assert all(o.startswith(f"tui@{core.committer.writer}:") for o in origins)


async def test_messages_of_no_session_are_told_from_no_message(core: Services) -> None:
    await create(core, "ses_2")
    await core.sessions.delete("ses_2")
    for session_id, error in (("ses_none", NotFound), ("ses_2", SessionDeleted)):
        for change in (
            core.messages.append(session_id, [said("a")]),
            core.messages.page(session_id),
            core.messages.read(session_id, "m1"),
            core.records.edit(session_id, "m1", {"content": "x"}),
            core.records.remove(session_id, "m1"),
            core.records.put_part(session_id, "m1", "p1", text("x")),
            core.records.remove_part(session_id, "m1", "p1"),
        ):
            with pytest.raises(error):
                await change
    with pytest.raises(NotFound, match="no message 'm1'"):
        await core.messages.read("ses_1", "m1")


async def test_a_message_that_others_wrote_by_other_means_passes_through(core: Services) -> None:
    body = b'{"id":"m1","timestamp":"2026-01-13T10:30:00Z","role":"user","new_field":[{}]}'
    await core.commit("ses_1", appending("m1", body))
    assert body in await core.messages.page("ses_1")
    assert body in await core.sessions.load("ses_1")


async def test_messages_that_redis_loses_while_it_is_asked_for_them_are_tried_again(
    core: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(core)
    await core.messages.append("ses_1", [said("a", "m1")])

    async def lost(_: str, message_ids: list[str]) -> list[None]:
        return [None] * len(message_ids)

    monkeypatch.setattr(core.store, "message_versions", lost)
    with pytest.raises(StoreWentBack) as refusal:
        await core.messages.append("ses_1", [said("a", "m1")])
    assert refusal.value.temporary


@pytest.mark.parametrize("shift", [1, 10], ids=["another message is there", "nothing is there"])
async def test_messages_that_redis_loses_between_its_index_and_its_log_are_tried_again(
    core: Services, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    """Else it would look as if their id was another message's: refused for good, and dropped."""
    await core.messages.append("ses_1", [said("a", "m1"), said("b", "m2")])
    versions, present_at = core.store.message_versions, core.store.log.present_at

    async def lost_meanwhile(session_id: str, message_ids: list[str]) -> list[RecordVersion | None]:
        found = await versions(session_id, message_ids)
        monkeypatch.setattr(core.store.log, "present_at", in_another_life)
        return found

    async def in_another_life(session_id: str, offsets: list[int]) -> list[Entry | None]:
        return await present_at(session_id, [offset + shift for offset in offsets])

    monkeypatch.setattr(core.store, "message_versions", lost_meanwhile)
    with pytest.raises(StoreWentBack):
        await core.messages.append("ses_1", [said("a", "m1")])

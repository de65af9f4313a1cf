"""Conflicts: found again, decided, and dropped when they are old."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sessiond.config.merging import merge_rules
from sessiond.config.options import MergeOptions
from sessiond.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    SessionDeleted,
    StoreDamaged,
    VersionMismatch,
)
from sessiond.model import Choice, ConflictRecord
from sessiond.service.content.documents import Documents
from sessiond.service.writing import Request, Surroundings
from sessiond.store.conflicts import ConflictStore
from tests.service.support import create, load, said, text
from tests.store.support import Services

pytestmark = pytest.mark.usefixtures("session")
DAY_MS = 24 * 3600 * 1000


@pytest.fixture
async def session(core: Services) -> str:
    return await create(core)


async def contested(
    core: Services, ours: Any = "/ours", theirs: Any = "/theirs", **more: Documents
) -> ConflictRecord:
    """A conflict about the working directory."""
    documents = more.get("documents", core.documents)
    base = (await documents.read("ses_1", "context")).version
    for value in (theirs, ours):
        core.clock.ms += 1
        patch = {"working_directory": value}
        await documents.change("ses_1", "context", patch, Request(base=base))
    return (await core.conflicts.of_session("ses_1"))[-1]


async def test_what_is_kept_of_a_conflict_has_no_number_but_that_of_its_entry(
    core: Services,
) -> None:
    record = await contested(core)
    ((number, fields),) = await core.redis.xrange(core.keys.conflicts("ses_1"))
    assert number == f"{record.number}-0".encode()
    assert "number" not in msgspec.json.decode(fields[fields.index(b"json") + 1])


def deciding_by_hand(core: Services) -> Documents:
    rules = merge_rules(MergeOptions(context={"working_directory": "manual"}))
    conflicts = ConflictStore(core.redis, core.keys)
    return Documents(Surroundings(core.store, conflicts, rules=rules, clock=core.clock))


async def directory(core: Services) -> str:
    found: str = (await core.documents.read("ses_1", "context")).value.working_directory
    return found


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(take="ours"), "/ours"),
        (Choice(take="theirs"), "/theirs"),
        (Choice(take="base"), ""),
        (Choice(take="merged"), "/ours"),
        (Choice(value="/another"), "/another"),
    ],
)
async def test_a_decision_is_a_change_of_its_own(
    core: Services, choice: Choice, expected: str
) -> None:
    conflict = await contested(core)
    resolved = await core.conflicts.resolve("ses_1", conflict.number, choice, Request(client="ana"))
    assert await directory(core) == expected
    assert resolved.state == "resolved"
    assert resolved.resolution
    assert resolved.resolution.take == (choice.take or "value")
    assert resolved.resolution.origin.startswith("ana@")
    assert resolved == await core.conflicts.read("ses_1", conflict.number)
    last = (await core.entries("ses_1"))[-1]
    assert (last.op, last.id) == ("conflict.resolve", conflict.number)
    assert resolved.resolution.version == str(last.offset)


async def test_a_decision_may_be_changed(core: Services) -> None:
    conflict = await contested(core)
    for take in ("theirs", "ours"):
        resolved = await core.conflicts.resolve(
            "ses_1",
            conflict.number,
            Choice(take=take),
        )
    assert resolved.resolution
    assert (resolved.resolution.take, await directory(core)) == ("ours", "/ours")


async def test_a_manual_field_is_open_until_somebody_decides(core: Services) -> None:
    conflict = await contested(core, documents=deciding_by_hand(core))
    assert (conflict.state, conflict.strategy) == ("open", "manual")
    assert await core.conflicts.of_session("ses_1", "open") == [conflict]
    await core.conflicts.resolve("ses_1", conflict.number, Choice(take="theirs"))
    assert await core.conflicts.of_session("ses_1", "open") == []
    assert len(await core.conflicts.of_session("ses_1", "resolved")) == 1
    assert await core.conflicts.of_all("open") == []


async def test_a_decision_for_a_version_that_passed_is_refused(core: Services) -> None:
    conflict = await contested(core)
    before = (await core.documents.read("ses_1", "context")).version
    await core.documents.change("ses_1", "context", {"working_directory": "/x"})
    with pytest.raises(VersionMismatch):
        await core.conflicts.resolve(
            "ses_1", conflict.number, Choice(take="theirs"), Request(expected=before)
        )
    assert await directory(core) == "/x"


@pytest.mark.parametrize("choice", [Choice(), Choice(take="ours", value=1)])
async def test_a_decision_is_one(core: Services, choice: Choice) -> None:
    conflict = await contested(core)
    with pytest.raises(InvalidInput, match="either"):
        await core.conflicts.resolve("ses_1", conflict.number, choice)


async def test_a_value_that_does_not_fit_is_refused_and_nothing_is_decided(core: Services) -> None:
    conflict = await contested(core)
    with pytest.raises(InvalidInput, match="not a context"):
        await core.conflicts.resolve("ses_1", conflict.number, Choice(value=5))
    assert (await core.conflicts.read("ses_1", conflict.number)).state == "settled"


async def test_a_place_that_is_gone_is_named(core: Services) -> None:
    base = (await core.documents.read("ses_1", "context")).version
    for value in ("theirs", "ours"):
        patch = {"state": {"task": {"name": value}}}
        await core.documents.change("ses_1", "context", patch, Request(base=base))
    (conflict,) = await core.conflicts.of_session("ses_1")
    await core.documents.change("ses_1", "context", {"state": {"task": None}})
    with pytest.raises(InvalidInput, match="not there any more: task"):
        await core.conflicts.resolve("ses_1", conflict.number, Choice(take="theirs"))


async def test_an_edit_that_lost_comes_back_into_its_message(core: Services) -> None:
    base = (await core.messages.append("ses_1", [said("a", "m1")])).records[0].version
    for content in ("theirs", "ours"):
        await core.records.edit("ses_1", "m1", {"content": content}, Request(base=base))
    (conflict,) = await core.conflicts.of_session("ses_1")
    await core.conflicts.resolve("ses_1", conflict.number, Choice(take="theirs"))
    assert (await core.messages.read("ses_1", "m1")).message.content == "theirs"


async def test_a_removed_message_comes_back_under_a_new_id(core: Services) -> None:
    base = (await core.messages.append("ses_1", [said("a", "m1")])).records[0].version
    await core.records.remove("ses_1", "m1")
    with pytest.raises(NotFound):
        await core.records.edit("ses_1", "m1", {"content": "late"}, Request(base=base))
    (conflict,) = await core.conflicts.of_session("ses_1")
    await core.conflicts.resolve("ses_1", conflict.number, Choice(take="ours"))
    (message,) = (await load(core)).conversation.messages
    assert (message.content, message.id == "m1") == ("late", False)


async def test_a_decision_that_is_asked_for_again_is_made_once(core: Services) -> None:
    base = (await core.messages.append("ses_1", [said("a", "m1")])).records[0].version
    await core.records.remove("ses_1", "m1")
    with pytest.raises(NotFound):
        await core.records.edit("ses_1", "m1", {"content": "late"}, Request(base=base))
    (conflict,) = await core.conflicts.of_session("ses_1")
    for _ in range(2):
        await core.conflicts.resolve(
            "ses_1", conflict.number, Choice(take="ours"), Request(key="once")
        )
    assert len((await load(core)).conversation.messages) == 1
    with pytest.raises(AlreadyExists):
        await core.conflicts.resolve(
            "ses_1", conflict.number, Choice(take="theirs"), Request(key="once")
        )


@pytest.mark.parametrize("value", [3, "x", [], None, {"role": 1}])
async def test_what_is_no_message_takes_no_place(core: Services, value: Any) -> None:
    base = (await core.messages.append("ses_1", [said("a", "m1")])).records[0].version
    await core.records.remove("ses_1", "m1")
    with pytest.raises(NotFound):
        await core.records.edit("ses_1", "m1", {"content": "late"}, Request(base=base))
    (conflict,) = await core.conflicts.of_session("ses_1")
    with pytest.raises(InvalidInput, match="would not be a message"):
        await core.conflicts.resolve("ses_1", conflict.number, Choice(value=value))


@pytest.mark.parametrize("value", [3, [], {"id": "p1", "type": 7}])
async def test_what_is_no_part_takes_no_place(core: Services, value: Any) -> None:
    await core.messages.append("ses_1", [said("a", "m1")])
    first = await core.records.put_part("ses_1", "m1", "p1", text("a"))
    await core.records.remove_part("ses_1", "m1", "p1")
    late = Request(base=first.version)
    with pytest.raises(NotFound):
        await core.records.put_part("ses_1", "m1", "p1", text("late"), late)
    (conflict,) = await core.conflicts.of_session("ses_1")
    with pytest.raises(InvalidInput, match="part"):
        await core.conflicts.resolve("ses_1", conflict.number, Choice(value=value))


async def test_a_removal_can_be_made_good_and_left(core: Services) -> None:
    base = (await core.messages.append("ses_1", [said("a", "m1")])).records[0].version
    await core.records.edit("ses_1", "m1", {"content": "edited"})
    await core.records.remove("ses_1", "m1", Request(base=base))
    (conflict,) = await core.conflicts.of_session("ses_1")
    await core.conflicts.resolve("ses_1", conflict.number, Choice(take="ours"))
    assert (await load(core)).conversation.messages == []
    await core.conflicts.resolve("ses_1", conflict.number, Choice(take="theirs"))
    (message,) = (await load(core)).conversation.messages
    assert message.content == "edited"


async def test_a_deleted_session_takes_nothing_back(core: Services) -> None:
    await core.sessions.delete("ses_1")
    with pytest.raises(SessionDeleted):
        await core.messages.append("ses_1", [said("late", "m1")])
    (conflict,) = await core.conflicts.of_session("ses_1")
    with pytest.raises(SessionDeleted):
        await core.conflicts.resolve("ses_1", conflict.number, Choice(take="ours"))


async def test_what_is_not_there_is_not_found(core: Services) -> None:
    assert await core.conflicts.of_session("ses_1") == []
    with pytest.raises(NotFound):
        await core.conflicts.of_session("ses_none")
    for number in ("1", "99", "99-1"):
        with pytest.raises(NotFound):
            await core.conflicts.read("ses_1", number)


async def test_old_conflicts_are_dropped_but_not_open_ones(core: Services) -> None:
    await contested(core)
    core.clock.ms += 10 * DAY_MS
    documents = deciding_by_hand(core)
    recent = await contested(core, "/mine", documents=documents)
    core.clock.ms += 25 * DAY_MS
    await core.conflicts.trim()
    assert await core.conflicts.of_session("ses_1") == [recent]
    core.clock.ms += 10 * DAY_MS
    await core.conflicts.trim()
    assert await core.conflicts.of_all() == [recent], "nobody decided it yet"
    await core.conflicts.resolve("ses_1", recent.number, Choice(take="merged"))
    core.clock.ms += 31 * DAY_MS
    await core.conflicts.trim()
    assert await core.conflicts.of_all() == []
    assert await core.redis.zcard(core.keys.contested) == 0


async def test_an_open_conflict_keeps_no_others(core: Services) -> None:
    await contested(core, documents=deciding_by_hand(core))
    settled = await contested(core, "/mine")
    core.clock.ms += 31 * DAY_MS
    await core.conflicts.trim()
    (left,) = await core.conflicts.of_session("ses_1")
    assert (left.state, left.number == settled.number) == ("open", False)


async def test_what_is_written_while_old_conflicts_are_dropped_stays(core: Services) -> None:
    old = await contested(core)
    store = ConflictStore(core.redis, core.keys)
    core.clock.ms += 31 * DAY_MS
    recent = await contested(core, "/mine")  # after the old ones were read
    await store.drop("ses_1", [old.number], core.clock.ms)
    assert await core.conflicts.of_all() == [recent]
    await store.drop("ses_1", [recent.number], core.clock.ms)
    assert list(await store.sessions()) == ["ses_1"], "somebody may be about to write one"


async def test_the_newest_are_told_of_first(core: Services) -> None:
    first, second = await contested(core), await contested(core, "/mine", "/yours")
    assert await core.conflicts.of_session("ses_1", None, 1) == [second]
    assert await core.conflicts.of_session("ses_1", None, 2) == [first, second]
    assert len(await core.conflicts.of_all(None, 1)) == 1


async def test_conflicts_go_with_their_session(core: Services) -> None:
    await contested(core)
    await core.sessions.delete("ses_1")
    assert await core.conflicts.of_session("ses_1") == []
    await core.conflicts.trim()
    assert await core.conflicts.of_all() == []


async def test_a_conflict_that_is_damaged_is_named(core: Services) -> None:
    await core.redis.execute_command(
        "XADD", core.keys.conflicts("ses_1"), "5-0", "what", "conflict", "at", "x", "json", "{"
    )
    with pytest.raises(StoreDamaged, match="conflict 5"):
        await core.conflicts.of_session("ses_1")
    await core.redis.execute_command("XADD", core.keys.conflicts("ses_1"), "6-0", "a", "b")
    with pytest.raises(StoreDamaged, match="6-0"):
        await core.conflicts.of_session("ses_1")


async def test_damage_of_one_session_hides_no_conflict_of_another(core: Services) -> None:
    conflict = await contested(core)
    await create(core, "ses_2")
    fields = ("what", "conflict", "at", "x", "json", "{")
    await core.redis.execute_command("XADD", core.keys.conflicts("ses_2"), "5-0", *fields)
    await core.redis.zadd(core.keys.contested, {"ses_2": 2**50})
    assert await core.conflicts.of_all() == [conflict]
    core.clock.ms += 31 * DAY_MS
    await core.conflicts.trim()
    assert await core.conflicts.of_all() == []
    assert await core.redis.exists(core.keys.conflicts("ses_2")), "for people to look at"

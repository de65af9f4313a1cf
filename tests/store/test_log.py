"""Reading a log: pages, and a reset for every position that is not part of it."""

from __future__ import annotations

import pytest

from sessiond.store.log import PAGE, LogPage
from sessiond.sync.position import START, Position
from tests.store.support import (
    Services,
    appending,
    creating,
    deleting,
    editing,
    real_servers,
    roll_back,
    take_copy,
)

MIB = 1024 * 1024


@pytest.fixture
async def ends(core: Services) -> list[Position]:
    """The positions after each of the ten entries of a session; the first is the start."""
    done = await core.commit("ses_1", creating("ses_1"))
    rest = await core.commit("ses_1", *[appending(f"m{n}") for n in range(2, 11)])
    return [START, *done.positions, *rest.positions]


async def pages(core: Services, after: Position, until: int | None = None) -> list[LogPage]:
    return [page async for page in core.store.log.pages("ses_1", after, until)]


async def test_a_page_holds_what_follows_a_position(core: Services, ends: list[Position]) -> None:
    for offset, position in enumerate(ends):
        page = await core.store.log.page("ses_1", position)
        assert [entry.offset for entry in page.entries] == list(range(offset + 1, 11))
        assert page.position == ends[10]
        assert page.reset is None


async def test_a_page_holds_no_more_than_asked_and_tells_where_it_ends(
    core: Services, ends: list[Position]
) -> None:
    page = await core.store.log.page("ses_1", ends[3], limit=4)
    assert [entry.offset for entry in page.entries] == [4, 5, 6, 7]
    assert page.position == ends[7]
    assert (await core.store.log.page("ses_1", page.position, limit=4)).position == ends[10]


async def test_an_offset_alone_is_a_position_that_is_not_proven(
    core: Services, ends: list[Position]
) -> None:
    page = await core.store.log.page("ses_1", Position("", 8))
    assert [entry.position for entry in page.entries] == ends[9:]


async def test_pages_go_through_the_whole_log_in_order_and_end(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    for first in range(0, 700, 100):
        await core.commit("ses_1", *[appending(f"m{n}") for n in range(first, first + 100)])
    found = await pages(core, START)
    assert len(found) > 1
    assert [e.offset for page in found for e in page.entries] == list(range(1, 702))
    assert max(len(page.entries) for page in found) <= PAGE
    assert await pages(core, found[-1].position) == []


@pytest.mark.parametrize("until", [0, 1, 5, 10])
async def test_pages_until_an_offset_end_there(
    core: Services, ends: list[Position], until: int
) -> None:
    found = await pages(core, START, until)
    assert [e.offset for page in found for e in page.entries] == list(range(1, until + 1))


async def test_pages_stay_small_when_messages_are_large(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    for number in range(12):
        await core.commit("ses_1", appending(f"m{number}", b'"' + b"x" * MIB + b'"'))
    found = await pages(core, Position("", 1))
    sizes = [sum(len(entry.json) for entry in page.entries) for page in found]
    assert sum(sizes) == 12 * (MIB + 2)
    assert max(sizes) <= 8 * MIB


async def test_a_stretch_holds_no_more_than_fits_and_leads_on_to_the_end(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    for number, mib in enumerate([1] * 9 + [9, 1]):
        await core.commit("ses_1", appending(f"m{number}", b'"' + b"x" * mib * MIB + b'"'))
    found, page = list[list[int]](), LogPage([], START, more=True)
    while page.more:
        page = await core.store.log.stretch("ses_1", page.position)
        found.append([entry.offset for entry in page.entries])
    assert found == [[*range(1, 9)], [9, 10], [11], [12]]


async def test_a_stretch_tells_whether_the_log_goes_on(
    core: Services, ends: list[Position]
) -> None:
    for limit, more in ((1, True), (9, True), (10, False), (500, False)):
        page = await core.store.log.stretch("ses_1", START, limit)
        assert page.position == ends[min(limit, 10)]
        assert (len(page.entries), page.more) == (min(limit, 10), more)
    end = await core.store.log.stretch("ses_1", ends[10])
    assert (end.entries, end.position, end.more) == ([], ends[10], False)
    other = await core.store.log.stretch("ses_1", Position("0123456789abcd", 3))
    assert (other.entries, other.reset) == ([], "history-changed")


async def test_entries_are_found_by_their_offsets(core: Services, ends: list[Position]) -> None:
    found = await core.store.log.entries_at("ses_1", [7, 99, 1])
    assert [entry and entry.id for entry in found] == ["m7", None, "ses_1"]
    assert await core.store.log.entries_at("ses_1", []) == []
    assert await core.store.log.entries_at("ses_9", [1]) == [None]


async def assert_reset(core: Services, after: Position, reason: str) -> None:
    page = await core.store.log.page("ses_1", after)
    assert (page.entries, page.position, page.reset) == ([], START, reason)
    assert [found.reset for found in await pages(core, after)] == [reason]


async def test_a_position_with_another_epoch_is_of_another_history(
    core: Services, ends: list[Position]
) -> None:
    for offset in (1, 5, 10):
        await assert_reset(core, Position("00000000000001", offset), "history-changed")
    await assert_reset(core, Position(ends[4].epoch, 5), "history-changed")


async def test_a_log_that_does_not_exist_is_missing_after_any_position_but_the_start(
    core: Services,
) -> None:
    await assert_reset(core, Position("00000000000001", 1), "missing")
    page = await core.store.log.page("ses_1", START)
    assert (page.entries, page.position, page.reset) == ([], START, None)
    assert await pages(core, START) == []


async def test_a_position_behind_the_end_of_a_log_is_missing(
    core: Services, ends: list[Position]
) -> None:
    await assert_reset(core, Position(ends[10].epoch, 11), "missing")
    await assert_reset(core, Position("", 11), "missing")


async def test_a_position_that_was_trimmed_off_is_said_to_be(
    core: Services, ends: list[Position]
) -> None:
    await core.redis.execute_command("XTRIM", core.keys.conversation("ses_1"), "MINID", "6-0")
    for gone in (ends[0], ends[1], ends[5], Position("", 3)):
        await assert_reset(core, gone, "trimmed")
    page = await core.store.log.page("ses_1", ends[6])
    assert [entry.offset for entry in page.entries] == [7, 8, 9, 10]


async def test_a_deletion_is_told_to_a_reader_wherever_it_stands(
    core: Services, ends: list[Position]
) -> None:
    deleted = (await core.commit("ses_1", deleting("ses_1"))).positions[0]
    for position in (*ends, Position("", 5)):
        page = await core.store.log.page("ses_1", position)
        assert [entry.op for entry in page.entries] == ["session.delete"]
        assert page.position == deleted
        assert page.reset is None
    page = await core.store.log.page("ses_1", deleted)
    assert (page.entries, page.position, page.reset) == ([], deleted, None)


async def test_a_rollback_followed_by_other_writes_resets_readers_of_what_was_lost(
    core: Services, ends: list[Position]
) -> None:
    kept = await take_copy(core, "ses_1")
    lost = await core.commit("ses_1", appending("m11"), appending("m12"))
    await roll_back(core, "ses_1", kept)
    other = await core.commit("ses_1", appending("other11"), appending("other12"), editing("m2"))

    for position in lost.positions:
        await assert_reset(core, position, "history-changed")
    for position in ends:
        page = await core.store.log.page("ses_1", position)
        assert page.reset is None
        assert page.position == other.positions[-1]


async def test_a_rollback_alone_resets_readers_of_what_was_lost(
    core: Services, ends: list[Position]
) -> None:
    kept = await take_copy(core, "ses_1")
    lost = await core.commit("ses_1", appending("m11"), appending("m12"))
    await roll_back(core, "ses_1", kept)
    for position in lost.positions:
        page = await core.store.log.page("ses_1", position)
        assert page.reset is not None
        assert page.entries == []


@real_servers
async def test_a_restart_that_lost_nothing_costs_readers_nothing(
    core: Services, ends: list[Position]
) -> None:
    everything = await take_copy(core, "ses_1")
    await roll_back(core, "ses_1", everything)
    for position in ends:
        assert (await core.store.log.page("ses_1", position)).reset is None

"""What the journal promises while nothing fails, and across restarts."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from sessiond.errors import FolderHeld, InvalidInput, JournalUnavailable
from sessiond.journal import Journal, JournalOptions, Span
from sessiond.journal.connection import connect
from sessiond.journal.opening import CURRENT
from sessiond.journal.watermark import FILE as WATERMARK
from tests.journal.disk import RecordingDisk
from tests.journal.support import as_killed, at, entries_of, of_session, pending_of


async def test_sequences_are_contiguous_over_all_sessions(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    sizes = [1, 3, 2, 5] * 20
    groups = [[b"%d" % place] * size for place, size in enumerate(sizes)]
    appends = (journal.append(f"ses_{place % 7}", group) for place, group in enumerate(groups))
    spans = await asyncio.gather(*appends)
    numbers = [number for span in spans for number in range(span.first, span.last + 1)]
    assert numbers == list(range(1, sum(sizes) + 1))
    assert [entry.operations for entry in await entries_of(journal)] == groups
    await journal.close()


async def test_identity_sequences_and_keys_survive_a_restart(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    first = await journal.append("ses_1", [b"1", b"2"], key="k")
    await journal.close()
    journal = await Journal.open(tmp_path / "j")
    assert await journal.append("ses_1", [b"1", b"2"], key="k") == first
    assert not await journal.seen(first.incarnation, 2)
    assert await journal.append("ses_2", [b"3"], key="k") == Span(first.incarnation, 3, 1)
    assert journal.recoveries == []
    await journal.close()


async def test_a_retry_waits_for_the_sync_of_its_first_try(tmp_path: Path) -> None:
    disk = RecordingDisk()
    journal = await Journal.open(tmp_path / "j", JournalOptions(connect=disk.connect))
    disk.events.clear()

    async def append() -> Span:
        span = await journal.append("ses_1", [b"once"], key="k")
        disk.tell(span)
        return span

    spans = await asyncio.gather(*(append() for _ in range(5)))
    what = [event.what for event in disk.events]
    assert set(spans) == {spans[0]}
    assert what.index("sync") < what.index("told")
    assert len(await entries_of(journal)) == 1
    await journal.close()


async def test_groups_that_wait_share_a_sync_and_a_lone_one_costs_one(tmp_path: Path) -> None:
    disk = RecordingDisk()
    journal = await Journal.open(tmp_path / "j", JournalOptions(connect=disk.connect))
    await journal.append("ses_1", [b"begins the log"])

    def syncs() -> int:
        return sum(event.what == "sync" for event in disk.events)

    before = syncs()
    await journal.append("ses_1", [b"alone"])
    assert syncs() == before + 1
    await asyncio.gather(*(journal.append("ses_1", [b"together"]) for _ in range(400)))
    assert syncs() <= before + 4
    await journal.close()


async def test_what_a_cancelled_caller_handed_over_is_written(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    task = asyncio.create_task(journal.append("ses_1", [b"1"]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert [entry.operations for entry in await entries_of(journal)] == [[b"1"]]
    await journal.close()


async def test_confirmed_entries_are_not_pending_but_kept_for_a_rollback(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    spans = [await journal.append(f"ses_{number % 2}", [b"x"]) for number in range(6)]
    for span in spans[:4]:
        journal.confirm(span, at(span.first))
        journal.confirm(span, at(span.first))
    journal.confirm(Span("nobody", 1, 1), at(1))
    journal.confirm(Span(spans[0].incarnation, 77, 1), at(1))
    assert [entry.span for entry in await pending_of(journal)] == spans[4:]
    kept = [(entry.span, entry.position) for entry in await of_session(journal, "ses_0")]
    assert kept == [(spans[0], at(1)), (spans[2], at(3)), (spans[4], None)]
    assert await journal.newest_confirmed() == {"ses_0": at(3), "ses_1": at(4)}
    assert await journal.sessions() == {"ses_0", "ses_1"}
    status = await journal.status()
    assert (status.pending, status.kept, status.last_sequence) == (2, 4, 6)
    await journal.close()
    journal = await Journal.open(tmp_path / "j")
    reopened = await journal.status()
    assert reopened == status
    assert await of_session(journal, "ses_9") == []
    await journal.close()


async def test_a_group_that_came_back_elsewhere_has_its_new_position(tmp_path: Path) -> None:
    """After a rollback of Redis it was written again."""
    journal = await Journal.open(tmp_path / "j")
    span = await journal.append("ses_1", [b"x"])
    for offset in (5, 9):
        journal.confirm(span, at(offset))
        (entry,) = await entries_of(journal)
        assert entry.position == at(offset)
        status = await journal.status()
        assert (status.pending, status.kept) == (0, 1)
    assert (await journal.verify()).faults == []
    await journal.close()


async def test_what_redis_lost_is_pending_again_also_in_the_next_life(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    spans = [await journal.append("ses_1", [b"x"]) for _ in range(4)]
    before = await journal.status()
    for span in spans[:3]:
        journal.confirm(span, at(span.first))
    await journal.take_back([spans[1], spans[2], spans[3], Span("nobody", 1, 1)])
    await journal.take_back([])
    for _ in range(2):
        assert [entry.span for entry in await pending_of(journal)] == spans[1:]
        assert await journal.newest_confirmed() == {"ses_1": at(1)}
        status = await journal.status()
        assert (status.pending, status.kept) == (3, 1)
        await journal.close()
        journal = await Journal.open(tmp_path / "j")
    await journal.take_back(spans)
    assert await journal.status() == before
    journal.confirm(spans[2], at(9))
    assert await journal.newest_confirmed() == {"ses_1": at(9)}
    assert (await journal.verify()).faults == []
    await journal.close()


@pytest.mark.parametrize("was_confirmed", [False, True])
async def test_what_was_refused_or_is_to_be_forgotten_is_dropped(
    tmp_path: Path, was_confirmed: bool
) -> None:
    journal = await Journal.open(tmp_path / "j")
    other = await journal.append("ses_1", [b"other"])
    span = await journal.append("ses_1", [b"refused"], key="k")
    if was_confirmed:
        journal.confirm(span, at(1))
        await journal.status()
    drop = journal.forget if was_confirmed else journal.discard
    drop(span)
    drop(span)
    assert [entry.span for entry in await entries_of(journal)] == [other]
    status = await journal.status()
    assert (status.pending, status.kept, status.kept_bytes) == (1, 0, 0)
    assert await journal.append("ses_1", [b"again"], key="k") != span
    await journal.close()
    journal = await Journal.open(tmp_path / "j")
    assert [entry.operations for entry in await entries_of(journal)] == [[b"other"], [b"again"]]
    await journal.close()


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_was_confirmed_is_kept_although_a_retry_of_it_is_refused(
    tmp_path: Path, at_once: bool
) -> None:
    journal = await Journal.open(tmp_path / "j")
    span = await journal.append("ses_1", [b"x"], key="k")
    journal.confirm(span, at(1))
    if not at_once:
        await journal.status()
    journal.discard(span)
    (entry,) = await entries_of(journal)
    assert entry.position == at(1)
    assert await journal.append("ses_1", [b"x"], key="k") == span
    assert (await journal.verify()).faults == []
    await journal.close()


async def test_pages_are_bounded_and_together_everything(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    big = [journal.append("ses_1", [b"x" * 1024 * 1024]) for _ in range(10)]
    spans = await asyncio.gather(*big, *(journal.append("ses_1", [b"x"]) for _ in range(600)))
    pages = [page async for page in journal.pending()]
    assert [entry.span for page in pages for entry in page] == spans
    assert max(len(page) for page in pages) <= 256
    assert max(sum(len(entry.operations[0]) for entry in page) for page in pages) <= 5 << 20
    assert await of_session(journal, "ses_1") == await entries_of(journal)
    await journal.close()


async def test_kept_entries_are_bounded_by_size_and_time_pending_ones_are_not(
    tmp_path: Path,
) -> None:
    now = [1_000_000]
    options = JournalOptions(kept_bytes=20_000, kept_seconds=60, clock=lambda: now[0])
    journal = await Journal.open(tmp_path / "j", options)
    first = await journal.append("ses_1", [b"x" * 1000], key="k")
    for number in range(100):
        span = await journal.append("ses_1", [b"x" * 1000], key=f"k{number}")
        journal.confirm(span, at(number + 1))
        status = await journal.status()
        assert status.kept_bytes <= 20_000 + 1300
    assert status.kept > 10
    now[0] += 61_000
    await journal.append("ses_2", [b"y"])
    status = await journal.status()
    assert (status.kept, status.kept_bytes, status.pending) == (0, 0, 2)
    assert status.oldest_pending_ms == 1_000_000
    assert await journal.append("ses_1", [b"x"], key="k") == first
    assert (await journal.append("ses_1", [b"x"], key="k0")).first > 100
    assert (await journal.verify()).faults == []
    await journal.close()


async def test_an_older_copy_writes_under_a_new_identity(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    old = await journal.append("ses_1", [b"old"])
    backup = as_killed(tmp_path / "j", tmp_path / "backup")
    for _ in range(5):
        await journal.append("ses_1", [b"newer"])
    await journal.close()
    (backup / WATERMARK).unlink()  # a backup of everything: only Redis can tell
    journal = await Journal.open(backup)
    assert await journal.seen(old.incarnation, 6)
    assert not await journal.seen(old.incarnation, 6)
    new = await journal.append("ses_1", [b"new"])
    assert new.incarnation != old.incarnation
    assert new.first == 1
    assert [entry.span for entry in await pending_of(journal)] == [old, new]
    assert await journal.incarnations() == [old.incarnation, new.incarnation]
    assert [entry.span for entry in await of_session(journal, "ses_1")] == [old, new]
    await journal.close()


async def test_an_older_copy_that_cannot_reach_redis_gives_no_sequence_away_twice(
    tmp_path: Path,
) -> None:
    """However often it is started before Redis tells that it is older."""
    journal = await Journal.open(tmp_path / "j")
    spans = [await journal.append("ses_1", [b"old"])]
    backup = as_killed(tmp_path / "j", tmp_path / "backup")
    spans += [await journal.append("ses_1", [b"newer"]) for _ in range(5)]
    await journal.close()
    (backup / WATERMARK).unlink()
    for _ in range(3):
        journal = await Journal.open(backup)
        spans += [await journal.append("ses_1", [b"offline"]) for _ in range(3)]
        await journal.close()
    assert len({(span.incarnation, span.first) for span in spans}) == len(spans) == 15
    journal = await Journal.open(backup)
    assert not await journal.seen(spans[-1].incarnation, 3)
    assert await journal.append("ses_1", [b"on"]) == Span(spans[-1].incarnation, 4, 1)
    await journal.close()


async def test_what_redis_has_of_this_life_renews_nothing(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    span = await journal.append("ses_1", [b"1"])
    assert not await journal.seen(span.incarnation, 0)
    assert not await journal.seen(span.incarnation, 1)
    assert not await journal.seen("somebody else", 99)
    assert await journal.append("ses_1", [b"2"]) == Span(span.incarnation, 2, 1)
    assert await journal.seen(span.incarnation, 3)
    assert (await journal.append("ses_1", [b"3"])).incarnation != span.incarnation
    await journal.close()


async def test_the_watermark_tells_of_an_older_copy_without_redis(tmp_path: Path) -> None:
    folder = tmp_path / "j"
    journal = await Journal.open(folder)
    old = await journal.append("ses_1", [b"old"])
    backup = as_killed(folder, tmp_path / "backup")
    await journal.append("ses_1", [b"newer"])
    await journal.close()
    shutil.rmtree(folder / CURRENT)
    shutil.copytree(backup / CURRENT, folder / CURRENT)
    journal = await Journal.open(folder)
    (recovery,) = journal.recoveries
    assert recovery.missing == [f"{old.incarnation} 2-2"]
    assert recovery.incarnation == (await journal.append("ses_1", [b"x"])).incarnation
    assert (await pending_of(journal))[0].span == old
    await journal.close()


async def test_a_crash_while_a_new_journal_takes_its_place_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "j"
    journal = await Journal.open(folder)
    span = await journal.append("ses_1", [b"1"])
    await journal.close()
    (folder / "building").mkdir()
    (folder / "building" / "journal.db").write_bytes(b"half")
    journal = await Journal.open(folder)
    assert [entry.span for entry in await entries_of(journal)] == [span]
    await journal.close()
    (folder / CURRENT).rename(folder / "complete")
    journal = await Journal.open(folder)
    assert [entry.span for entry in await entries_of(journal)] == [span]
    await journal.close()


async def test_people_read_its_entries_as_json(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    span = await journal.append("ses_1", [b'{"a": [1]}', b"\xff"], key="k")
    journal.confirm(span, at(2))
    page = await journal.page(0)
    (told,) = json.loads(msgspec.json.encode(page.entries))
    assert (await journal.page(page.next)).entries == []
    assert told.pop("at_ms") > 0
    assert told == {
        "incarnation": span.incarnation,
        "first": 1,
        "session_id": "ses_1",
        "key": "k",
        "position": str(at(2)),
        "operations": [{"a": [1]}, {"base64": "/w=="}],
    }
    await journal.close()


async def test_only_its_owner_can_read_it_and_only_one_process_has_it(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    await journal.append("ses_1", [b"1"])
    with pytest.raises(FolderHeld):
        await Journal.open(tmp_path / "j")
    for path in (tmp_path / "j").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    await journal.close()
    with pytest.raises(JournalUnavailable):
        await journal.append("ses_1", [b"1"])
    await journal.close()


@pytest.mark.parametrize(
    ("session_id", "group", "key"),
    [("ses_1", [], ""), ("ses_\ud800", [b"1"], ""), ("ses_1", [b"1"], "\udfff")],
)
async def test_bad_input_harms_nobody_else(
    tmp_path: Path, session_id: str, group: list[bytes], key: str
) -> None:
    journal = await Journal.open(tmp_path / "j")
    good = asyncio.create_task(journal.append("ses_1", [b"good"]))
    with pytest.raises(InvalidInput):
        await journal.append(session_id, group, key=key)
    assert (await good).first == 1
    await journal.close()


async def test_a_person_can_look_inside_with_sqlite(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "j")
    await journal.append("ses_1", [b'{"a":1}'])
    await journal.close()
    connection = connect(tmp_path / "j" / CURRENT / "journal.db")
    query = "SELECT session_id, operations FROM entries"
    ((session_id, operations),) = connection.execute(query).fetchall()
    assert session_id == "ses_1"
    assert msgspec.msgpack.decode(operations) == [b'{"a":1}']
    connection.close()

"""Sessions that nobody uses leave Redis, and come back whoever needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sessiond.archive.folder import ArchiveFolder
from sessiond.errors import (
    ArchiveDamaged,
    ArchiveUnavailable,
    Contended,
    NotFound,
    SessionDeleted,
    SessionInUse,
    StoreDamaged,
)
from sessiond.model import Choice, NewMessage, NewSession
from sessiond.model import Session as Loaded
from sessiond.service.content.sessions import Filter
from sessiond.service.retention.archiving import Archiving
from sessiond.service.writing import Request
from sessiond.store.archives import ArchiveStore
from sessiond.store.blocks import BlockStore, pack
from sessiond.store.keys import ARCHIVED_KINDS, PASSING_KINDS, TABLE
from sessiond.store.leases import LeaseStore
from sessiond.store.presence import About, PresenceStore
from sessiond.sync.position import START, Position
from tests.service.contested import leave_open_conflict
from tests.store.support import Services, StartServices, keys_of, roll_back, take_copy

HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS


@pytest.fixture(params=["redis", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """`retention.archive`."""
    return f"file://{tmp_path}/archive" if request.param == "folder" else ""


@pytest.fixture
async def core(start: StartServices, place: str) -> Services:
    """A process, and a session of all kinds of keys that was last used an hour ago."""
    core = await start(archive=place)
    await fill(core)
    core.clock.ms += HOUR_MS
    return core


@pytest.fixture
async def other(start: StartServices, place: str, core: Services) -> Services:
    """A second process with the same archive."""
    return await start(instance="there", archive=place)


async def fill(core: Services) -> None:
    await core.sessions.create(
        NewSession(session_id="ses_1", title="a title", preferences={"theme": "dark"})
    )
    for number in range(20):
        new = NewMessage(role="user", id=f"m{number}", content=f"text {number}")
        await core.messages.append("ses_1", [new])
    await core.records.edit("ses_1", "m3", {"content": "edited"}, Request(key="k"))
    await core.records.put_part("ses_1", "m4", "p1", {"type": "text", "text": "x"})
    base = (await core.documents.read("ses_1", "context")).version
    await core.documents.change("ses_1", "context", {"working_directory": "/v"})
    late = Request(base=base)
    await core.documents.change("ses_1", "context", {"working_directory": "/u"}, late)
    blocks = BlockStore(core.redis, core.keys)
    assert await blocks.put("ses_1", pack(await blocks.oldest("ses_1", 8)))


async def archive(core: Services) -> None:
    assert (await core.archiving.archive("ses_1")).archived


async def is_archived(core: Services) -> bool:
    return bool(await core.redis.hexists(core.keys.metadata("ses_1"), "archive"))


def files_of(place: str) -> list[Path]:
    return sorted(Path(place.removeprefix("file://")).glob("ses_1.*"))


def test_an_archive_holds_all_keys_of_a_session_that_do_not_pass_by_themselves() -> None:
    of_sessions = {
        kind for kind, row in TABLE.items() if "<id>" in row.pattern and row.type != "channel"
    }
    of_repairs = {"quarantine", "repair"}
    assert of_sessions - set(ARCHIVED_KINDS) == {*PASSING_KINDS, *of_repairs, "archive"}
    for kind in ARCHIVED_KINDS:
        assert TABLE[kind].type in {"hash", "stream"}, "restore.lua writes no others yet"


async def test_a_session_comes_back_on_load_exactly_as_it_was(core: Services, place: str) -> None:
    assert set(await keys_of(core, "ses_1")) == set(ARCHIVED_KINDS)
    content = (await ArchiveStore(core.redis, core.keys).capture("ses_1")).archive.keys
    log = await core.entries("ses_1")
    loaded = await core.sessions.load("ses_1")
    await archive(core)
    assert set(await keys_of(core, "ses_1")) == {"metadata"} | (set() if place else {"archive"})

    assert await core.sessions.load("ses_1") == loaded
    assert set(await keys_of(core, "ses_1")) == set(ARCHIVED_KINDS)
    again = (await ArchiveStore(core.redis, core.keys).capture("ses_1")).archive.keys
    for kind in set(ARCHIVED_KINDS) - {"blocks", "conversation"}:
        assert again[kind] == content[kind], kind
    assert len(again["conversation"].items) == 1  # all that is old is compressed by now
    assert await core.entries("ses_1") == log


async def test_what_was_written_just_now_stays_in_the_stream(core: Services) -> None:
    core.clock.ms -= HOUR_MS
    await core.archiving.archive("ses_1", idle_seconds=0)
    loaded = await core.sessions.load("ses_1")
    assert await core.redis.xlen(core.keys.conversation("ses_1")) == 18
    assert await core.sessions.load("ses_1") == loaded


async def test_what_stays_shows_the_session_in_listings(core: Services) -> None:
    position = await core.sessions.position("ses_1")
    (before,) = (await core.sessions.list_page(Filter())).sessions
    await archive(core)
    (listed,) = (await core.sessions.list_page(Filter(status="archived"))).sessions
    assert listed.metadata == msgspec.structs.replace(before.metadata, status="archived")
    assert (listed.position, listed.total_messages) == (str(position), 20)
    assert await core.sessions.position("ses_1") == position
    assert await is_archived(core)
    await core.sessions.load("ses_1")
    assert (await core.sessions.list_page(Filter())).sessions == [before]


async def test_archiving_and_restoring_twice_is_as_once(core: Services) -> None:
    first = await core.archiving.archive("ses_1")
    assert first.bytes
    again = await core.archiving.archive("ses_1")
    assert (again.archived, again.position, again.bytes) == (True, first.position, msgspec.UNSET)
    for _ in range(2):
        restored = await core.archiving.restore("ses_1")
        assert (restored.archived, restored.position) == (False, first.position)


async def test_a_reader_with_an_old_position_continues_exactly(core: Services) -> None:
    entries = await core.entries("ses_1")
    await archive(core)
    for after in (START, entries[4].position, entries[14].position):
        assert await core.entries("ses_1", after) == entries[after.offset :]
        await archive(core)
    page = await core.store.log.page("ses_1", entries[-1].position)
    assert (page.raw, page.reset) == ([], None)
    assert await is_archived(core)  # who has all of it does not need it
    page = await core.store.log.page("ses_1", Position("00000000000001", entries[-1].offset))
    assert page.reset == "history-changed"


async def test_a_watcher_goes_on_after_archiving_and_restoring(core: Services) -> None:
    position = await core.sessions.position("ses_1")
    async with core.feeds.session("ses_1", position) as events:
        await archive(core)
        core.feeds._sessions["ses_1"].hear(None)  # something may have been missed
        await core.feeds._sessions["ses_1"].settle()
        assert await is_archived(core)
        await core.messages.append("ses_1", [NewMessage(role="user", content="after")])
        async with asyncio.timeout(10):
            async for batch in events:
                assert [event.name for event in batch] == ["message.append"]
                break


WRITES: dict[str, Callable[[Services], Awaitable[Any]]] = {
    "append": lambda core: core.messages.append("ses_1", [NewMessage(role="user", content="new")]),
    "append again": lambda core: core.messages.append(
        "ses_1", [NewMessage(role="user", id="m1", content="text 1")]
    ),
    "edit": lambda core: core.records.edit("ses_1", "m5", {"content": "new"}),
    "edit with a key": lambda core: core.records.edit(
        "ses_1", "m3", {"content": "edited"}, Request(key="k")
    ),
    "put a part": lambda core: core.records.put_part("ses_1", "m4", "p2", {"type": "text"}),
    "remove": lambda core: core.records.remove("ses_1", "m6"),
    "change": lambda core: core.documents.change("ses_1", "context", {"working_directory": "/w"}),
    "resolve": lambda core: core.conflicts.resolve("ses_1", "26", Choice(take="theirs")),
    "create again": lambda core: core.sessions.create(
        NewSession(session_id="ses_1", title="a title", preferences={"theme": "dark"})
    ),
}


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_to_an_archived_session_brings_it_back_first(
    core: Services, other: Services, write: str
) -> None:
    (conflict,) = await core.conflicts.of_session("ses_1")
    assert conflict.number == "26"
    before = await core.entries("ses_1")
    await archive(core)
    await WRITES[write](other)
    assert not await is_archived(core)
    entries = await core.entries("ses_1")
    assert entries[: len(before)] == before
    known = {"append again", "edit with a key", "create again"}
    assert (len(entries) == len(before)) == (write in known)


async def _backwards(core: Services) -> list[Any]:
    return [entry async for page in core.store.log.back_from("ses_1", 18) for entry in page]


READS: dict[str, Callable[[Services], Awaitable[Any]]] = {
    "load": lambda core: core.sessions.load("ses_1"),
    "page": lambda core: core.messages.page("ses_1"),
    "message": lambda core: core.messages.read("ses_1", "m4"),
    "document": lambda core: core.documents.read("ses_1", "preferences"),
    "operations": lambda core: core.sessions.operations("ses_1", START),
    "conflicts": lambda core: core.conflicts.of_session("ses_1"),
    "backwards": _backwards,
    "one entry": lambda core: core.store.log.entries_at("ses_1", [3, 15]),
}


@pytest.mark.parametrize("read", READS)
async def test_every_reading_is_that_of_a_session_that_never_left(
    core: Services, other: Services, read: str
) -> None:
    before = await READS[read](core)
    await archive(core)
    assert await READS[read](other) == before
    assert not await is_archived(core)


async def test_a_deletion_takes_an_archived_session_too(core: Services) -> None:
    await archive(core)
    await core.sessions.delete("ses_1")
    with pytest.raises(SessionDeleted):
        await core.sessions.load("ses_1")
    with pytest.raises(SessionDeleted):
        await core.archiving.archive("ses_1")


async def test_looking_for_lost_writes_brings_nothing_back(core: Services) -> None:
    entries = await core.entries("ses_1")
    end = entries[-1].position
    await archive(core)
    asked = [entries[3].position, end, Position("00000000000001", end.offset)]
    asked.append(Position("", end.offset + 1))
    assert await core.store.have("ses_1", asked) == [True, True, False, False]
    await core.conflicts.trim()
    assert await core.conflicts.of_all() == []
    assert await is_archived(core)
    assert len(await core.conflicts.of_session("ses_1")) == 1
    assert len(await core.conflicts.of_all()) == 1


async def test_open_conflicts_of_an_archived_session_are_listed_and_decided_as_ever(
    core: Services, other: Services
) -> None:
    await leave_open_conflict(core, "ses_1")
    core.clock.ms += HOUR_MS
    before = await core.conflicts.of_session("ses_1")
    (undecided,) = [record for record in before if record.state == "open"]
    await archive(core)
    assert await other.conflicts.of_all("open") == [undecided]
    assert await other.conflicts.of_session("ses_1") == before
    assert await other.conflicts.read("ses_1", undecided.number) == undecided
    core.clock.ms += DAY_MS
    await core.conflicts.trim()
    assert await other.conflicts.of_all("open") == [undecided]
    assert await is_archived(core), "looking brings nothing back"
    await other.conflicts.resolve("ses_1", undecided.number, Choice(take="theirs"))
    assert not await is_archived(core)
    assert await core.conflicts.of_all("open") == []
    after = await core.conflicts.of_session("ses_1")
    assert [record.number for record in after] == [record.number for record in before]
    core.clock.ms += HOUR_MS
    await archive(core)
    await core.conflicts.trim()
    assert "conflicts" not in await keys_of(core, "ses_1"), "none is open: they go, too"


async def test_damaged_conflicts_of_a_session_are_not_hidden_by_its_archive(
    core: Services,
) -> None:
    damaged = {"what": "conflict", "at": "", "json": "{"}
    await core.redis.xadd(core.keys.conflicts("ses_1"), damaged)
    await archive(core)
    assert "conflicts" in await keys_of(core, "ses_1")


async def test_whether_a_conflict_is_open_is_asked_without_bringing_a_session_back(
    core: Services,
) -> None:
    await archive(core)
    assert not await core.conflicts.is_open("ses_1")
    assert await is_archived(core)


async def test_a_session_in_use_stays(core: Services) -> None:
    core.clock.ms -= HOUR_MS - 299_000
    with pytest.raises(SessionInUse, match="written to 299 s ago"):
        await core.archiving.archive("ses_1")
    presence = PresenceStore(core.redis, core.keys, 60_000)
    await presence.announce("ses_1", "ann", About("laptop", ""))
    with pytest.raises(SessionInUse, match="'ann' is at session"):
        await core.archiving.archive("ses_1", idle_seconds=0)
    await presence.leave("ses_1", "ann")
    lease = LeaseStore(core.redis, core.keys, 60_000)
    held = await lease.ask("acquire", "ses_1", "oc-1", "here")
    with pytest.raises(SessionInUse, match="a turn of 'oc-1' runs"):
        await core.archiving.archive("ses_1", idle_seconds=0)
    await lease.ask("release", "ses_1", "oc-1", "here", held.token)
    assert (await core.archiving.archive("ses_1", idle_seconds=0)).archived
    again = await lease.ask("acquire", "ses_1", "oc-1", "here")
    assert again.token == held.token + 1  # an archive does not make tokens begin anew


async def test_there_must_be_a_session(core: Services) -> None:
    for call in (core.archiving.archive, core.archiving.restore):
        with pytest.raises(NotFound):
            await call("ses_9")


async def test_a_session_that_is_not_whole_stays_as_it_is(core: Services) -> None:
    await core.redis.xdel(core.keys.conversation("ses_1"), "12-0")
    before = await keys_of(core, "ses_1")
    with pytest.raises(StoreDamaged):
        await core.archiving.archive("ses_1")
    assert await keys_of(core, "ses_1") == before


async def test_a_write_in_between_wins(core: Services, other: Services) -> None:
    archives = ArchiveStore(core.redis, core.keys)
    captured = await archives.capture("ses_1")
    await other.messages.append("ses_1", [NewMessage(role="user", id="late", content="new")])
    with pytest.raises(Contended, match="changed while it was archived"):
        await archives.put(
            captured, "redis", b"packed", "2026-01-13T10:30:00.000Z", keep_conflicts=False
        )
    stale = msgspec.structs.replace(await archives.capture("ses_1"), at_ms=1_000)
    with pytest.raises(Contended):
        await archives.put(
            stale, "redis", b"packed", "2026-01-13T10:30:00.000Z", keep_conflicts=False
        )
    assert (await core.messages.read("ses_1", "late")).message.content == "new"


async def test_two_processes_that_load_at_once_get_the_same(
    core: Services, other: Services
) -> None:
    loaded = await core.sessions.load("ses_1")
    for _ in range(5):
        await archive(core)
        async with asyncio.TaskGroup() as group:
            one = group.create_task(core.sessions.load("ses_1"))
            two = group.create_task(other.sessions.load("ses_1"))
        assert (one.result(), two.result()) == (loaded, loaded)


async def test_two_that_archive_at_once_archive_it_once(core: Services, other: Services) -> None:
    loaded = await core.sessions.load("ses_1")
    done = await asyncio.gather(core.archiving.archive("ses_1"), other.archiving.archive("ses_1"))
    assert all(found.archived for found in done)
    assert await core.sessions.load("ses_1") == loaded


class Killed(BaseException):
    """The process is no more."""


class Mortal:
    """Dies before or after the n-th call of anything that changes something."""

    def __init__(self, target: Any, fate: list[int]) -> None:
        self._target = target
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        if name not in {"put", "restore", "write", "release", "remove"}:
            return method

        async def call(*given: Any, **more: Any) -> Any:
            self._tick()
            done = await method(*given, **more)
            self._tick()
            return done

        return call

    def _tick(self) -> None:
        self._fate[0] -= 1
        if self._fate[0] == 0:
            raise Killed


@pytest.mark.parametrize("steps", range(1, 9))
async def test_whoever_is_killed_between_two_steps_loses_nothing(
    core: Services, other: Services, place: str, steps: int
) -> None:
    loaded = await core.sessions.load("ses_1")
    fate = [steps]
    folder = ArchiveFolder(Path(place.removeprefix("file://"))) if place else None
    archives: Any = Mortal(ArchiveStore(core.redis, core.keys), fate)
    files: Any = folder and Mortal(folder, fate)
    mortal = Archiving(core.archiving._around, archives, files)
    try:
        await mortal.archive("ses_1")
        await mortal.restore("ses_1")
    except Killed:
        pass
    else:
        assert steps > 4
    core.store.recall.bring_back = core.archiving.bring_back
    assert await other.sessions.load("ses_1") == loaded
    await archive(other)
    assert await core.sessions.load("ses_1") == loaded
    core.clock.ms += HOUR_MS
    for _ in range(3):
        await core.archiving.sweep()
        core.clock.ms += DAY_MS
        assert await core.sessions.load("ses_1") == loaded
    if place:
        assert files_of(place) == []


async def test_a_damaged_archive_changes_nothing(core: Services, place: str) -> None:
    loaded = await core.sessions.load("ses_1")
    await archive(core)
    if place:
        (file,) = files_of(place)
        good = file.read_bytes()
        file.write_bytes(good[:-1])
    else:
        good = await core.redis.hget(core.keys.archive("ses_1"), "packed")
        await core.redis.hset(core.keys.archive("ses_1"), "packed", good[:-1])
    before = await keys_of(core, "ses_1")
    with pytest.raises(ArchiveDamaged):
        await core.sessions.load("ses_1")
    with pytest.raises(ArchiveDamaged):
        await core.messages.append("ses_1", [NewMessage(role="user", content="new")])
    assert await keys_of(core, "ses_1") == before
    if place:
        file.write_bytes(good)
    else:
        await core.redis.hset(core.keys.archive("ses_1"), "packed", good)
    assert await core.sessions.load("ses_1") == loaded


@pytest.mark.parametrize("place", ["folder"], indirect=True)
async def test_an_older_archive_in_the_place_of_another_is_refused(
    core: Services, place: str
) -> None:
    await archive(core)
    older = files_of(place)[0].read_bytes()
    await core.messages.append("ses_1", [NewMessage(role="user", content="new")])
    core.clock.ms += HOUR_MS
    await archive(core)
    (file,) = (file for file in files_of(place) if file.suffix == ".archive")
    newer = file.read_bytes()
    file.write_bytes(older)
    with pytest.raises(ArchiveDamaged, match="ends at 26, the session at 27"):
        await core.sessions.load("ses_1")
    file.write_bytes(newer)
    assert b'"new"' in await core.sessions.load("ses_1")


@pytest.mark.parametrize("place", ["folder"], indirect=True)
async def test_an_archive_that_is_not_reached_is_read_when_it_is(
    core: Services, place: str, start: StartServices
) -> None:
    loaded = await core.sessions.load("ses_1")
    await archive(core)
    without = await start(instance="without")
    with pytest.raises(ArchiveUnavailable, match="this process knows none"):
        await without.sessions.load("ses_1")
    folder = files_of(place)[0].parent
    folder.rename(folder.with_name("away"))
    with pytest.raises(ArchiveUnavailable, match="No such file"):
        await core.sessions.load("ses_1")
    folder.with_name("away").rename(folder)
    assert await core.sessions.load("ses_1") == loaded


@pytest.mark.parametrize("place", ["folder"], indirect=True)
async def test_a_file_stays_for_a_day_after_its_session_is_back(core: Services, place: str) -> None:
    loaded = await core.sessions.load("ses_1")
    await archive(core)
    stub = await take_copy(core, "ses_1")
    core.clock.ms += 10 * DAY_MS
    assert await core.archiving.sweep() == 0
    await core.sessions.load("ses_1")
    core.clock.ms += DAY_MS - 1
    assert await core.archiving.sweep() == 0

    await roll_back(core, "ses_1", stub)  # Redis forgets that it is back
    core.clock.ms += DAY_MS
    assert await core.archiving.sweep() == 0
    assert await core.sessions.load("ses_1") == loaded
    assert await core.archiving.sweep() == 1
    assert files_of(place) == []


@pytest.mark.parametrize("place", ["folder"], indirect=True)
async def test_the_file_before_goes_when_the_session_is_archived_again(
    core: Services, place: str
) -> None:
    await archive(core)
    await core.messages.append("ses_1", [NewMessage(role="user", id="new", content="new")])
    core.clock.ms += DAY_MS
    await archive(core)
    assert len(files_of(place)) == 2
    assert await core.archiving.sweep() == 1
    assert len(files_of(place)) == 1
    assert (await core.messages.read("ses_1", "new")).message.content == "new"


@pytest.mark.parametrize("place", ["folder"], indirect=True)
async def test_a_redis_that_does_not_have_a_session_leaves_its_file_alone(
    core: Services, place: str
) -> None:
    await archive(core)
    for name in (await keys_of(core, "ses_1")).values():
        await core.redis.delete(name)
    for _ in range(3):
        core.clock.ms += DAY_MS
        assert await core.archiving.sweep() == 0
    await core.sessions.create(NewSession(session_id="ses_1", title="another"))
    for _ in range(3):
        core.clock.ms += DAY_MS
        assert await core.archiving.sweep() == 0
    assert len(files_of(place)) == 1


async def test_a_server_that_went_back_to_before_the_archiving_has_the_session(
    core: Services,
) -> None:
    loaded = await core.sessions.load("ses_1")
    copy = await take_copy(core, "ses_1")
    await archive(core)
    await roll_back(core, "ses_1", copy)
    assert await core.sessions.load("ses_1") == loaded
    await archive(core)
    assert await core.sessions.load("ses_1") == loaded


async def test_an_archive_is_much_smaller_than_the_session(core: Services) -> None:
    found = await core.archiving.archive("ses_1")
    whole = msgspec.json.decode(await core.sessions.load("ses_1"), type=Loaded)
    assert found.bytes is not msgspec.UNSET
    assert 0 < found.bytes < len(msgspec.json.encode(whole))

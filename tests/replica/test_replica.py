"""Copies of sessions on disk: kept within their bound, private, and thrown away when damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sessiond.errors import ReplicaUnavailable, StoreDamaged, TooLarge
from sessiond.model import NewSession
from sessiond.replica import Replica
from sessiond.replica.file import FILE
from sessiond.sync.entry import Entry
from sessiond.sync.position import NO_EPOCH, Position, entry_hash, fold

AT = "2026-01-13T10:30:00.000Z"
MIB = 2**20


class Clock:
    def __init__(self) -> None:
        self.ms = 1000

    def __call__(self) -> int:
        self.ms += 1
        return self.ms


def log(*operations: tuple[str, str, Any]) -> list[Entry]:
    """The entries of a log that begins with a session's creation."""
    entries: list[Entry] = []
    epoch = NO_EPOCH
    for offset, (op, record_id, body) in enumerate(
        [("session.create", "s", NewSession(title="t")), *operations], start=1
    ):
        json = msgspec.json.encode(body)
        epoch = fold(epoch, entry_hash(op, AT, "here.1:1", record_id, json))
        entries.append(Entry(offset, op, AT, "here.1:1", record_id, epoch, json))
    return entries


def messages(count: int, size: int = 10) -> list[Entry]:
    return log(*(("message.append", f"m{number}", "x" * size) for number in range(count)))


async def opened(folder: Path, *, limit_bytes: int = MIB) -> Replica:
    return await Replica.open(folder, limit_bytes=limit_bytes, clock=Clock())


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    replica = await opened(tmp_path / "replica")
    yield replica
    await replica.close()


async def test_what_was_added_is_there_in_the_next_life_with_its_times(tmp_path: Path) -> None:
    entries = messages(5)
    replica = await opened(tmp_path)
    await replica.begin("s", "default")
    await replica.add("s", entries[:2])
    await replica.add("s", entries[2:])
    replica.note_read("s", 77)
    await replica.note_current(88)
    before = replica.copies["s"]
    await replica.close()
    replica = await opened(tmp_path)
    assert replica.copies == {"s": before}
    assert (replica.current_ms, before.current_ms, before.position) == (
        88,
        77,
        entries[-1].position,
    )
    content = await replica.content("s")
    assert content
    outline, found = content
    assert found == entries
    assert (outline.total_messages, outline.position) == (5, entries[-1].position)
    assert outline.documents["metadata"]["title"] == "t"
    await replica.add("s", [])
    await replica.close()


async def test_files_are_readable_for_their_owner_alone(replica: Replica, tmp_path: Path) -> None:
    await replica.begin("s", "default")
    files = list((tmp_path / "replica").iterdir())
    assert files
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert (tmp_path / "replica").stat().st_mode & 0o777 == 0o700


async def test_sessions_that_were_not_used_for_longest_make_room(tmp_path: Path) -> None:
    replica = await opened(tmp_path, limit_bytes=10_000)
    for name in ("old", "used", "new"):
        await replica.begin(name, "default")
        await replica.add(name, messages(1, size=1_500))
    assert replica.use("old")
    await replica.begin("large", "default")
    await replica.add("large", messages(1, size=3_000))
    assert set(replica.copies) == {"old", "new", "large"}
    assert set(replica.dropped) == {"used"}
    assert replica.size == sum(copy.size for copy in replica.copies.values()) <= 10_000
    assert await replica.content("used") is None
    assert not replica.use("used")
    assert await replica.add("used", messages(1)) is None, "it is not kept any more"
    await replica.close()


async def test_a_session_larger_than_all_that_may_be_kept_is_refused(tmp_path: Path) -> None:
    replica = await opened(tmp_path, limit_bytes=10_000)
    await replica.begin("s", "default")
    with pytest.raises(TooLarge):
        await replica.add("s", messages(6, size=2_000))
    await replica.close()


async def test_of_a_deleted_session_only_that_is_left(replica: Replica) -> None:
    entries = log(("message.append", "m1", {}), ("session.delete", "s", {}))
    await replica.begin("s", "default")
    await replica.add("s", entries[:2])
    await replica.add("s", entries[2:])
    content = await replica.content("s")
    assert content
    outline, found = content
    assert outline.deleted
    assert found == entries[2:]


async def test_beginning_anew_drops_what_was_kept(replica: Replica) -> None:
    await replica.begin("s", "default")
    await replica.add("s", messages(3))
    await replica.begin("s", "default")
    assert (replica.copies["s"].position.offset, replica.size) == (0, 0)
    await replica.add("s", messages(1))
    content = await replica.content("s")
    assert content
    assert content[1] == messages(1)


async def test_an_operation_that_cannot_be_applied_is_not_kept(replica: Replica) -> None:
    entries = log(("document.change", "context", {"set": 1}))
    await replica.begin("s", "default")
    await replica.add("s", entries[:1])
    with pytest.raises(StoreDamaged):
        await replica.add("s", entries[1:])
    content = await replica.content("s")
    assert content
    assert content[1] == entries[:1]


@pytest.mark.parametrize("damage", ["zeros", "no database", "another version"])
async def test_what_is_damaged_or_of_another_version_is_made_anew(
    tmp_path: Path, damage: str
) -> None:
    replica = await opened(tmp_path)
    await replica.begin("s", "default")
    await replica.close()
    file = tmp_path / FILE
    match damage:
        case "zeros":
            file.write_bytes(file.read_bytes()[:100] + bytes(8192))
        case "no database":
            file.write_bytes(b"something else" * 1000)
        case _:
            with sqlite3.connect(file) as connection:
                connection.execute("PRAGMA user_version=99")
            connection.close()
    replica = await opened(tmp_path)
    assert replica.copies == {}
    await replica.begin("s", "default")
    await replica.add("s", messages(1))
    assert replica.copies["s"].position.offset == 2
    await replica.close()


async def test_damage_that_shows_later_throws_all_away_and_it_goes_on(replica: Replica) -> None:
    await replica.begin("s", "default")
    await replica.add("s", messages(1))
    await replica._do(
        lambda: replica._file._connection.execute("UPDATE entries SET entries = x'ff'")
    )
    with pytest.raises(ReplicaUnavailable):
        await replica.content("s")
    assert replica.copies == {}
    await replica.begin("s", "default")
    await replica.add("s", messages(2))
    assert replica.copies["s"].position == messages(2)[-1].position


async def test_another_process_on_the_folder_is_told_so_and_harms_nothing(
    replica: Replica, tmp_path: Path
) -> None:
    await replica.begin("s", "default")
    with pytest.raises(ReplicaUnavailable):
        await opened(tmp_path / "replica")
    await replica.add("s", messages(1))
    assert await replica.content("s")


async def test_a_disk_that_fails_for_a_while_costs_nothing_but_that_while(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = messages(3)
    await replica.begin("s", "default")
    await replica.add("s", entries[:2])

    def fail(*_arguments: Any, **_more: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(replica._file, "put", fail)
        with pytest.raises(ReplicaUnavailable):
            await replica.add("s", entries[2:])
    assert replica.copies["s"].position == Position(entries[1].epoch, 2)
    await replica.add("s", entries[2:])
    content = await replica.content("s")
    assert content
    assert content[1] == entries
    assert content[0].total_messages == 3


async def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "replica"
    folder.mkdir(mode=0o700)
    (folder / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReplicaUnavailable):
        await opened(folder)
    assert not (tmp_path / "elsewhere").exists()

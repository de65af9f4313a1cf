from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from sessiond.errors import JournalUnavailable
from sessiond.journal import Journal, JournalOptions
from tests.journal.support import entries_of
from tests.simulation.disk import SECTOR, Disk, torn
from tests.simulation.loop import VirtualLoop, run_virtually


def on_disk(folder: Path, seed: int, body: Callable[[Disk], Awaitable[None]]) -> None:
    async def main(_: VirtualLoop) -> None:
        await body(Disk(folder, Random(seed)))

    run_virtually(main)


async def opened(disk: Disk) -> Journal:
    options = JournalOptions(connect=disk.connect, executor=disk.start_executor)
    return await Journal.open(disk.folder, options)


async def names(journal: Journal) -> list[bytes]:
    return [operation for entry in await entries_of(journal) for operation in entry.operations]


@pytest.mark.parametrize("seed", range(40))
def test_what_was_synced_survives_crash_after_crash(tmp_path: Path, seed: int) -> None:
    async def body(disk: Disk) -> None:
        synced: list[bytes] = []
        for life in range(3):
            journal = await opened(disk)
            for number in range(4):
                synced.append(b"%d-%d" % (life, number))
                await journal.begin("ses", [synced[-1]])
            journal.begin("ses", [b"%d-under-way" % life])
            disk.crash()
            found = [name for name in await names(await opened(disk)) if b"way" not in name]
            assert found == synced
            disk.crash()

    on_disk(tmp_path / "disk", seed, body)


def test_what_was_under_way_is_there_or_not(tmp_path: Path) -> None:
    there: list[bool] = []

    async def body(disk: Disk) -> None:
        journal = await opened(disk)
        await journal.begin("ses", [b"before"])
        journal.begin("ses", [b"under way"])
        for _ in range(2):  # it is handed over
            await asyncio.sleep(0)
        disk.crash()
        there.append(b"under way" in await names(await opened(disk)))

    for seed in range(20):
        on_disk(tmp_path / f"disk{seed}", seed, body)
    assert set(there) == {True, False}


def test_a_full_disk_takes_nothing_until_there_is_room(tmp_path: Path) -> None:
    async def body(disk: Disk) -> None:
        journal = await opened(disk)
        disk.is_full = True
        with pytest.raises(JournalUnavailable):
            await journal.begin("ses", [b"refused"])
        disk.is_full = False
        await journal.begin("ses", [b"taken"])
        assert await names(journal) == [b"taken"]

    on_disk(tmp_path / "disk", 1, body)


def test_a_torn_write_has_whole_sectors_of_old_and_new() -> None:
    path, before, after = Path("f"), b"a" * 5 * SECTOR, b"b" * 7 * SECTOR
    found = {torn({path: before}, {path: after}, Random(seed))[path] for seed in range(200)}
    assert {before, after} <= found
    assert len(found) > 20
    for content in found:
        sectors = {content[place : place + SECTOR] for place in range(0, len(content), SECTOR)}
        assert sectors <= {b"a" * SECTOR, b"b" * SECTOR, bytes(SECTOR)}

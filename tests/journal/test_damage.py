"""Bits flip, sectors turn to zeros, files end early: it is noticed or does no harm, never an error.

The journal that is damaged holds small entries and large ones, confirmed and not, of two
incarnations; part of it lies in the file, part in the log, as after a SIGKILL.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sessiond.errors import JournalUnavailable
from sessiond.journal import Entry, Journal, Span
from sessiond.journal.ledger import Ledger
from sessiond.journal.opening import CURRENT, REPORT
from sessiond.journal.watermark import FILE as WATERMARK
from tests.journal.support import as_killed, at, entries_of, pending_of

FILES = ("journal.db", "journal.db-wal")
ENTRIES = 60
MOST_LOST = 4
"""Entries that one damaged page can take along: those that begin on it, or go on there."""


async def fill(folder: Path) -> list[Entry]:
    journal = await Journal.open(folder)
    chance = Random(1)
    for number in range(ENTRIES):
        if number == ENTRIES // 3:
            assert await journal.seen((await journal.status()).incarnation, 10_000)
        if number == ENTRIES // 2:
            await journal._thread.ask(Ledger.checkpoint)
        size = chance.choice((100, 1_000, 1_000, 10_000))
        operations = [b"operation %d " % number + chance.randbytes(size), b"another"]
        span = await journal.append(f"ses_{number % 3}", operations, key=f"key-{number}")
        if number % 2:
            journal.confirm(span, at(number))
    written = await entries_of(journal)
    as_killed(folder, folder.with_name("killed"))
    await journal.close()
    return written


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Entry]]:
    folder = tmp_path_factory.mktemp("damage") / "journal"
    written = asyncio.run(fill(folder))
    return folder.with_name("killed"), written


def damage(path: Path, how: str, chance: Random) -> None:
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if how == "flip":
        content[place] ^= 1 << chance.randrange(8)
    elif how == "zero a sector":
        start = place - place % 512
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    elif how == "garble a page":
        start = place - place % 4096
        content[start : start + 4096] = chance.randbytes(len(content[start : start + 4096]))
    else:
        del content[place:]
    path.write_bytes(content)


async def lost_after(folder: Path, written: list[Entry]) -> int:
    """Open a damaged journal and hold it to all that is promised; returns the entries it lost."""
    journal = await Journal.open(folder)
    found = await entries_of(journal)
    assert (await journal.verify()).faults == []
    by_span = {entry.span: entry for entry in written}
    for entry in found:
        original = by_span[entry.span]
        assert entry.operations == original.operations, "nothing is there that nobody wrote"
        assert entry.position in (None, original.position)
    numbers = [written.index(by_span[entry.span]) for entry in found]
    assert numbers == sorted(numbers)
    left = {entry.span for entry in found}
    waiting = {entry.span for entry in written if entry.position is None} & left
    assert {entry.span for entry in await pending_of(journal)} >= waiting
    assert left == set(by_span) or journal.recoveries, "damage that loses anything is noticed"
    if journal.recoveries:
        await _check_recovery(journal, folder, written, found)
    await journal.close()
    again = await Journal.open(folder)
    assert again.recoveries == [], "what was made anew is whole"
    await again.close()
    return len(written) - len(found)


async def _check_recovery(
    journal: Journal, folder: Path, written: list[Entry], found: list[Entry]
) -> None:
    (recovery,) = journal.recoveries
    assert recovery.findings
    assert recovery.saved == len(found)
    assert recovery.incarnation not in {entry.span.incarnation for entry in written}
    assert (Path(recovery.quarantined) / FILES[0]).exists()
    assert (folder / CURRENT / REPORT).exists()
    assert await journal.append("ses_0", [b"new"]) == Span(recovery.incarnation, 1, 1)
    if written[0] in found:
        assert await journal.append("ses_0", [b"again"], key="key-0") == written[0].span


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["flip", "zero a sector", "garble a page"])
async def test_damage_is_noticed_or_harmless_and_the_rest_is_saved(
    killed: tuple[Path, list[Entry]], tmp_path: Path, file: str, how: str
) -> None:
    source, written = killed
    for seed in range(25):
        folder = as_killed(source, tmp_path / str(seed))
        damage(folder / CURRENT / file, how, Random(f"{file} {how} {seed}"))
        assert await lost_after(folder, written) <= MOST_LOST
        shutil.rmtree(folder)


async def test_a_break_within_the_log_is_noticed_without_a_watermark_too(
    killed: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    source, written = killed
    size = (source / CURRENT / "journal.db-wal").stat().st_size
    for part in range(10):
        folder = as_killed(source, tmp_path / str(part))
        (folder / WATERMARK).unlink()
        with (folder / CURRENT / "journal.db-wal").open("r+b") as log:
            log.seek(size * part // 20 + 24)
            log.write(b"\xaa\xaa\xaa")
        assert await lost_after(folder, written) <= MOST_LOST
        shutil.rmtree(folder)


@pytest.mark.parametrize("file", FILES)
async def test_a_file_that_ends_early_is_noticed_and_the_rest_is_saved(
    killed: tuple[Path, list[Entry]], tmp_path: Path, file: str
) -> None:
    source, written = killed
    in_the_other = ENTRIES // 2 - 2  # entries that were never in this file
    for seed in range(25):
        folder = as_killed(source, tmp_path / str(seed))
        damage(folder / CURRENT / file, "cut off", Random(f"{file} {seed}"))
        assert await lost_after(folder, written) <= ENTRIES - in_the_other
        shutil.rmtree(folder)


@pytest.mark.parametrize("file", FILES)
async def test_a_file_that_is_empty_or_gone_takes_only_itself_along(
    killed: tuple[Path, list[Entry]], tmp_path: Path, file: str
) -> None:
    source, written = killed
    for name in ("empty", "gone"):
        folder = as_killed(source, tmp_path / name)
        (folder / CURRENT / file).unlink()
        if name == "empty":
            (folder / CURRENT / file).touch()
        journal = await Journal.open(folder)
        found = await entries_of(journal)
        assert [recovery.saved for recovery in journal.recoveries] == [len(found)]
        assert len(written) - len(found) <= ENTRIES // 2 + 2
        await journal.close()


async def run(journal: Journal, sql: str) -> None:
    await journal._thread.ask(lambda ledger: ledger.connection.execute(sql).fetchall())


async def test_damage_that_shows_while_the_journal_is_open_is_repaired_in_place(
    tmp_path: Path,
) -> None:
    journal = await Journal.open(tmp_path / "j")
    spans = [await journal.append("ses_0", [b"x" * 3_000]) for _ in range(200)]
    await run(journal, "PRAGMA wal_checkpoint(TRUNCATE)")
    path = tmp_path / "j" / CURRENT / FILES[0]
    content = bytearray(path.read_bytes())
    content[300 * 1024 : 308 * 1024] = bytes(8 * 1024)
    path.write_bytes(content)
    await run(journal, "PRAGMA shrink_memory")
    with pytest.raises(JournalUnavailable):
        await entries_of(journal)
    (recovery,) = journal.recoveries
    left = await entries_of(journal)
    assert len(spans) - MOST_LOST <= len(left) < len(spans)
    assert (await journal.append("ses_0", [b"new"])).incarnation == recovery.incarnation
    await journal.close()


@pytest.mark.parametrize("crash_at", range(6))
async def test_a_crash_while_damage_is_repaired_loses_nothing_more(
    killed: tuple[Path, list[Entry]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crash_at: int,
) -> None:
    """The repair ends at one of its steps, as if the process had: the next start goes on."""
    source, written = killed
    folder = as_killed(source, tmp_path / "j")
    damage(folder / CURRENT / FILES[0], "zero a sector", Random(2))
    steps = iter(range(100))
    originals: dict[str, Any] = {
        name: getattr(Path, name) for name in ("rename", "mkdir", "write_bytes")
    }

    def step(name: str) -> Any:
        def run(path: Path, *arguments: Any, **options: Any) -> Any:
            if folder in path.parents and next(steps) == crash_at:
                raise OSError(f"crashed at {name}")
            return originals[name](path, *arguments, **options)

        return run

    with monkeypatch.context() as patched:
        for name in originals:
            patched.setattr(Path, name, step(name))
        try:
            await (await Journal.open(folder)).close()
        except JournalUnavailable:
            assert crash_at < 5
    journal = await Journal.open(folder)
    found = await entries_of(journal)
    assert len(written) - MOST_LOST <= len(found)
    assert (await journal.status()).incarnation not in {entry.span.incarnation for entry in written}
    assert list(folder.glob("damaged-*"))
    await journal.close()
    again = await Journal.open(folder)
    assert again.recoveries == []
    await again.close()

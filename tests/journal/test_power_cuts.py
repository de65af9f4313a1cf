"""Power fails at any moment, and what was not synced is lost, torn or reordered: twice in a row."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from random import Random

import pytest
from msgspec import Struct, field

from sessiond.errors import JournalUnavailable
from sessiond.journal import Entry, Journal, JournalOptions, Span, ledger
from sessiond.journal.watermark import FILE as WATERMARK
from sessiond.journal.watermark import Mark, encode_mark
from sessiond.sync.position import Position
from tests.journal.disk import Event, RecordingDisk, after_power_cut

SEEDS = range(34)
CUTS = 3
"""Each seed is a journal's life, cut at as many moments; each rest lives on, and is cut again."""

_FULL = "PRAGMA synchronous=FULL"
_KEPT_BYTES = 24 * 1024


class Written(Struct):
    """What one writer wrote: every group that it ever handed over, and which were acknowledged."""

    attempted: list[bytes] = field(default_factory=list)
    acknowledged: list[bytes] = field(default_factory=list)
    confirmed: set[bytes] = field(default_factory=set)


class Trial:
    """One journal through its lives, and what must hold after each."""

    def __init__(self, folder: Path, seed: int, replaced: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.chance = Random(seed)
        self.replaced = replaced or {}
        self.written: dict[str, Written] = {}
        self.marks: list[Span] = []

    async def live(self, name: str) -> tuple[dict[str, bytes], list[Event]]:
        """Open the journal on a recording disk, write and confirm; return the record."""
        current = self.folder / name / "current"
        before = {path.name: path.read_bytes() for path in current.glob("journal.db*")}
        disk = RecordingDisk(self.replaced)
        journal = await self._open(name, disk)
        await self.check(journal)
        if self.chance.random() < 0.7:  # Redis is there; else a new incarnation begins
            status = await journal.status()
            assert not await journal.seen(status.incarnation, status.last_sequence)
        writers = range(self.chance.randint(1, 5))
        await asyncio.gather(*(self._write(journal, disk, f"ses_{writer}") for writer in writers))
        events = list(disk.events)
        await journal.close()
        return before, events if self.chance.random() < 0.8 else list(disk.events)

    async def _open(self, name: str, disk: RecordingDisk | None) -> Journal:
        options = JournalOptions(kept_bytes=_KEPT_BYTES)
        if disk:
            options = JournalOptions(kept_bytes=_KEPT_BYTES, connect=disk.connect)
        return await Journal.open(self.folder / name, options)

    async def _write(self, journal: Journal, disk: RecordingDisk, session_id: str) -> None:
        chance = Random(self.chance.random())
        written = self.written.setdefault(session_id, Written())
        for _ in range(chance.randint(1, 12)):
            number = len(written.attempted)
            size = chance.choice((10, 300, 2_000, 9_000))
            body = b"%s %d " % (session_id.encode(), number) + chance.randbytes(size)
            written.attempted.append(body)
            span = await journal.append(session_id, [body, b"its end"])
            disk.tell(("acknowledged", session_id, body, span))
            if chance.random() < 0.6:
                journal.confirm(span, Position("0" * 14, number + 1))
                disk.tell(("confirmed", session_id, body, span))

    def cut(self, target: str, life: tuple[dict[str, bytes], list[Event]]) -> None:
        """Let power fail somewhere in a life; what is left becomes the journal `target`."""
        before, events = life
        moment = self.chance.randint(0, len(events))
        files = after_power_cut(before, events[:moment], self.chance)
        current = self.folder / target / "current"
        current.mkdir(mode=0o700, parents=True)
        current.parent.chmod(0o700)
        for file, content in files.items():
            (current / file).write_bytes(content)
        for event in events[:moment]:
            if event.what == "told":
                what, session_id, body, span = event.told
                written = self.written[session_id]
                if what == "acknowledged":
                    written.acknowledged.append(body)
                    self.marks.append(span)
                else:
                    written.confirmed.add(body)
        if self.marks and self.chance.random() < 0.7:
            last = self.marks[-1]
            highest = max(span.last for span in self.marks if span.incarnation == last.incarnation)
            mark = encode_mark(Mark(last.incarnation, highest))
            (self.folder / target / WATERMARK).write_bytes(mark)

    async def check(self, journal: Journal) -> None:
        """Everything acknowledged is there, nothing else than what was written, and in order."""
        assert journal.recoveries == []
        found: dict[str, list[Entry]] = {}
        place = ("", 0)
        async for page in journal._pages(ledger.Ledger.all_after, 0):
            for entry in page:
                assert entry.span.incarnation != place[0] or entry.span.first > place[1]
                place = (entry.span.incarnation, entry.span.last)
                found.setdefault(entry.session_id, []).append(entry)
        status = await journal.status()
        assert status.incarnation != place[0] or status.last_sequence >= place[1]
        assert (await journal.verify()).faults == []
        assert set(found) <= set(self.written)
        for session_id, written in self.written.items():
            entries = found.get(session_id, [])
            bodies = [entry.operations[0] for entry in entries]
            assert all(entry.operations[1:] == [b"its end"] for entry in entries)
            rest = iter(written.attempted)
            assert all(body in rest for body in bodies), "in order, and only what was written"
            for body in written.acknowledged:
                assert body in bodies or body in written.confirmed, "acknowledged and lost"

    async def check_again(self, name: str) -> None:
        journal = await self._open(name, None)
        await self.check(journal)
        await journal.close()


@pytest.fixture(autouse=True)
def short_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints come often, so that power fails within them too."""
    monkeypatch.setattr(ledger, "_LOG_BYTES", 40 * 1024)


async def assert_power_cuts_lose_nothing(
    folder: Path, seed: int, replaced: dict[str, str] | None = None
) -> None:
    """Let power fail in a life, and again in the next one."""
    base = Trial(folder, seed, replaced)
    await (await base._open("first", None)).close()
    life = await base.live("first")
    for cut in range(CUTS):
        trial = Trial(folder, 1000 * seed + cut, replaced)
        trial.written = {
            name: Written(attempted=list(written.attempted))
            for name, written in base.written.items()
        }
        trial.cut(f"second-{cut}", life)
        second = await trial.live(f"second-{cut}")
        trial.cut(f"third-{cut}", second)
        await trial.check_again(f"third-{cut}")
    shutil.rmtree(folder)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_power_cut_loses_nothing_acknowledged_and_adds_nothing(
    tmp_path: Path, seed: int
) -> None:
    await assert_power_cuts_lose_nothing(tmp_path / "j", seed)


@pytest.mark.parametrize("seed", range(20))
async def test_a_sync_that_fails_acknowledges_nothing_and_the_next_one_counts(
    tmp_path: Path, seed: int
) -> None:
    await (await Journal.open(tmp_path / "j")).close()
    current = tmp_path / "j" / "current"
    before = {path.name: path.read_bytes() for path in current.glob("journal.db*")}
    disk = RecordingDisk()
    journal = await Journal.open(tmp_path / "j", JournalOptions(connect=disk.connect))
    spans = [await journal.append("ses_1", [b"1" * 5_000])]
    disk.failing = True
    for _ in range(3):
        with pytest.raises(JournalUnavailable):
            await journal.append("ses_1", [b"refused" * 900])
    disk.failing = False
    spans.append(await journal.append("ses_1", [b"2" * 100]))
    files = after_power_cut(before, list(disk.events), Random(seed))
    await journal.close()
    for name, content in files.items():
        (current / name).write_bytes(content)
    journal = await Journal.open(tmp_path / "j")
    assert journal.recoveries == []
    entries = [entry async for page in journal.pending() for entry in page]
    assert [entry.span for entry in entries] == spans
    assert [entry.operations[0][:1] for entry in entries] == [b"1", b"2"]
    await journal.close()


@pytest.mark.parametrize("planted", ["PRAGMA synchronous=OFF", "PRAGMA synchronous=NORMAL"])
async def test_the_trials_notice_a_journal_that_does_not_sync(tmp_path: Path, planted: str) -> None:
    caught = 0
    for seed in range(4):
        try:
            await assert_power_cuts_lose_nothing(tmp_path / str(seed), seed, {_FULL: planted})
        except AssertionError:
            caught += 1
    assert caught

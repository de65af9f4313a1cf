"""What the journal's tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

from sessiond.journal import Entry, Journal
from sessiond.journal.ledger import Ledger
from sessiond.sync.position import Position


def at(offset: int) -> Position:
    return Position("0" * 14, offset)


async def entries_of(journal: Journal) -> list[Entry]:
    """Everything that lies in the journal, in order."""
    return [entry async for page in journal._pages(Ledger.all_after, 0) for entry in page]


async def pending_of(journal: Journal) -> list[Entry]:
    return [entry async for page in journal.pending() for entry in page]


async def of_session(journal: Journal, session_id: str) -> list[Entry]:
    return [entry async for page in journal.of_session(session_id) for entry in page]


def as_killed(journal: Path, target: Path) -> Path:
    """Copy a journal's files as they lie there now: what a SIGKILL at this moment leaves."""
    shutil.copytree(journal, target)
    return target

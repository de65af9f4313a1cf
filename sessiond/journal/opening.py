"""Opening a journal: whatever lies there, what can be read of it is in what is returned.

    current/       the journal that is in use: journal.db and its log
    watermark      how far it was written (see `watermark`)
    damaged-…/     journals that were damaged, as they were found, each with the date
    building/      one that is being built; complete/: one that is to take its place
    aside/         what is current, for the moment in which SQLite closes it

A new journal is complete and synced before the damaged one is moved away, so that a crash at any
moment leaves one of them to begin with.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from sessiond.journal import carving
from sessiond.journal.connection import (
    FILE,
    LOG,
    PAGE_BYTES,
    Connection,
    is_damage,
    open_file,
    unavailable,
)
from sessiond.journal.identity import DAMAGED, NEW
from sessiond.journal.index import Index
from sessiond.journal.options import JournalOptions
from sessiond.journal.reading import Contents, read_contents
from sessiond.journal.rebuilding import Saved, rebuild
from sessiond.journal.reports import Recovery
from sessiond.journal.watermark import Mark

CURRENT = "current"
REPORT = "recovery.json"
_BUILDING, _COMPLETE, _ASIDE = "building", "complete", "aside"
_MAGIC = b"SQLite format 3\0"


class Opened(Struct, frozen=True):
    """A journal that can be used, and what had to be done for that.

    `is_new`: it was just made, and so was its identity.
    """

    connection: Connection
    index: Index
    is_new: bool
    recovery: Recovery | None


class Broken(Struct, frozen=True):
    """A journal that is open and turned out to be damaged: its connection, and how."""

    connection: Connection
    finding: str


def open_journal(
    folder: Path, options: JournalOptions, mark: Mark | None, broken: Broken | None = None
) -> Opened:
    """Open the journal of a folder that this process has locked, or make one.

    Args:
        folder: where it lies.
        options: its surroundings.
        mark: how far the watermark says that it was written.
        broken: it is open already, and damaged; closed when this returns.

    Raises:
        JournalUnavailable: the disk is full, or fails. Damage is never an error.
    """
    try:
        _finish(folder)
        return _open(folder, options, mark, broken)
    except (OSError, sqlite3.Error) as error:
        raise unavailable(error) from error


def _open(
    folder: Path, options: JournalOptions, mark: Mark | None, broken: Broken | None
) -> Opened:
    current = folder / CURRENT
    log = _bytes_of(current / LOG)
    findings, connection = [], None
    if broken:
        findings, connection = [broken.finding], broken.connection
    elif current.exists():
        findings += _findings_outside(current, log)
    elif mark and mark.sequence:
        findings = ["the journal's files are gone"]
    if current.exists() and not findings:
        connection, contents = _look_inside(current, log, options, findings)
        if contents and not findings:
            findings += _findings_of(mark, contents)
        if connection and contents and not findings:
            return Opened(connection, contents.index, is_new=False, recovery=None)
    try:
        report = _replace(
            folder, options, connection=connection, log=log, findings=findings, mark=mark
        )
    except Exception:
        if connection and not broken:
            _close_untouched(folder, connection)
        raise
    connection = open_file(current / FILE, options.connect)
    return Opened(connection, read_contents(connection).index, is_new=True, recovery=report)


def _findings_outside(current: Path, log: bytes) -> Iterator[str]:
    """Look at what SQLite would take for an empty database, and so throw away."""
    with suppress(FileNotFoundError), (current / FILE).open("rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            if carving.lost_its_header(log):
                yield "the write-ahead log has lost its header"
            return
    yield "the file is missing, or is no database"


def _look_inside(
    current: Path, log: bytes, options: JournalOptions, findings: list[str]
) -> tuple[Connection | None, Contents | None]:
    connection = None
    try:
        connection = open_file(current / FILE, options.connect)
        frames = carving.frames_of(log, PAGE_BYTES)
        valid = _valid_frames(connection, len(frames))
        if carving.cuts_a_commit(frames, valid):
            findings.append(f"the write-ahead log is broken behind its frame {valid}")
        contents = read_contents(connection)
    except sqlite3.Error as error:
        if not is_damage(error) and getattr(error, "sqlite_errorcode", 1) != sqlite3.SQLITE_ERROR:
            if connection:
                _close_untouched(current.parent, connection)
            raise
        findings.append(f"SQLite cannot read it: {error}")
        return connection, None
    findings += contents.faults
    return connection, contents


def _valid_frames(connection: Connection, present: int) -> int:
    """Return how far SQLite trusts the log; all of it when a full disk keeps it from telling."""
    try:
        return max(int(connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]), 0)
    except sqlite3.Error as error:
        if is_damage(error):
            raise
        return present


def _findings_of(mark: Mark | None, contents: Contents) -> Iterator[str]:
    """Compare the journal with its watermark."""
    index = contents.index
    if mark is None:
        return
    if mark.incarnation == index.identity.incarnation:
        if mark.sequence > index.last_sequence:
            yield (
                f"it ends at sequence {index.last_sequence} and was written up to "
                f"{mark.sequence}: it is an older copy, or the end of its log is lost"
            )
    elif all(mark.incarnation != identity.incarnation for identity in index.identities):
        yield "it does not know the identity under which it was written last: it is an older copy"


def _replace(
    folder: Path,
    options: JournalOptions,
    *,
    connection: Connection | None,
    log: bytes,
    findings: list[str],
    mark: Mark | None,
) -> Recovery | None:
    """Put a new journal in the place of one that is damaged, or of none."""
    current, building, complete = (folder / name for name in (CURRENT, _BUILDING, _COMPLETE))
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(mode=0o700)
    file = _bytes_of(current / FILE)
    reason = DAMAGED if findings else NEW
    saved = rebuild(building / FILE, options, file=file, log=log, reason=reason, mark=mark)
    quarantine = _quarantine(folder, options.clock()) if current.exists() else None
    report = _report(findings, quarantine, saved) if findings else None
    if report:
        (building / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    _sync(building)
    building.rename(complete)
    if quarantine:
        current.rename(quarantine)
        _sync(folder)
        if connection:  # moved away first: so SQLite leaves its log as it is
            with suppress(sqlite3.Error):
                connection.close()
        if log and not (quarantine / LOG).exists():
            (quarantine / LOG).write_bytes(log)
    _finish(folder)
    return report


def _close_untouched(folder: Path, connection: Connection) -> None:
    """Close a journal whose log may be worth more than SQLite believes.

    SQLite empties a log when it closes its file, but not when the file was moved meanwhile.
    """
    current, aside = folder / CURRENT, folder / _ASIDE
    if current.exists():
        current.rename(aside)
    with suppress(sqlite3.Error):
        connection.close()
    if aside.exists():
        aside.rename(current)


def _report(findings: list[str], quarantine: Path | None, saved: Saved) -> Recovery:
    return Recovery(
        findings=findings,
        quarantined=str(quarantine or ""),
        saved=saved.entries,
        saved_pending=saved.pending,
        unreadable=saved.unreadable,
        missing=saved.missing,
        incarnation=saved.incarnation,
    )


def _quarantine(folder: Path, now_ms: int) -> Path:
    """Return a name for damaged files that nothing has yet."""
    date = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    names = (folder / f"damaged-{date}{f'-{twin}' if twin else ''}" for twin in range(1_000_000))
    return next(name for name in names if not name.exists())


def _finish(folder: Path) -> None:
    """Put things in their places: what a crash left beside them, or what was just made."""
    current, complete, aside = (folder / name for name in (CURRENT, _COMPLETE, _ASIDE))
    if aside.exists() and not current.exists():
        aside.rename(current)
    if not complete.exists():
        return
    if current.exists():  # a crash came before the damaged one was moved: it is looked at again
        shutil.rmtree(complete)
        return
    _sync(folder)
    complete.rename(current)
    _sync(folder)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _sync(folder: Path) -> None:
    """Make the names in a folder durable, and the small files."""
    for name in (folder, *(path for path in folder.iterdir() if path.is_file())):
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

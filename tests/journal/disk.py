"""A disk that loses power: SQLite runs on it for real, and every write and sync is on record.

What was written since a file's last sync may be lost, whole or in part, in sectors and in any
order: that is what the record is cut for.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import apsw
from msgspec import Struct

from sessiond.journal.record import Row

SECTOR = 512
_names = itertools.count()


class Event(Struct, frozen=True):
    """Something that happened to a file, or (`told`) that a writer was told of."""

    what: str
    name: str = ""
    offset: int = 0
    data: bytes = b""
    told: Any = None


class RecordingDisk(apsw.VFS):
    """Files beside each other in one folder; `replaced` says which statements are run instead."""

    def __init__(self, replaced: dict[str, str] | None = None) -> None:
        self.events: list[Event] = []
        self.name = f"recorded-{next(_names)}"
        self.replaced = replaced or {}
        self.failing = False
        """Whether syncs fail; what was written before may be on the disk, or not."""
        super().__init__(self.name, base="unix")

    def tell(self, what: Any) -> None:
        self.events.append(Event("told", told=what))

    def connect(self, path: Path) -> RecordedConnection:
        return RecordedConnection(apsw.Connection(str(path), vfs=self.name), self.replaced)

    def xOpen(self, name: Any, flags: list[int]) -> RecordedFile:  # noqa: N802
        return RecordedFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.events.append(Event("delete", Path(filename).name))
        super().xDelete(filename, syncdir)


class RecordedFile(apsw.VFSFile):
    def __init__(self, disk: RecordingDisk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._events = disk.events
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path or "").name  # temporary files have none
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._events.append(Event("write", self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._events.append(Event("truncate", self._name, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._disk.failing:
            raise apsw.IOError("planted")
        super().xSync(flags)
        self._events.append(Event("sync", self._name))


class RecordedConnection:
    """What the journal needs of a connection, with the errors of sqlite3."""

    def __init__(self, connection: apsw.Connection, replaced: dict[str, str]) -> None:
        self._connection = connection
        self._replaced = replaced

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: Row = (), /) -> Rows:
        try:
            return Rows(list(self._connection.execute(self._replaced.get(sql, sql), parameters)))
        except apsw.Error as error:
            translated = sqlite3.DatabaseError(str(error))
            translated.sqlite_errorcode = getattr(error, "extendedresult", 1)
            raise translated from error

    def close(self) -> None:
        self._connection.close()


class Rows:
    def __init__(self, rows: list[Any]) -> None:
        self._rows = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def close(self) -> None:
        self._rows = iter(())


def after_power_cut(
    before: dict[str, bytes], events: list[Event], chance: Random
) -> dict[str, bytes]:
    """Return what the files hold when power fails right after those events."""
    files = {name: _File(content) for name, content in before.items()}
    for event in events:
        if event.what == "delete":
            if chance.random() < 0.5:  # the folder may not be on the disk yet
                files.pop(event.name, None)
            continue
        if event.what != "told":
            file = files.setdefault(event.name, _File())
            file.sync() if event.what == "sync" else file.unsynced.append(event)
    for file in files.values():
        file.lose_power(chance)
    return {name: bytes(file.content) for name, file in files.items()}


class _File:
    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.unsynced: list[Event] = []

    def sync(self) -> None:
        for event in self.unsynced:
            self._apply(event)
        self.unsynced = []

    def lose_power(self, chance: Random) -> None:
        sectors = [piece for event in self.unsynced for piece in _sectors(event)]
        how = chance.choice(("all", "none", "in order", "in any order"))
        if how == "in order":
            sectors = sectors[: chance.randint(0, len(sectors))]
        elif how == "in any order":
            kept = chance.random()
            sectors = [piece for piece in sectors if chance.random() < kept]
        for event in [] if how == "none" else sectors:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        if event.what == "truncate":
            del self.content[event.offset :]
            return
        missing = event.offset - len(self.content)
        if missing > 0:
            self.content += bytes(missing)
        self.content[event.offset : event.offset + len(event.data)] = event.data


def _sectors(event: Event) -> Iterator[Event]:
    """Split a write at the boundaries of sectors: each is written whole or not at all."""
    if event.what == "truncate":
        yield event
        return
    start = 0
    while start < len(event.data):
        end = start + SECTOR - (event.offset + start) % SECTOR
        yield Event("write", event.name, event.offset + start, event.data[start:end])
        start = end

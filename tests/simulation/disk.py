"""The disk below a sidecar's journal: slow, full, or torn in the middle of a write."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from sessiond.journal.connection import Connection, Cursor, connect
from sessiond.journal.executor import Work
from sessiond.journal.record import Row

Answer = TypeVar("Answer")

SECTOR = 512
_USUAL_SECONDS = (0.0005, 0.004)
_GROWS = ("INSERT", "CREATE", "COMMIT")

Files = dict[Path, bytes]


class Disk:
    """One machine's disk, across the lives of its sidecar. Files lie in a real folder.

    Args:
        folder: where; memory, best of all.
        random: how long syncs take, and what a power cut leaves.

    Attributes:
        seconds: least and longest time of a transaction.
        is_full: whether nothing can grow.
    """

    def __init__(self, folder: Path, random: Random) -> None:
        self.seconds = _USUAL_SECONDS
        self.is_full = False
        self.executor: DiskExecutor | None = None
        self._pool: DiskPool | None = None
        self._root, self._random = folder, random
        self._lives = 1
        self.folder.mkdir(parents=True)

    @property
    def folder(self) -> Path:
        """Where this life's journal lies."""
        return self._root / f"life{self._lives}"

    @property
    def is_busy(self) -> bool:
        """Whether a transaction is under way."""
        return self.executor is not None and self.executor.is_busy

    def delay(self) -> float:
        """Return how long a transaction takes now."""
        return self._random.uniform(*self.seconds)

    def start_executor(self) -> DiskExecutor:
        """Return what a new life's journal works with."""
        self.executor = DiskExecutor(self)
        return self.executor

    def start_pool(self) -> DiskPool:
        """Return what a new life's copies of sessions are kept with."""
        self._pool = DiskPool(DiskExecutor(self))
        return self._pool

    def connect(self, path: Path) -> Connection:
        """Open a file that cannot grow while the disk is full."""
        return _Bounded(connect(path), self)

    def crash(self) -> None:
        """End a life: the next one finds what was synced, and any part of what was not.

        A transaction under way was written not at all, wholly, or in some of its sectors.
        """
        before = _content(self.folder)
        if self.executor:
            self.executor.die()
        if self._pool:
            self._pool.executor.die()
        found = torn(before, _content(self.folder), self._random)
        shutil.rmtree(self.folder)
        self._lives += 1
        for path, content in found.items():
            place = self.folder / path
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            place.write_bytes(content)


class DiskExecutor:
    """Does the journal's work in the event loop, as late as a disk would be done with it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._waiting: deque[Work] = deque()
        self._loop = asyncio.get_running_loop()
        self._is_alive = True

    @property
    def is_busy(self) -> bool:
        """Whether something is under way."""
        return bool(self._waiting)

    def submit(self, work: Work) -> None:
        """Have something done; see Executor."""
        if self._is_alive:
            self._waiting.append(work)
            if len(self._waiting) == 1:
                self._loop.call_later(self._disk.delay(), self._turn)

    async def close(self) -> None:
        """Do what is left; see Executor."""
        self._turn()

    def die(self) -> None:
        """Do what is under way a last time: how much of it is on the disk, nobody knows."""
        self._turn()
        self._is_alive = False

    def _turn(self) -> None:
        while self._is_alive and self._waiting:
            self._waiting[0]()
            self._waiting.popleft()


class DiskPool(Executor):
    """The same for what wants a pool of threads; of one thread."""

    def __init__(self, executor: DiskExecutor) -> None:
        self.executor = executor

    def submit(
        self, work: Callable[..., Answer], /, *arguments: Any, **named: Any
    ) -> Future[Answer]:
        """Have something done, and give what came of it."""
        future = Future[Answer]()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work(*arguments, **named))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
                future.set_exception(error)

        self.executor.submit(do)
        return future


class _Bounded:
    """A connection; see Disk.connect."""

    def __init__(self, connection: Connection, disk: Disk) -> None:
        self._connection, self._disk = connection, disk

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: Row = (), /) -> Cursor:
        if self._disk.is_full and sql.startswith(_GROWS):
            error: Any = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return self._connection.execute(sql, parameters)

    def close(self) -> None:
        self._connection.close()


def torn(before: Files, after: Files, random: Random) -> Files:
    """Return what files hold when power fails while they are written.

    Sectors are written whole or not at all, and in any order.
    """
    how = random.choice(("none", "all", "in order", "in any order"))
    if how == "all":
        return after
    if how == "none":
        return before
    return {
        path: _torn(before.get(path, b""), content, random, in_order=how == "in order")
        for path, content in after.items()
    }


def _torn(before: bytes, after: bytes, random: Random, *, in_order: bool) -> bytes:
    changed = [
        place
        for place in range(0, len(after), SECTOR)
        if before[place : place + SECTOR] != after[place : place + SECTOR]
    ]
    if in_order:
        written = set(changed[: random.randint(0, len(changed))])
    else:
        written = {place for place in changed if random.random() < 0.5}
    content = bytearray(before)
    for place in sorted(written):
        content += bytes(max(0, place - len(content)))
        content[place : place + SECTOR] = after[place : place + SECTOR]
    return bytes(content)


def _content(folder: Path) -> Files:
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

"""The replica as the event loop uses it: what is kept of which session, within a bound."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from sessiond.errors import ReplicaUnavailable, TooLarge
from sessiond.folders import private_folder
from sessiond.replica.file import Copy, More, ReplicaFile, encoded, is_damage
from sessiond.sync.entry import Entry
from sessiond.sync.outline import Outline
from sessiond.sync.position import START
from sessiond.sync.preferences import PreferenceChanges
from sessiond.sync.unlogged import Unlogged

Answer = TypeVar("Answer")

_OUTLINES = 64
_REMEMBERED = 1000
_ENTRY_BYTES = 256
"""What an entry counts for beside its JSON."""
_KEPT_SHARE = 0.9
"""When it is full, so much of it stays: room is not made for one session at a time."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Replica:
    """Copies of sessions on this disk. `await Replica.open(…)` gives one.

    All work on the file is done by a thread of its own.

    Raises:
        ReplicaUnavailable: by every coroutine: the disk fails, or what lay there was damaged and
            is thrown away now.
    """

    def __init__(
        self, *, limit_bytes: int, clock: Callable[[], int], executor: Executor | None = None
    ) -> None:
        self.copies: dict[str, Copy] = {}
        """What there is, by session id."""
        self.dropped: dict[str, int] = {}
        """What had to make room for others, and when, in ms since 1970."""
        self.current_ms = 0
        """When all of it was last known to be what Redis had, in ms since 1970; 0 for never."""
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._size = 0
        self._touched: set[str] = set()
        self._outlines: OrderedDict[str, Outline] = OrderedDict()
        self._changing = asyncio.Lock()
        self._thread = executor or ThreadPoolExecutor(1, thread_name_prefix="replica")
        self._file: ReplicaFile

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        limit_bytes: int,
        clock: Callable[[], int],
        executor: Executor | None = None,
    ) -> Replica:
        """Open the replica that lies in a folder, or make one there.

        Args:
            folder: where it lies; made where it is missing.
            limit_bytes: how much is kept, about; sessions that were not used for longest go first.
            clock: milliseconds since 1970.
            executor: does the work on the file, one piece after the other; None for a thread.

        Raises:
            ConfigurationError: the folder is not ours alone.
            ReplicaUnavailable: it cannot be opened.
        """
        replica = cls(limit_bytes=limit_bytes, clock=clock, executor=executor)
        folder = private_folder(folder)
        try:
            await replica._do(lambda: replica._open(folder))
        except ReplicaUnavailable:
            replica._thread.shutdown()
            raise
        if replica._file.lost:
            _log.warning("replica.made_anew", reason=replica._file.lost)
        return replica

    @property
    def size(self) -> int:
        """How many bytes are kept, about."""
        return self._size

    def use(self, session_id: str) -> bool:
        """Note that somebody has to do with a session; tell whether there is a copy of it."""
        copy = self.copies.get(session_id)
        if copy is None:
            return False
        copy.used_ms = self._clock()
        self._touched.add(session_id)
        return True

    def note_read(self, session_id: str, current_ms: int) -> None:
        """Note that the copy of a session was all that Redis had."""
        copy = self.copies.get(session_id)
        if copy:
            copy.current_ms = current_ms
            self._touched.add(session_id)

    async def begin(self, session_id: str, workspace: str) -> Copy:
        """Begin to keep a session, or to keep it anew: what was kept of it is dropped."""
        copy = Copy(session_id, workspace, START, 0, self._clock(), 0)
        async with self._changing:
            await self._put(copy, Outline(), More(), anew=True)
        return copy

    async def add(
        self,
        session_id: str,
        entries: list[Entry],
        conflicts: dict[int, list[bytes]] | None = None,
        lines: dict[str, str] | None = None,
    ) -> Copy | None:
        """Add to the log of a session what follows there; None where it is not kept any more.

        Args:
            session_id: which.
            entries: what follows.
            conflicts: what is kept of those that these entries tell of: see `Unlogged`.
            lines: all of them as they are at the last entry; None where that is not known.

        Raises:
            TooLarge: this session alone is more than may be kept.
            StoreDamaged: an entry cannot be applied.
        """
        async with self._changing:
            return await self._add(session_id, entries, encoded(entries, conflicts or {}, lines))

    async def drop(self, session_ids: list[str]) -> None:
        """Forget sessions."""
        async with self._changing:
            await self._drop(session_ids)

    async def outline(self, session_id: str) -> Outline | None:
        """Return what a session is beside its messages; it is the caller's to change."""
        return await self._do(lambda: self._file.outline(session_id))

    async def outlines(self) -> list[Outline]:
        """Return what all sessions are beside their messages."""
        return await self._do(self._file.outlines)

    async def content(self, session_id: str) -> tuple[Outline, list[Entry]] | None:
        """Return a session with its whole log, both of one moment; None where it is not here."""

        def read() -> tuple[Outline, list[Entry]] | None:
            outline = self._file.outline(session_id)
            return None if outline is None else (outline, self._file.entries(session_id))

        return await self._do(read)

    async def whole(self, session_id: str) -> tuple[list[Entry], Unlogged]:
        """Return a session's log, and what that does not tell, of one moment."""
        return await self._do(
            lambda: (self._file.entries(session_id), self._file.unlogged(session_id))
        )

    async def user(self, user_id: str) -> tuple[PreferenceChanges, int] | None:
        """Return what a user's preferences were made of, and when (ms); None if never seen."""
        return await self._do(lambda: self._file.user(user_id))

    async def keep_user(self, user_id: str, changes: PreferenceChanges, read_ms: int) -> None:
        """Keep what Redis had of a user's preferences, of the 100 users seen last."""
        await self._do(lambda: self._file.keep_user(user_id, changes, read_ms))

    async def note_current(self, current_ms: int) -> None:
        """Note when all copies were what Redis had; and, with that, the times of each."""
        copies = [self.copies[name] for name in self._touched if name in self.copies]
        times = {copy.session_id: (copy.used_ms, copy.current_ms) for copy in copies}
        self._touched.clear()
        self.current_ms = max(current_ms, self.current_ms)
        await self._do(lambda: self._file.note(times, self.current_ms))

    async def close(self) -> None:
        """Let go of the file."""
        try:
            await self._do(self._file.close)
        finally:
            self._thread.shutdown()

    async def _add(self, session_id: str, entries: list[Entry], more: More) -> Copy | None:
        before = self.copies.get(session_id)
        if before is None or (before.deleted and not entries):
            return before
        outline = self._outlines.pop(session_id, None)  # until it is known to be written
        outline = outline or await self.outline(session_id) or Outline()
        for entry in entries:
            outline.apply(entry)
        line_bytes = before.line_bytes if more.lines is None else len(more.lines)
        size = before.size - before.line_bytes + line_bytes
        size += sum(len(entry.json) + _ENTRY_BYTES for entry in entries)
        size += sum(map(len, more.conflicts.values()))
        if outline.deleted:  # nothing else is left of it
            size, line_bytes, more = _ENTRY_BYTES, 0, encoded(entries[-1:], {}, {})
        line_offset = before.line_offset if more.lines is None else outline.position.offset
        is_born = bool(entries) and entries[0].offset == 1
        if size > self._limit_bytes:
            raise TooLarge("it is larger than all that may be kept")
        copy = msgspec.structs.replace(
            before,
            position=outline.position,
            size=size,
            line_bytes=line_bytes,
            line_offset=line_offset,
            birth=entries[0].epoch if is_born else before.birth,
            deleted=outline.deleted,
        )
        await self._put(copy, outline, more, anew=outline.deleted)
        await self._make_room(session_id)
        return copy

    async def _put(self, copy: Copy, outline: Outline, more: More, *, anew: bool) -> None:
        await self._do(lambda: self._file.put(copy, outline, more, anew=anew))
        before = self.copies.get(copy.session_id)
        self._size += copy.size - (before.size if before else 0)
        self.copies[copy.session_id] = copy
        self._outlines[copy.session_id] = outline
        if len(self._outlines) > _OUTLINES:
            self._outlines.popitem(last=False)

    async def _drop(self, session_ids: list[str]) -> None:
        await self._do(lambda: self._file.drop(session_ids))
        for session_id in session_ids:
            self._outlines.pop(session_id, None)
            copy = self.copies.pop(session_id, None)
            self._size -= copy.size if copy else 0

    async def _make_room(self, session_id: str) -> None:
        """Drop what was not used for longest, when there is too much; not this session."""
        if self._size <= self._limit_bytes:
            return
        others = (copy for copy in self.copies.values() if copy.session_id != session_id)
        dropped, size = [], self._size
        for copy in sorted(others, key=lambda copy: copy.used_ms):
            if size <= _KEPT_SHARE * self._limit_bytes:
                break
            dropped.append(copy.session_id)
            size -= copy.size
        self.dropped |= dict.fromkeys(dropped, self._clock())
        while len(self.dropped) > _REMEMBERED:
            del self.dropped[next(iter(self.dropped))]
        await self._drop(dropped)
        _log.info("replica.full", dropped=len(dropped))

    def _open(self, folder: Path) -> None:
        self._file = ReplicaFile(folder)
        self.copies = {copy.session_id: copy for copy in self._file.copies()}
        self.current_ms = self._file.current_ms()
        self._size = sum(copy.size for copy in self.copies.values())

    async def _do(self, work: Callable[[], Answer]) -> Answer:
        """Do something in the thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, msgspec.MsgspecError, OSError) as error:
            if is_damage(error) and hasattr(self, "_file"):
                await self._make_anew(str(error))
            raise ReplicaUnavailable(
                f"the copies of sessions on this disk cannot be used now: {error}",
                hint="make room on its disk, or see what the disk reports",
            ) from error

    async def _make_anew(self, why: str) -> None:
        _log.warning("replica.made_anew", reason=why)
        self.copies.clear()
        self._outlines.clear()
        self._size = 0
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, lambda: self._file.make_anew(why))

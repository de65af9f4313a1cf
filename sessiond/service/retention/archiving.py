"""Archiving: sessions that nobody uses leave Redis, and come back when somebody needs them.

An archive is complete, and on its disk, before anything of the session goes; the session is back
before anything of the archive goes. In between both are there, and the stub in Redis says which one
counts. Whoever is killed between two steps leaves a copy too many, never one too few.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

from sessiond.archive.folder import ArchiveFile, ArchiveFolder, file_name
from sessiond.archive.record import Archive, pack, unpack
from sessiond.errors import (
    ArchiveDamaged,
    ArchiveUnavailable,
    NotFound,
    SessionDeleted,
    SessiondError,
    SessionInUse,
    StoreDamaged,
)
from sessiond.model import ArchivedSession
from sessiond.service.clock import milliseconds, timestamp
from sessiond.service.content.conflicts import has_open
from sessiond.service.writing import PLAIN, Request, Surroundings, asked_at
from sessiond.store.archives import (
    IN_REDIS,
    AlreadyArchived,
    ArchiveStore,
    Captured,
    check_log,
    compacted,
)
from sessiond.store.conflicts import parse_conflict
from sessiond.sync.position import Position

IDLE_SECONDS = 300.0
"""For so long nobody must have written to a session that is archived."""

_SETTLED_MS = 2 * 60 * 1000
"""Beyond the retries of a write: then its entries may be compressed."""
_RELEASED_MS = 24 * 3600 * 1000
_TOKEN_BYTES = 8
_IN_FOLDER = "file:"


class Archiving:
    """Archives sessions and brings them back.

    Args:
        around: the logs, time and randomness.
        archives: what the archive scripts do.
        folder: where archives go; None for Redis itself.
    """

    def __init__(
        self, around: Surroundings, archives: ArchiveStore, folder: ArchiveFolder | None
    ) -> None:
        self._around = around
        self._archives = archives
        self._folder = folder
        around.store.recall.bring_back = self.bring_back

    async def archive(
        self, session_id: str, request: Request = PLAIN, *, idle_seconds: float = IDLE_SECONDS
    ) -> ArchivedSession:
        """Archive a session; one that is archived stays so.

        Args:
            session_id: which.
            request: who asks, and when.
            idle_seconds: for how long nobody must have written to it.

        Raises:
            SessionInUse: somebody is there, or wrote a moment ago.
            NotFound, SessionDeleted: there is no such session, or no more.
            Contended: somebody wrote to it just now.
            ArchiveUnavailable: the folder does not take it.
            StoreDamaged: the session is not whole; it stays as it is.
        """
        now_ms = asked_at(self._around, request)
        try:
            captured = await self._archives.capture(session_id)
            idle_ms = _idle_ms(captured.archive, now_ms)
            _check_idle(session_id, idle_ms, idle_seconds)
            packed = await asyncio.to_thread(_packed, captured.archive, idle_ms=idle_ms)
            await self._put(captured, packed, timestamp(now_ms), keep_conflicts=_has_open(captured))
        except AlreadyArchived:
            return await self._standing(session_id)
        position = f"{captured.archive.epoch}:{captured.archive.version}"
        return ArchivedSession(
            session_id=session_id, position=position, archived=True, bytes=len(packed)
        )

    async def restore(self, session_id: str) -> ArchivedSession:
        """Bring a session back; one that is not archived stays as it is.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
            ArchiveUnavailable, ArchiveDamaged: its archive cannot be read.
        """
        await self.bring_back(session_id)
        return await self._standing(session_id)

    async def bring_back(self, session_id: str) -> None:
        """Put an archived session back, unless somebody else does.

        Raises:
            ArchiveUnavailable, ArchiveDamaged: its archive cannot be read; nothing is changed.
        """
        async with self._around.queues.of(session_id, "archive"):
            while place := await self._archives.place(session_id):
                try:
                    packed = await self._read(session_id, place)
                    archive = await asyncio.to_thread(unpack, packed, session_id)
                    await self._check_position(archive)
                except (ArchiveUnavailable, ArchiveDamaged):
                    if await self._archives.place(session_id) == place:
                        raise
                    continue  # somebody else brought it back meanwhile
                if await self._archives.restore(archive, place, self._around.clock()):
                    await self._release(place)

    async def sweep(self) -> int:
        """Remove the files of sessions that are back since a day; return how many.

        A file goes only when Redis has the session with the archive's own position in its log, or
        a later archive of it, or its tombstone: then and a day before, when the file was marked.
        """
        removed = 0
        if self._folder:
            await self._folder.drop_drafts((self._around.clock() - _RELEASED_MS) / 1000)
            for file in await self._folder.files():
                with suppress(StoreDamaged, ArchiveUnavailable):  # it must not keep the others
                    removed += await self._sweep(self._folder, file)
        return removed

    async def _sweep(self, folder: ArchiveFolder, file: ArchiveFile) -> bool:
        if not await self._is_superseded(file):
            return False
        now_ms = self._around.clock()
        if file.released_ms is None:
            await folder.release(file.name, now_ms)
        elif now_ms - file.released_ms >= _RELEASED_MS:
            await folder.remove(file)
            return True
        return False

    async def _is_superseded(self, file: ArchiveFile) -> bool:
        """Tell whether Redis, or a later archive, has all that a file holds.

        The history in an archive is not compared: of a file that never came back, only the
        same position will do.
        """
        place = await self._archives.place(file.session_id)
        if place == _IN_FOLDER + file.name:
            return False
        try:
            end = (await self._around.store.end(file.session_id)).position
        except SessionDeleted:
            return True
        except NotFound:
            return False
        at = Position(file.epoch, file.version)
        if place and file.released_ms is None:
            return end == at
        return (await self._around.store.have(file.session_id, [at]))[0]

    async def _put(
        self, captured: Captured, packed: bytes, at: str, *, keep_conflicts: bool
    ) -> None:
        put = partial(self._archives.put, captured, at=at, keep_conflicts=keep_conflicts)
        if self._folder is None:
            await put(place=IN_REDIS, packed=packed)
            return
        archive = captured.archive
        token = self._around.entropy(_TOKEN_BYTES).hex()
        name = file_name(archive.session_id, archive.epoch, archive.version, token)
        await self._folder.write(name, packed)
        unpack(await self._folder.read(name), archive.session_id)
        await put(place=_IN_FOLDER + name, packed=b"")

    async def _read(self, session_id: str, place: str) -> bytes:
        if place == IN_REDIS:
            packed = await self._archives.packed(session_id)
            if packed is None:
                raise ArchiveDamaged(
                    f"the archive of session {session_id!r} is gone from Redis",
                    hint="something other than sessiond removed it; restore it from a backup",
                )
            return packed
        if self._folder is None:
            raise ArchiveUnavailable(
                f"session {session_id!r} is archived in a folder, and this process knows none",
                hint="set retention.archive to that folder",
            )
        return await self._folder.read(place.removeprefix(_IN_FOLDER))

    async def _check_position(self, archive: Archive) -> None:
        """Check that an archive is of the moment that its session's stub is of."""
        end = (await self._around.store.end(archive.session_id)).position
        if end != Position(archive.epoch, archive.version):
            raise ArchiveDamaged(
                f"the archive of session {archive.session_id!r} ends at {archive.version}, "
                f"the session at {end.offset}",
                hint="another file took its place; restore the right one from a backup",
            )

    async def _release(self, place: str) -> None:
        if self._folder and place.startswith(_IN_FOLDER):
            with suppress(SessiondError):  # `sweep` does it
                name = place.removeprefix(_IN_FOLDER)
                await self._folder.release(name, self._around.clock())

    async def _standing(self, session_id: str) -> ArchivedSession:
        position = (await self._around.store.end(session_id)).position
        archived = await self._archives.place(session_id) is not None
        return ArchivedSession(session_id=session_id, position=str(position), archived=archived)


def _packed(archive: Archive, *, idle_ms: int) -> bytes:
    """Return an archive as it is kept, once it is known to be whole and readable.

    Writes of the last moments stay in the stream: a repeated call finds its entries only there.
    """
    if idle_ms >= _SETTLED_MS:
        archive = compacted(archive)
    check_log(archive)
    packed = pack(archive)
    if unpack(packed, archive.session_id) != archive:
        raise ArchiveDamaged(f"the archive of session {archive.session_id!r} is not what went in")
    return packed


def _has_open(captured: Captured) -> bool:
    """Tell whether somebody may still want to decide a conflict: what is damaged may be one."""
    session_id, content = captured.archive.session_id, captured.archive.keys.get("conflicts")
    try:
        entries = [parse_conflict(session_id, raw) for raw in content.items] if content else []
        return has_open(session_id, entries)
    except StoreDamaged:
        return True


def _idle_ms(archive: Archive, now_ms: int) -> int:
    """Return for how long nobody has written to a session, in ms."""
    flat = archive.keys["metadata"].items
    last = dict(zip(flat[::2], flat[1::2], strict=True)).get(b"last_activity", b"")
    try:
        return max(0, now_ms - milliseconds(last.decode()))
    except ValueError as error:
        raise StoreDamaged(
            f"session {archive.session_id!r} does not say when it was last used"
        ) from error


def _check_idle(session_id: str, idle_ms: int, idle_seconds: float) -> None:
    if idle_ms < 1000 * idle_seconds:
        raise SessionInUse(
            f"session {session_id!r} was written to {idle_ms / 1000:.0f} s ago",
            hint=f"archive it when it was idle for {idle_seconds:g} s, or ask for less",
        )

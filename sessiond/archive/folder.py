"""A folder of archives: one file for each, written durably before anybody relies on it.

A name is used once: `<session>.<epoch>-<version>.<random>.archive`. Whoever brought a session back
marks its file, `….released-<ms>`; only a file that was marked a day ago is ever removed, so that a
Redis which went back to before that still finds it.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from sessiond.errors import ArchiveUnavailable

_NAME = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9_-]{0,63})\.([0-9a-f]{14})-(\d{1,15})\.[0-9a-f]{16}\.archive", re.ASCII
)
_RELEASED = re.compile(r"(.+\.archive)\.released-(\d{1,15})", re.ASCII)
_FILE_MODE, _FOLDER_MODE = 0o600, 0o700

Value = TypeVar("Value")


class ArchiveFile(Struct, frozen=True):
    """A file of the folder.

    Attributes:
        name: as a session's stub names it, without the mark.
        session_id, epoch, version: whose it is, and up to which operation.
        released_ms: since when nobody needs it, in ms since 1970; None without the mark.
    """

    name: str
    session_id: str
    epoch: str
    version: int
    released_ms: int | None = None


def file_name(session_id: str, epoch: str, version: int, token: str) -> str:
    """Return the name of a new archive; `token`: sixteen random hexadecimal digits."""
    return f"{session_id}.{epoch}-{version}.{token}.archive"


def parse_file(path_name: str) -> ArchiveFile | None:
    """Return what a file's name says; None for one that is no archive."""
    marked = _RELEASED.fullmatch(path_name)
    name = marked[1] if marked else path_name
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    session_id, epoch, version = match.groups()
    return ArchiveFile(name, session_id, epoch, int(version), int(marked[2]) if marked else None)


class ArchiveFolder:
    """Archives as files.

    Args:
        path: the folder; it is made when the first archive is written.

    Raises:
        ArchiveUnavailable: by every method: the folder or the disk does not do what it should.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    async def write(self, name: str, content: bytes) -> None:
        """Write a new archive; when this returns, it is on the disk."""
        await self._in_thread(lambda: self._write(name, content))

    async def read(self, name: str) -> bytes:
        """Return the content of an archive, released or not."""
        return await self._in_thread(lambda: self._read(name))

    async def release(self, name: str, now_ms: int) -> None:
        """Mark an archive as one that nobody needs any more."""

        def mark() -> None:
            path = self._place(name)
            if path.exists():
                path.rename(path.with_name(f"{name}.released-{now_ms}"))

        await self._in_thread(mark)

    async def files(self) -> list[ArchiveFile]:
        """Return all archives of the folder."""

        def listed() -> list[ArchiveFile]:
            if not self.path.is_dir():
                return []
            found = (parse_file(entry.name) for entry in os.scandir(self.path))
            return [file for file in found if file]

        return await self._in_thread(listed)

    async def remove(self, file: ArchiveFile) -> None:
        """Remove an archive that was released."""
        name = f"{file.name}.released-{file.released_ms}"
        await self._in_thread(
            lambda: self._place(file.name).with_name(name).unlink(missing_ok=True)
        )

    async def drop_drafts(self, before_s: float) -> None:
        """Remove what killed writers left before a time, in seconds since 1970."""

        def drop() -> None:
            for draft in self.path.glob("*.archive.new"):
                if draft.stat().st_mtime < before_s:
                    draft.unlink(missing_ok=True)

        await self._in_thread(drop)

    def _write(self, name: str, content: bytes) -> None:
        self.path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        path = self._place(name)
        draft = path.with_name(f"{name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(draft, flags, _FILE_MODE), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self, name: str) -> bytes:
        path = self._place(name)
        candidates = [path, *sorted(self.path.glob(f"{name}.released-*"))]
        found = next((file for file in candidates if file.exists()), path)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with os.fdopen(os.open(found, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _unavailable(f"{found} is not a plain file")
            return file.read()

    def _place(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise _unavailable(f"{name[:120]!r} is not the name of an archive")
        return self.path / name

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise _unavailable(f"the archive folder {self.path}: {error}") from error


def _unavailable(reason: str) -> ArchiveUnavailable:
    return ArchiveUnavailable(
        reason, hint="is retention.archive the folder that the session was archived to, and there?"
    )

"""One session's folder: written so that a crash leaves the old files or the new, and examined.

A write goes in this order: the new files beside the old under other names, synced; the state that
knows both the new and the old digests, synced; the old files linked into `.backup`; the new ones
renamed to their places; the folder synced. So at any moment each file is one that the state knows.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from msgspec import Struct, structs

from sessiond.files.layout import (
    FILES,
    FileName,
    Rendered,
    Value,
    fault_of,
    file_of,
    looks_damaged,
    parsed,
)
from sessiond.files.reading import Unreadable, read_file, stamp_of
from sessiond.files.state import (
    STATE_FILE,
    FileState,
    FolderState,
    Stamp,
    decode_state,
    digest,
    encode_state,
    with_file,
    without_file,
)
from sessiond.folders import PRIVATE_FILE, PRIVATE_FOLDER

BACKUP = ".backup"
REJECTED = "rejected"
_NEW = ".new"


class Edited(Struct, frozen=True):
    """A file that somebody changed, and that says something."""

    name: FileName
    value: Value
    stamp: Stamp
    digest: str


class Rejected(Struct, frozen=True):
    """A file that somebody changed, and that is not what it should be; it stays where it is."""

    name: FileName
    reason: str
    stamp: Stamp


class Damaged(Struct, frozen=True):
    """A file that is not what was written, though nobody edited it."""

    name: FileName
    reason: str


class Missing(Struct, frozen=True):
    """A file that is gone, or is an earlier one of ours: it is to be written again.

    `there`: the earlier one; None where the file is gone.
    """

    name: FileName
    there: FileState | None = None


Finding: TypeAlias = Edited | Rejected | Damaged | Missing


class FolderChanged(Exception):
    """A file is not as the state knows it: examine the folder first. Nothing was written."""


class SessionFolder:
    """The files of one session.

    Args:
        path: the folder.
        quarantine: where what is damaged is moved.
    """

    def __init__(self, path: Path, quarantine: Path) -> None:
        self.path = path
        self._quarantine = quarantine

    @property
    def session_id(self) -> str:
        """Whose files these are."""
        return self.path.name

    def file(self, name: FileName) -> Path:
        """Return where a file lies."""
        return self.path / file_of(name)

    def is_folder(self) -> bool:
        """Tell whether there is a real folder, not a link to one, and not something else."""
        try:
            return stat.S_ISDIR(self.path.lstat().st_mode)
        except OSError:
            return False

    # What is there

    def load_state(self) -> FolderState | None:
        """Return what was written down of the files; None where that is missing.

        Raises:
            Unreadable: it is damaged, or another session's.
        """
        found = read_file(self.path / STATE_FILE)
        if found is None:
            return None
        state = decode_state(found[0])
        if state is None:
            raise Unreadable("it is not what was written")
        if state.session_id != self.session_id:
            raise Unreadable(f"it is of session {state.session_id!r}")
        return state

    def examine(self, state: FolderState, *, wholly: bool) -> tuple[FolderState, list[Finding]]:
        """Compare the files with what is known of them.

        Args:
            state: what is known.
            wholly: whether to read also those whose stamp did not change.

        Returns:
            The state, which knows now of files that were touched only; and what is to be done
            something about.
        """
        findings: list[Finding] = []
        for name in FILES:
            try:
                finding = self._examine(name, state.files.get(name), wholly=wholly)
            except Unreadable as error:
                finding = Damaged(name, str(error))
            if isinstance(finding, FileState):
                state = with_file(state, name, finding)
                continue
            if isinstance(finding, Missing):
                there = finding.there
                state = with_file(state, name, there) if there else without_file(state, name)
            if finding is not None:
                findings.append(finding)
        return state, findings

    def _examine(
        self, name: FileName, known: FileState | None, *, wholly: bool
    ) -> Finding | FileState | None:
        if not wholly and known and stamp_of(self.file(name)) == known.stamp:
            return None
        found = read_file(self.file(name))
        if found is None:
            return Missing(name)
        content, stamp = found
        written = digest(content)
        if known and written == known.digest:
            return structs.replace(known, stamp=stamp)
        if known and written == known.before:
            return Missing(name, FileState(digest=written, stamp=stamp))
        if known and stamp == known.stamp:
            return Damaged(name, "its content changed though nobody wrote it")
        return _judged(name, content, stamp)

    def valid_content(self, name: FileName, state: FolderState | None) -> bytes | None:
        """Return the newest content of a file that is certainly whole; None where there is none.

        That is the file itself, where its content is what was written, or what a person made of
        it; or its backup.
        """
        known = state.files.get(name, FileState()) if state else FileState()
        for path, wanted in (
            (self.file(name), known.digest),
            (self.path / BACKUP / file_of(name), known.before),
        ):
            with contextlib.suppress(Unreadable):
                found = read_file(path)
                if found is None:
                    continue
                content, stamp = found
                is_as_written = not wanted or digest(content) == wanted
                is_edited = path.parent == self.path and stamp != known.stamp
                if (is_as_written or is_edited) and not _fault(name, content):
                    return content
        return None

    def is_touched(
        self, state: FolderState, looked_at: Mapping[FileName, Stamp] = MappingProxyType({})
    ) -> bool:
        """Tell whether somebody may have written one of the files since; quickly.

        `looked_at`: files that were touched before, and what their stamps were then.
        """
        try:
            return any(
                stamp_of(self.file(name)) != looked_at.get(name, known.stamp)
                for name, known in state.files.items()
            )
        except Unreadable:
            return True

    # Writing

    def write(
        self, state: FolderState, session: Rendered, left: Collection[FileName] = ()
    ) -> FolderState:
        """Write the files of a session whose content is another one than before.

        Args:
            state: what is known of the files.
            session: what they are to say.
            left: files that are left as they are.

        Returns:
            What is known of them now.

        Raises:
            FolderChanged: a file that is to be written is not as the state knows it.
            OSError: the disk is full, or fails; the old files are there.
        """
        self.path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        changed = self._changed(state, session, left)
        files = dict(state.files)
        try:
            for name in changed:
                stamp = _write_synced(self._draft(name), session.files[name])
                known = state.files.get(name)
                files[name] = FileState(
                    digest=digest(session.files[name]),
                    stamp=stamp,
                    before=(known.digest or known.before) if known else "",
                )
            new = FolderState(
                session_id=self.session_id,
                position=session.position,
                versions=session.versions,
                files=files,
            )
            self.save_state(new)
            for name in changed:
                self._back_up(name)
                self._draft(name).rename(self.file(name))
        except BaseException:
            for name in changed:
                self._draft(name).unlink(missing_ok=True)
            raise
        _sync_folder(self.path)
        return new

    def save_state(self, state: FolderState) -> None:
        """Write down what is known of the files.

        Raises:
            OSError: the disk is full, or fails.
        """
        draft = self.path / (STATE_FILE + _NEW)
        _write_synced(draft, encode_state(state))
        draft.rename(self.path / STATE_FILE)

    def _changed(
        self, state: FolderState, session: Rendered, left: Collection[FileName]
    ) -> list[FileName]:
        changed: list[FileName] = []
        for name, content in session.files.items():
            if name in left:
                continue
            known = state.files.get(name)
            stamp = self._stamp(name)
            if stamp != (known.stamp if known else None):
                raise FolderChanged(name)
            if known is None or known.digest != digest(content):
                changed.append(name)
        return changed

    def _stamp(self, name: FileName) -> Stamp | None:
        try:
            return stamp_of(self.file(name))
        except Unreadable as error:
            raise FolderChanged(name) from error

    def _back_up(self, name: FileName) -> None:
        """Keep the file that is about to be replaced; a link to it costs nothing."""
        backup = self.path / BACKUP
        backup.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        draft = backup / (file_of(name) + _NEW)
        draft.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.link(self.file(name), draft, follow_symlinks=False)
            draft.rename(backup / file_of(name))

    def _draft(self, name: FileName) -> Path:
        return self.path / f".{file_of(name)}{_NEW}"

    # Setting aside

    def quarantine(self, file: str, now_ms: int) -> Path:
        """Move a file out of the way, for people to look at; return where it is now.

        Raises:
            OSError: it cannot be moved.
        """
        self._quarantine.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        target = _free(self._quarantine / f"{self.session_id}.{file}.{now_ms}")
        (self.path / file).rename(target)
        return target

    def quarantine_whole(self, now_ms: int) -> Path:
        """Move what is in the folder's place, and is none, out of the way; return where it is.

        Raises:
            OSError: it cannot be moved.
        """
        self._quarantine.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        target = _free(self._quarantine / f"{self.session_id}.{now_ms}")
        self.path.rename(target)
        return target

    def set_aside(self, name: FileName, now_ms: int) -> Path:
        """Keep a rejected file beside the place that is needed for a new one; return where.

        Raises:
            OSError: it cannot be moved.
        """
        target = _free(self.path / f"{file_of(name)}.{REJECTED}-{now_ms}")
        self.file(name).rename(target)
        return target

    def remove(self) -> None:
        """Remove what was written here; what people put beside it stays, and so the folder.

        Raises:
            OSError: it cannot be removed.
        """
        if not self.is_folder():
            return
        for name in FILES:
            for path in (self.file(name), self._draft(name)):
                path.unlink(missing_ok=True)
        shutil.rmtree(self.path / BACKUP, ignore_errors=True)
        for suffix in ("", _NEW):
            (self.path / (STATE_FILE + suffix)).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something of a person's lies there
            self.path.rmdir()


def _fault(name: FileName, content: bytes) -> str:
    return looks_damaged(content) or fault_of(name, content)


def _judged(name: FileName, content: bytes, stamp: Stamp) -> Edited | Rejected | Damaged:
    """Tell what became of a file that somebody touched."""
    if reason := looks_damaged(content):
        return Damaged(name, reason)
    if reason := fault_of(name, content):
        return Rejected(name, reason, stamp)
    return Edited(name, parsed(name, content), stamp, digest(content))


def _write_synced(path: Path, content: bytes) -> Stamp:
    """Write a new private file and have the disk take it."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, PRIVATE_FILE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        status = os.fstat(file.fileno())
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(path: Path) -> Path:
    """Return the path, or one like it that nothing has yet."""
    number, found = 1, path
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.name}.{number}")
    return found

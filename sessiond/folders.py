"""Private folders, private files, and the locks that say who uses a folder.

A lock is an flock(2) on a file that is never deleted. It belongs to the open file, so it ends
when the last process that inherited the descriptor ends, however that happens.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from sessiond.errors import ConfigurationError, FolderHeld
from sessiond.store.embedded.process import process_exists

if TYPE_CHECKING:
    from pathlib import Path

DAEMON_LOCK = "daemon.lock"
PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
UNMAPPED_UID = 65534
"""How a user namespace (a container, bubblewrap) shows owners that it does not know."""

_HOLDER_LIMIT = 4096
_LOOKS = 20
_LOOK_PAUSE_S = 0.01


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock: a process and when it began to hold it (seconds since 1970, UTC)."""

    pid: int
    since: float


_HOLDER = msgspec.json.Decoder(Holder)


def private_folder(path: Path) -> Path:
    """Return the real path of `path`, a folder that nobody else can write to or replace.

    Whatever is missing of it is created with mode 0700.

    Raises:
        ConfigurationError: it cannot be created, belongs to somebody else, is writable by group
            or others, or one of the folders above it allows others to replace it.
    """
    try:
        _create_missing(path.absolute())
        folder = path.resolve(strict=True)
        fault = own_fault(folder.stat(), uid=os.geteuid())
        _refuse(folder, fault, hint=f"make it yours alone: chmod 700 {folder}")
        for parent in folder.parents:
            fault = parent_fault(parent.stat(), uid=os.geteuid(), gid=os.getegid())
            _refuse(parent, fault, hint=f"choose a place for {folder.name} that is yours alone")
    except OSError as error:
        detail = f"The folder {path} cannot be used: {error.strerror or error}."
        raise ConfigurationError(detail, hint="choose a folder you may write to") from error
    return folder


def own_fault(status: os.stat_result, *, uid: int) -> str:
    """Say what keeps a folder from being private to user `uid`; "" when nothing does."""
    if not stat.S_ISDIR(status.st_mode):
        return "is not a folder"
    if status.st_uid != uid:
        return f"belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "is writable by group or others"
    return ""


def parent_fault(status: os.stat_result, *, uid: int, gid: int) -> str:
    """Say how somebody else could replace what lies in a folder; "" when nobody could.

    Root is trusted, and so are the user's own group, which many systems give every user alone,
    and the sticky bit, which keeps others from renaming what is not theirs.
    """
    if status.st_uid not in (0, uid, UNMAPPED_UID):
        return f"belongs to user {status.st_uid}"
    writable = stat.S_IWOTH if status.st_gid in (0, gid) else stat.S_IWGRP | stat.S_IWOTH
    if status.st_mode & writable and not status.st_mode & stat.S_ISVTX:
        return "is writable by others"
    return ""


def write_private(path: Path, content: bytes) -> None:
    """Replace the file at `path`, durably and in one step, by one with mode 0600.

    Not for several writers at once: the caller holds the folder's lock.
    """
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(draft, flags, PRIVATE_FILE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_private(path: Path) -> bytes | None:
    """Return the content of a file that only its owner, us, can read; None when there is none.

    Raises:
        ConfigurationError: it is a link, belongs to somebody else or is open to others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _exposed(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _exposed(path)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        shared = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or shared:
            raise _exposed(path)
        return file.read()


def hold_folder(folder: Path) -> int:
    """Make this process the one daemon of a data folder, until the descriptor is closed.

    Raises:
        FolderHeld: another one is; the error names its pid unless that cannot be told.
        ConfigurationError: the lock file cannot be opened or locked at all.
    """
    path = folder / DAEMON_LOCK
    for _ in range(_LOOKS):
        descriptor = try_lock(path)
        if descriptor is not None:
            with suppress(OSError):  # a full disk: the lock holds all the same, without a name
                write_holder(descriptor, Holder(os.getpid(), time.time()))
            return descriptor
        holder = read_holder(path)
        if holder is not None and process_exists(holder.pid):
            raise _held_by(folder, holder)
        # Either a new holder has not yet written who it is, or the last one was killed while it
        # started a server, and that child keeps a copy of the descriptor until it executes.
        time.sleep(_LOOK_PAUSE_S)
    raise _held_by(folder, None)


def try_lock(path: Path) -> int | None:
    """Lock the file at `path`, creating it if need be.

    Returns:
        A descriptor that holds the lock until it and all its copies are closed, or None when
        somebody else holds the lock.

    Raises:
        ConfigurationError: the file cannot be opened or locked at all.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, PRIVATE_FILE)
    except OSError as error:
        raise _unlockable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise _unlockable(path, error) from error
    return descriptor


def write_holder(descriptor: int, holder: Holder) -> None:
    """Write into a lock's file who holds it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, msgspec.json.encode(holder) + b"\n", 0)


def read_holder(path: Path) -> Holder | None:
    """Return who wrote last that it holds the lock; None when that cannot be told."""
    with suppress(OSError, msgspec.DecodeError), path.open("rb") as file:
        return _HOLDER.decode(file.read(_HOLDER_LIMIT))
    return None


def _held_by(folder: Path, holder: Holder | None) -> FolderHeld:
    if holder is None:
        who, how = "Another daemon", "stop it"
    else:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.since))
        who, how = f"The daemon with pid {holder.pid}", f"stop it with `kill {holder.pid}`"
        who = f"{who}, running since {since},"
    return FolderHeld(
        f"{who} owns {folder}.",
        hint=f"use that daemon, {how}, or choose another data folder",
    )


def _create_missing(path: Path) -> None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):  # made by somebody else just now: checked like the rest
            folder.mkdir(mode=PRIVATE_FOLDER)


def _refuse(folder: Path, fault: str, *, hint: str) -> None:
    if fault:
        raise ConfigurationError(f"The folder {folder} {fault}.", hint=hint)


def _exposed(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"The file {path} must be a plain file that only you can read.",
        hint="delete it, so that a new one is made at the next start",
    )


def _unlockable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"The file {path} cannot be locked: {error.strerror or error}.",
        hint="choose a data folder on a local disk that you may write to",
    )

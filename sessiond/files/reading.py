"""Reading files that anybody may have put there: links, pipes and giants are refused, not read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sessiond.files.state import Stamp

LARGEST_FILE = 1024 * 1024 * 1024
"""Bytes that a file may have."""


class Unreadable(Exception):
    """A file cannot be read, or is none; says why."""


def stamp_of(path: Path) -> Stamp | None:
    """Return what changes of a file when somebody writes it; None where there is nothing.

    Raises:
        Unreadable: it cannot be told.
    """
    try:
        return _stamp(path.lstat())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(_reason(error)) from error


def read_file(path: Path) -> tuple[bytes, Stamp] | None:
    """Return the content of a plain file, and its stamp; None where there is nothing.

    Raises:
        Unreadable: it is a link, a folder, a pipe or a device, too large, or cannot be read.
    """
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable("it is a link" if path.is_symlink() else _reason(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("it is not a plain file")
        if status.st_size > LARGEST_FILE:
            raise Unreadable(f"it has {status.st_size} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(), _stamp(status)  # of before: a later change will be noticed
    except OSError as error:
        raise Unreadable(_reason(error)) from error
    finally:
        os.close(descriptor)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def _reason(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"

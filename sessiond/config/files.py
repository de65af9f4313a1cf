"""Find and read the configuration file, whatever stands where it should be."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from sessiond.config.refusals import printable, refusal, shown
from sessiond.config.yaml_guard import LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sessiond.errors import ConfigurationError

FILE_VARIABLE = "SESSIOND_CONFIG"


def find_file(environ: Mapping[str, str]) -> Path | None:
    """Find the file to load; that it can be read is found out by `read_file`.

    `SESSIOND_CONFIG` when it is set; else `sessiond/sessions.yaml` in `$XDG_CONFIG_HOME`, or in
    `$HOME/.config` when that is unset or not absolute (the XDG specification's rule), if there
    is one; else None.

    Never the current folder: the daemon may be started inside a cloned repository, and what
    others put there must not configure it. So `SESSIOND_CONFIG` must be absolute, too.

    Raises:
        ConfigurationError: `SESSIOND_CONFIG` is not absolute.
    """
    named = environ.get(FILE_VARIABLE, "")
    if not named:
        return _default_file(environ)
    if not Path(named).is_absolute():
        raise refusal(
            where=f"variable {FILE_VARIABLE}",
            key="",
            expected="an absolute path",
            found=shown(named),
            hint="give the whole path: the current folder never configures sessiond",
        )
    return Path(named)


def read_file(file: Path) -> bytes:
    """Read a regular file of at most 64 KiB, without waiting for a FIFO or a device.

    Raises:
        ConfigurationError: there is no such file, or it is something else, or too large.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _refuse_unusual(file, os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as opened:
                return opened.read(LIMIT_BYTES + 1)  # it may have grown; the guard counts again
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        hint = "create it, or name another with --config or SESSIOND_CONFIG"
        raise _unreadable(file, "nothing there", hint) from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file system takes
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no path"
        hint = "make it a file that the user of sessiond may read"
        raise _unreadable(file, f"that it cannot be opened: {reason}", hint) from error


def _default_file(environ: Mapping[str, str]) -> Path | None:
    folder = Path(environ.get("XDG_CONFIG_HOME", ""))
    if not folder.is_absolute():
        folder = Path(environ.get("HOME", ""), ".config")
    file = folder / "sessiond" / "sessions.yaml"
    return file if file.is_absolute() and _stands_there(file) else None


def _stands_there(file: Path) -> bool:
    """Tell whether there is anything: a broken link or a locked folder must not pass silently."""
    try:
        file.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        pass
    return True


def _refuse_unusual(file: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise _unreadable(file, "a folder", "name the file in it")
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(file, "a pipe, a socket or a device", "name a regular file")
    if status.st_size > LIMIT_BYTES:
        hint = "keep only sessiond's own options in this file"
        raise _unreadable(file, f"{status.st_size} bytes", hint)


def _unreadable(file: Path, found: str, hint: str) -> ConfigurationError:
    return refusal(
        where=printable(str(file)),
        key="",
        expected=f"a file of at most {LIMIT_BYTES} bytes",
        found=found,
        hint=hint,
    )

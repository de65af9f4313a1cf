"""The opencode that the tests run: installed once, kept in the user's cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUPPORTED = "1.18.33"
"""The version of opencode that sessiond supports. `test_facts.py` says what hangs on it."""

CHOICE = "SESSIOND_TEST_OPENCODE"
"""The environment variable that names another binary, say to try a new version."""

_INSTALL_SECONDS = 300
_VERSION_SECONDS = 30


class OpencodeUnavailable(Exception):
    """There is no opencode to test with."""


def opencode_binary() -> Path:
    """Return the executable of opencode; install it when this user has none yet.

    The folder of a version appears under its name only when it is complete, and only one process
    installs it: others wait.

    Raises:
        OpencodeUnavailable: it cannot be installed, or none of its builds runs here.
    """
    if chosen := os.environ.get(CHOICE):
        if version := _version(Path(chosen)):
            return _told(Path(chosen), version)
        raise OpencodeUnavailable(f"{CHOICE}={chosen} does not run")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sessiond-tests"
    folder = cache / f"opencode-{SUPPORTED}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / f"opencode-{SUPPORTED}.lock"):
            if not folder.exists():
                _install(folder)
    return _runnable(folder)


def _told(binary: Path, version: str) -> Path:
    if version != SUPPORTED:
        print(f"testing with opencode {version} at {binary}; {SUPPORTED} is supported")  # noqa: T201
    return binary


def _install(folder: Path) -> None:
    """Install into a neighbour of the folder and give it the name at the end."""
    npm = shutil.which("npm")
    if npm is None:
        raise OpencodeUnavailable(
            f"these tests need opencode {SUPPORTED}: install Node.js with npm, "
            f"or name a binary in {CHOICE}"
        )
    growing = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        # Without scripts: the package's own would link one build, and may be forbidden anyway.
        _npm_install(npm, growing)
        _runnable(growing)
        growing.rename(folder)
    finally:
        shutil.rmtree(growing, ignore_errors=True)


def _npm_install(npm: str, folder: Path) -> None:
    flags = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--include=optional")
    command = [npm, "install", "--prefix", str(folder), *flags, f"opencode-ai@{SUPPORTED}"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            timeout=_INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise OpencodeUnavailable(f"{' '.join(command)} took over {error.timeout} s") from error
    if done.returncode:
        raise OpencodeUnavailable(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def _runnable(folder: Path) -> Path:
    """Return the first build that runs on this machine, for the newest processors first."""
    builds = sorted(folder.glob("node_modules/opencode-*-*/bin/opencode"), key=_preference)
    for build in builds:
        if _version(build) == SUPPORTED:
            return build
    names = ", ".join(str(build.parent.parent.name) for build in builds) or "none"
    raise OpencodeUnavailable(f"no build of opencode in {folder} runs here (there are: {names})")


def _preference(build: Path) -> tuple[int, str]:
    """Plain builds come before `-baseline` and `-musl`: their names are shorter."""
    name = build.parent.parent.name
    return len(name), name


def _version(binary: Path) -> str:
    """Return what a binary says it is; empty when it does not run."""
    with tempfile.TemporaryDirectory(prefix="sessiond-opencode-") as home:
        folders = ("HOME", *(f"XDG_{name}_HOME" for name in ("CONFIG", "DATA", "STATE", "CACHE")))
        try:
            done = subprocess.run(
                [binary, "--version"],
                env={"PATH": os.defpath} | dict.fromkeys(folders, home),
                capture_output=True,
                check=False,
                encoding="utf-8",
                errors="replace",
                timeout=_VERSION_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the kernel lets go of it when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

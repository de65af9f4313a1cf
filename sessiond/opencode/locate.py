"""Where opencode lies on this machine, and which version it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sessiond.errors import ConfigurationError, InvalidInput

SUPPORTED = ("1.18.33",)
"""The versions of opencode that sessiond is tested with."""

_VERSION_SECONDS = 30


def find_opencode(named: str, environ: Mapping[str, str]) -> Path | None:
    """Return the executable that is named, else the one on PATH; None when there is none.

    Raises:
        InvalidInput: the one that is named is none.
    """
    if named:
        found = shutil.which(Path(named).expanduser())
        if found is None:
            raise InvalidInput(
                f"{named} is not an executable", hint="give the path of opencode itself"
            )
        return Path(found).absolute()
    found = shutil.which("opencode", path=environ.get("PATH", os.defpath))
    return Path(found).absolute() if found else None


def version_of(binary: Path) -> str:
    """Return the version that an opencode says it is.

    Raises:
        ConfigurationError: it does not say.
    """
    with tempfile.TemporaryDirectory(prefix="sessiond-opencode-") as home:
        try:
            done = subprocess.run(  # noqa: S603 - the opencode that the user runs too
                [binary, "--version"],
                env=scratch_environ(Path(home)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                encoding="utf-8",
                errors="replace",
                timeout=_VERSION_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _unusable(binary, str(error)) from error
    words = done.stdout.split()
    if done.returncode or len(words) != 1:
        raise _unusable(binary, (done.stderr or done.stdout).strip()[:300] or "it says nothing")
    return words[0]


def scratch_environ(folder: Path) -> dict[str, str]:
    """Return the environment of an opencode that keeps everything in a folder, and asks nobody."""
    homes = {f"XDG_{name}_HOME": str(folder) for name in ("CONFIG", "DATA", "STATE", "CACHE")}
    quiet = ("AUTOUPDATE", "DEFAULT_PLUGINS", "LSP_DOWNLOAD", "MODELS_FETCH", "SHARE")
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "HOME": str(folder),
        "npm_config_fetch_retries": "0",
        **homes,
        **{f"OPENCODE_DISABLE_{name}": "1" for name in quiet},
    }


def database_path(environ: Mapping[str, str]) -> Path:
    """Return where opencode keeps its database, by its own rule."""
    data = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME", "/")) / ".local" / "share"
    return Path(data) / "opencode" / (environ.get("OPENCODE_DB") or "opencode.db")


def global_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of what opencode loads everywhere: `$XDG_CONFIG_HOME/opencode`.

    Raises:
        ConfigurationError: neither that nor HOME is set.
    """
    if base := environ.get("XDG_CONFIG_HOME"):
        return Path(base).absolute() / "opencode"
    if home := environ.get("HOME"):
        return Path(home).absolute() / ".config" / "opencode"
    raise ConfigurationError("neither XDG_CONFIG_HOME nor HOME is set", hint="set one of them")


def project_folder(directory: Path) -> Path:
    """Return the folder of what opencode loads in a project: `.opencode` in its worktree."""
    return (_worktree(directory) or directory) / ".opencode"


def is_project(directory: Path) -> bool:
    """Tell whether a directory is in a git worktree, which is what opencode calls a project."""
    return _worktree(directory) is not None


def configuration_folders(directory: Path, environ: Mapping[str, str]) -> list[Path]:
    """Return the existing configuration folders of an opencode that is started in a directory."""
    end = _worktree(directory) or Path("/")
    below = [folder for folder in (directory, *directory.parents) if folder.is_relative_to(end)]
    folders = [global_folder(environ), *(folder / ".opencode" for folder in below)]
    if environ.get("HOME"):
        folders.append(Path(environ["HOME"]) / ".opencode")
    if environ.get("OPENCODE_CONFIG_DIR"):
        folders.append(Path(environ["OPENCODE_CONFIG_DIR"]).absolute())
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _worktree(directory: Path) -> Path | None:
    """Return the root of the git worktree that a directory is in, if any."""
    found = (folder for folder in (directory, *directory.parents) if (folder / ".git").exists())
    return next(found, None)


def _unusable(binary: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{binary} does not tell its version: {reason}",
        hint="try `opencode --version`; name another one with --opencode PATH",
    )

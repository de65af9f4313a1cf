"""What of sessiond lies in a configuration folder of opencode, and what is written down of it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from sessiond import __version__
from sessiond.errors import ConfigurationError
from sessiond.opencode import settings as plugin_settings
from sessiond.opencode.seed import SEED
from sessiond.opencode.settings import Settings

PLUGIN = "plugin/sessiond.js"
TWIN = "plugins/sessiond.js"
SETTINGS = f"plugin/{plugin_settings.FILE}"
RECORD = "plugin/sessiond.installed.json"

_OURS = (PLUGIN, SETTINGS, *SEED)
_FOLDERS = re.compile(r"plugin|node_modules|\.|\.\.(/\.\.)*")
_ABOUT = "What `sessiond opencode install` put here. `sessiond opencode uninstall` removes it."


class Record(Struct, kw_only=True):
    """What was put into a configuration folder: files → SHA-256, and folders that were not there.

    Paths are relative to the folder; "." is itself, ".." the one above.
    """

    about: str = _ABOUT
    sessiond: str = __version__
    opencode: str = ""
    files: dict[str, str] = {}
    folders: list[str] = []


class Step(Struct, frozen=True):
    """What was done with a file or folder, or would be. `keep`: nothing, for the `reason` given."""

    action: Literal["create", "replace", "remove", "keep"]
    path: str
    reason: str = ""


class Report(Struct, kw_only=True):
    """What was done in a configuration folder, and what a person should know about it."""

    folder: str
    steps: list[Step] = []
    notes: list[str] = []

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return any(step.action != "keep" for step in self.steps)


_DECODER = msgspec.json.Decoder(Record)


def copies(folder: Path) -> list[Path]:
    """Return where in a configuration folder a plugin of sessiond lies."""
    return [folder / name for name in (PLUGIN, TWIN) if (folder / name).exists()]


def packaged() -> bytes:
    """Return the plugin as it comes with sessiond."""
    return (files("sessiond") / "opencode" / PLUGIN).read_bytes()


def read_record(folder: Path) -> Record | None:
    """Return what was put into a folder; None when nothing was.

    A record may come with a cloned repository: it can name nothing that `install` would not make.

    Raises:
        ConfigurationError: the record cannot be read.
    """
    path = folder / RECORD
    try:
        record = _DECODER.decode(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}", hint="remove it and install again"
        ) from error
    record.files = {name: hash_ for name, hash_ in record.files.items() if name in _OURS}
    record.folders = [name for name in record.folders if _FOLDERS.fullmatch(name)]
    return record


def read_settings(folder: Path) -> Settings:
    """Return the settings in a folder, the defaults when there are none.

    Raises:
        ConfigurationError: they are not valid.
    """
    path = folder / SETTINGS
    try:
        return plugin_settings.decoded(path.read_bytes(), path)
    except (FileNotFoundError, NotADirectoryError):
        return Settings()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error

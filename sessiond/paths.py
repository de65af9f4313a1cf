"""This machine: its name, and where things lie on it, by the XDG folders."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from sessiond.errors import ConfigurationError


def data_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for what must be kept: `$XDG_DATA_HOME/sessiond`."""
    return _base(environ, "XDG_DATA_HOME", ".local/share") / "sessiond"


def runtime_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for sockets: `$XDG_RUNTIME_DIR/sessiond`, else below the state folder."""
    if _is_absolute(environ.get("XDG_RUNTIME_DIR")):
        return Path(environ["XDG_RUNTIME_DIR"]) / "sessiond"
    return _base(environ, "XDG_STATE_HOME", ".local/state") / "sessiond" / "run"


def api_socket(configured: str, environ: Mapping[str, str]) -> Path:
    """Return the socket of the local API (`api.socket`)."""
    return Path(configured).expanduser() if configured else runtime_folder(environ) / "api.sock"


def _base(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    if _is_absolute(environ.get(variable)):
        return Path(environ[variable])
    if not environ.get("HOME"):
        raise ConfigurationError(
            f"neither {variable} nor HOME is set", hint=f"set {variable} to an absolute path"
        )
    return Path(environ["HOME"]) / below_home


def _is_absolute(value: str | None) -> bool:
    return bool(value) and Path(str(value)).is_absolute()


def host_name() -> str:
    """Return this machine's name, as far as it can be part of an origin."""
    name = "".join(
        c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in socket.gethostname()
    )
    return name.lstrip("-_.")[:64] or "host"

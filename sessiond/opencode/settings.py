"""The plugin's settings: `sessiond.json` beside it. The environment goes first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from sessiond.errors import ConfigurationError, InvalidInput, SessiondError
from sessiond.opencode.protocol import Mode
from sessiond.sync.names import checked

FILE = "sessiond.json"

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Settings(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the file may say.

    The sidecar is reached at `socket`, or at `url` with the token in `token_file`; without both at
    the daemon's usual socket. `turn_seconds`: a prompt waits at most this long for its turn.
    """

    socket: str = ""
    url: str = ""
    token_file: str = ""
    mode: Mode = "lease"
    share: Literal["on", "off"] | bool = "on"
    share_key: str = ""
    turn_seconds: float = 600.0

    @property
    def is_sharing(self) -> bool:
        """Whether sessions are shared at all."""
        return self.share not in ("off", False)

    def changed(self, given: Mapping[str, Any]) -> Settings:
        """Return these settings with others given; a new place of the sidecar replaces the old.

        Raises:
            InvalidInput: they are not valid.
        """
        kept = msgspec.to_builtins(self)
        if given.get("url") or given.get("socket"):
            kept = {name: kept[name] for name in kept.keys() - {"url", "socket", "token_file"}}
        try:
            settings = msgspec.convert({**kept, **given}, Settings)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"the plugin's settings are wrong: {error}") from error
        _check(settings, InvalidInput)
        return settings


_DECODER = msgspec.json.Decoder(Settings)


def decoded(content: bytes, path: Path) -> Settings:
    """Return the settings of a file's content.

    Raises:
        ConfigurationError: they are not valid.
    """
    try:
        settings = _DECODER.decode(content)
        _check(settings, ConfigurationError)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"{path} is not valid: {error}",
            hint="correct it, or remove it and run `sessiond opencode install` again",
        ) from error
    return settings


def encoded(settings: Settings) -> bytes:
    """Return the file's content: what differs from the defaults."""
    return msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n"


def effective(file: Settings, environ: Mapping[str, str], default_socket: Path) -> Settings:
    """Return what holds for a plugin with this environment, as the plugin reckons it.

    Raises:
        ConfigurationError: a variable of the environment is wrong.
    """
    place = {"url": file.url, "socket": file.socket}
    if environ.get("SESSIOND_URL") or environ.get("SESSIOND_SOCKET"):
        place = {
            "url": environ.get("SESSIOND_URL", ""),
            "socket": environ.get("SESSIOND_SOCKET", ""),
        }
    if not place["url"] and not place["socket"]:
        place["socket"] = str(default_socket)
    share = environ.get("SESSIOND_SHARE")
    is_sharing = file.is_sharing if share is None else share != "off"
    found = {
        **place,
        "token_file": file.token_file,
        "mode": environ.get("SESSIOND_OPENCODE_MODE", file.mode),
        "share": "on" if is_sharing else "off",
        "share_key": environ.get("SESSIOND_SHARE_KEY", file.share_key),
        "turn_seconds": environ.get("SESSIOND_TURN_SECONDS", file.turn_seconds),
    }
    try:
        settings = msgspec.convert(found, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"a SESSIOND_ variable of the environment is wrong: {error}",
            hint="unset it, or correct it",
        ) from error
    _check(settings, ConfigurationError)
    return settings


def _check(settings: Settings, kind: type[SessiondError]) -> None:
    if settings.url and settings.socket:
        raise kind("both a url and a socket are set", hint="choose one of them")
    if settings.url:
        parts = urlsplit(settings.url)
        if parts.scheme != "http" or parts.hostname not in _LOOPBACK:
            raise kind(
                f"{settings.url} is not a loopback address",
                hint="give http://127.0.0.1:PORT, as `sessiond status` shows it",
            )
    for name in ("socket", "token_file"):
        path = getattr(settings, name)
        if path and not Path(path).is_absolute():
            raise kind(f"{name} {path!r} is not an absolute path", hint="begin it with /")
    if settings.share_key:
        try:
            checked("workspace", settings.share_key)
        except InvalidInput as error:
            raise kind(f"the share key cannot be used: {error.detail}", hint=error.hint) from error
    if settings.turn_seconds <= 0:
        raise kind(f"turn_seconds is {settings.turn_seconds:g}", hint="give more than 0")

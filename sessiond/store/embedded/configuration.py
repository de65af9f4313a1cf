"""What the embedded server is told: its options, its configuration file, its password."""

from __future__ import annotations

import os
import re
import secrets
import shlex
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import msgspec

from sessiond.errors import ConfigurationError
from sessiond.folders import read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sessiond.store.embedded.binaries import Binary

SOCKET_PATH_LIMIT = 103
"""Bytes in the path of a Unix socket: 104 with the final zero on macOS and BSD, 108 on Linux."""

CONFIGURATION_FILE = "redis.conf"
LOG_FILE = "redis.log"
PASSWORD_FILE = "redis.password"  # noqa: S105 - the name of a file
PASSWORD_BYTES = 32

_PASSWORD = re.compile(rb"[0-9a-f]{64}\n?")
_PLAIN = re.compile(rb"[A-Za-z0-9 _./:@%+,=~-]")
_INHERITED_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long the embedded server is waited for, in seconds."""

    takeover_s: float = 10.0
    """For a server that an earlier daemon left to answer or to end."""
    ready_s: float = 30.0
    """For a new server to answer at all; while it says that it is loading, time starts anew."""
    shutdown_s: float = 10.0
    """For a server to end after SHUTDOWN."""
    terminate_s: float = 5.0
    """For a server to end after SIGTERM, and again after SIGKILL."""


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how the embedded server runs."""

    directory: Path
    """The data folder; made private."""
    socket: Path
    """The Unix socket, in a folder that is made private as well."""
    binary: Binary
    port: int = 0
    """A loopback port to listen on, protected by a password; 0 for none."""
    appendfsync: Literal["always", "everysec", "no"] = "everysec"
    is_durable: bool = True
    """Whether it keeps what it holds; else that is in memory only."""
    patience: Patience = Patience()


def require_short(socket: Path) -> None:
    """Check that a Unix socket can have this path.

    Raises:
        ConfigurationError: it is too long.
    """
    length = len(os.fsencode(socket.absolute()))
    if length > SOCKET_PATH_LIMIT:
        raise ConfigurationError(
            f"The socket path {socket} has {length} bytes; the system allows {SOCKET_PATH_LIMIT}.",
            hint="choose a shorter one, for example below $XDG_RUNTIME_DIR or /tmp",
        )


def configuration(options: ServerOptions, folder: Path, password: str | None) -> bytes:
    """Return the configuration file for a server on `folder`.

    It holds the password, so it is a secret itself. Everything sits in the file, and nothing on
    the command line, which other users can read.
    """
    settings: list[tuple[str, *tuple[str | Path, ...]]] = [
        ("unixsocket", options.socket.absolute()),
        ("unixsocketperm", "700"),
        ("port", str(options.port)),
        ("bind", "127.0.0.1", "-::1"),
        ("protected-mode", "yes"),
        ("daemonize", "no"),
        ("supervised", "no"),
        ("dir", folder),
        ("logfile", folder / LOG_FILE),
        ("databases", "1"),
        ("save", ""),
        ("appendonly", "yes" if options.is_durable else "no"),
        ("appendfsync", options.appendfsync),
        ("aof-use-rdb-preamble", "yes"),
        ("aof-load-truncated", "yes"),
        ("maxmemory-policy", "noeviction"),
    ]
    if password is not None:
        settings.append(("requirepass", password))
    lines = [b" ".join([name.encode(), *map(_quoted, values)]) for name, *values in settings]
    return b"\n".join([b"# Written by sessiond at every start.", *lines, b""])


def obtain_password(folder: Path) -> str:
    """Return the folder's password, 256 random bits in hexadecimal, made when first needed.

    Raises:
        ConfigurationError: the file is not private, or holds something else.
    """
    password = existing_password(folder)
    if password is None:
        password = secrets.token_hex(PASSWORD_BYTES)
        write_private(folder / PASSWORD_FILE, password.encode() + b"\n")
    return password


def existing_password(folder: Path) -> str | None:
    """Return the folder's password if it has one.

    Raises:
        ConfigurationError: the file is not private, or holds something else.
    """
    path = folder / PASSWORD_FILE
    content = read_private(path)
    if content is None:
        return None
    if not _PASSWORD.fullmatch(content):
        raise ConfigurationError(
            f"The file {path} does not hold a password that sessiond made.",
            hint="delete it, so that a new one is made at the next start",
        )
    return content.decode().strip()


def server_url(socket: Path, password: str | None) -> str:
    """Return the URL by which redis-py reaches the server; it holds the password."""
    login = "" if password is None else f":{password}@"
    return f"unix://{login}{quote(os.fsencode(socket.absolute()))}"


def shell_command(arguments: list[str], folder: Path, *, with_password: bool) -> str:
    """Return a shell command that opens redis-cli; it names the password's file only."""
    command = shlex.join(["redis-cli", *arguments])
    if not with_password:
        return command
    return f'REDISCLI_AUTH="$(cat {shlex.quote(str(folder / PASSWORD_FILE))})" {command}'


def server_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables a server needs, and none of those that may hold our secrets."""
    return {name: environ[name] for name in _INHERITED_VARIABLES if name in environ}


def _quoted(value: str | Path) -> bytes:
    # As sdssplitargs() of Redis reads it.
    plain = (bytes([byte]) for byte in os.fsencode(value))
    return b'"%s"' % b"".join(
        byte if _PLAIN.match(byte) else b"\\x%02x" % ord(byte) for byte in plain
    )

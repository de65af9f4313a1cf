"""The sockets of the local API, made so that only their owner can use them."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from sessiond.errors import ConfigurationError
from sessiond.folders import private_folder, read_private, write_private

_TOKEN_LENGTH = 43


def bind_unix(path: Path) -> socket.socket:
    """Return a socket bound to a path, for its owner alone (0600 in a 0700 folder).

    Raises:
        ConfigurationError: the folder is open to others, or another daemon listens there.
    """
    private_folder(path.parent)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _remove_stale(path)
    mask = os.umask(0o177)
    try:
        bound.bind(str(path))
    except OSError as error:
        bound.close()
        raise ConfigurationError(
            f"cannot make the socket {path}: {error.strerror or error}",
            hint="choose another path with --socket or api.socket",
        ) from error
    finally:
        os.umask(mask)
    return bound


def bind_tcp(host: str, port: int) -> socket.socket:
    """Return a socket bound to a loopback address.

    Raises:
        ConfigurationError: the address is taken or is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another port with --port, or 0 for a free one",
        ) from error
    return bound


def token(path: Path) -> str:
    """Return the bearer token of a file; a new one of 256 bits when there is no file yet.

    Raises:
        ConfigurationError: the file is a link, or readable by others.
    """
    found = read_private(path)
    if found is None:
        private_folder(path.parent)
        write_private(path, secrets.token_urlsafe(32).encode())
        found = read_private(path) or b""
    text = found.decode("ascii", "replace").strip()
    if len(text) < _TOKEN_LENGTH:
        raise ConfigurationError(
            f"the token in {path} is shorter than 256 bits",
            hint="remove the file; a new one is made",
        )
    return text


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # binding will say what is wrong
        else:
            raise ConfigurationError(
                f"another daemon listens on {path}",
                hint="`sessiond status` shows it; a second one needs its own --socket",
            )

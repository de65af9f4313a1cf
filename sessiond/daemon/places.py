"""Where a daemon keeps what, by its options: its server, journal, copies and the JSON files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from sessiond.config import Configuration
from sessiond.errors import ConfigurationError
from sessiond.folders import private_folder, try_lock
from sessiond.paths import data_folder, runtime_folder
from sessiond.store.embedded.server import (
    SERVER_LOCK,
    ServerOptions,
    find_binary,
    last_used_binary,
)


class Places(Struct, frozen=True, kw_only=True):
    """The folders of a daemon.

    Attributes:
        redis: of the embedded server.
        journal: of the writes.
        replica: of the copies for reading.
        files: of the JSON files; None where none are kept.
        memory: what holds the first three and goes with the daemon; None where they are kept.
    """

    redis: Path
    journal: Path
    replica: Path
    files: Path | None
    memory: Path | None = None


def places(configuration: Configuration, environ: Mapping[str, str]) -> Places:
    """Return where a daemon keeps what.

    Raises:
        ConfigurationError: the options contradict each other, or a folder cannot be told.
    """
    persistence, redis = configuration.persistence, configuration.redis
    if not persistence.enabled:
        _check_memory_only(configuration)
        memory = runtime_folder(environ) / "memory"
        return Places(
            redis=memory / "redis",
            journal=memory / "journal",
            replica=memory / "replica",
            files=None,
            memory=memory,
        )
    data = data_folder(environ)
    is_default = persistence.backend == "file" and not redis.url
    return Places(
        redis=_named(redis.embedded.directory) or data / "redis",
        journal=_named(configuration.journal.directory) or data / "journal",
        replica=data / "replica",
        files=(
            data / Path(persistence.directory).expanduser()
            if is_default or persistence.mirror
            else None
        ),
    )


def embedded_options(
    configuration: Configuration, environ: Mapping[str, str], where: Places
) -> ServerOptions:
    """Return where and how the embedded server is to run.

    Raises:
        EmbeddedServerFailed: no usable server program was found.
    """
    embedded = configuration.redis.embedded
    last_used = last_used_binary(where.redis)
    return ServerOptions(
        directory=where.redis,
        socket=runtime_folder(environ) / "redis.sock",
        port=embedded.port,
        appendfsync=embedded.appendfsync,
        is_durable=where.memory is None,
        binary=find_binary(embedded.binary, environ, last_used=last_used),
    )


def begin_memory(folder: Path) -> None:
    """Empty the folder of what is to be in memory only.

    What a killed daemon left there goes, unless its server still runs: that is taken over.

    Raises:
        ConfigurationError: the folder cannot be used.
    """
    server = private_folder(folder / "redis")
    lock = try_lock(server / SERVER_LOCK)
    if lock is None:
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def end_memory(folder: Path) -> None:
    """Remove what was to be in memory only."""
    shutil.rmtree(folder, ignore_errors=True)


def _check_memory_only(configuration: Configuration) -> None:
    if configuration.redis.url:
        raise ConfigurationError(
            "persistence.enabled is false, and redis.url names a Redis that keeps sessions",
            hint="leave redis.url empty, or set persistence.enabled to true",
        )
    if configuration.persistence.mirror:
        raise ConfigurationError(
            "persistence.enabled is false, and persistence.mirror asks for files of the sessions",
            hint="set one of them differently",
        )


def _named(folder: str) -> Path | None:
    return Path(folder).expanduser() if folder else None

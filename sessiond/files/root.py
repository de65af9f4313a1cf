"""The folder that holds the folders of all sessions: opened by one daemon at a time."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sessiond.errors import FolderHeld
from sessiond.files.folder import SessionFolder
from sessiond.folders import private_folder, try_lock

QUARANTINE = ".quarantine"
LOCK = ".lock"

_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class FilesRoot:
    """Where the folders of sessions lie, held from `open` to `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.quarantine = path / QUARANTINE
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> FilesRoot:
        """Open the folder, made if it is missing.

        Raises:
            ConfigurationError: it cannot be used, or is not ours alone.
            FolderHeld: another daemon keeps its files there.
        """
        folder = private_folder(path)
        lock = try_lock(folder / LOCK)
        if lock is None:
            raise FolderHeld(
                f"Another daemon keeps its sessions' files in {folder}.",
                hint="give this one another persistence.directory",
            )
        return cls(folder, lock)

    def close(self) -> None:
        """Let another daemon have it."""
        os.close(self._lock)

    def of(self, session_id: str) -> SessionFolder:
        """Return the folder of a session, whether it is there or not."""
        return SessionFolder(self.path / session_id, self.quarantine)

    def found(self) -> list[SessionFolder]:
        """Return what is there by the name of a session: folders, and what took their place."""
        with os.scandir(self.path) as entries:
            names = sorted(entry.name for entry in entries if _SESSION_ID.fullmatch(entry.name))
        return [self.of(name) for name in names]

"""What a sidecar remembers of opencode databases over its own restarts, in its data folder.

Losing it loses nothing: positions are found again by comparing states. Only the choice not to
share a session lives here alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct, field

from sessiond.errors import ConfigurationError
from sessiond.sync.position import Position


class Cursor(Struct):
    """Up to where a session's log is in the database; `seq` is how long its own log was then."""

    epoch: str
    offset: int
    seq: int

    @property
    def position(self) -> Position:
        """The position in the session's log."""
        return Position(self.epoch, self.offset)


class Progress(Struct):
    """Up to which sequence opencode's log is in a session's; `birth` is the session's first epoch.

    Of a deleted session it is up to which what came too late is kept. A session with another birth
    was created anew, after Redis had lost it.
    """

    birth: str
    seq: int


class SavedShare(Struct, kw_only=True):
    """One project of one opencode database, shared in one workspace.

    `replica` names it among all, as long as it stays on its `machine`; `identity` tells the
    database's file from one that replaced it. Sessions not touched since `since_ms` (this machine's
    clock) are not shared before somebody imports or continues them; `private` ones never are;
    `public` ones are, though an opencode with sharing switched off began them. `written` is how far
    each session's own log is in Redis.
    """

    replica: str
    machine: str
    database: str
    identity: str = ""
    project_id: str
    worktree: str
    workspace: str
    since_ms: int
    imported: bool = False
    private: list[str] = []
    public: list[str] = []
    cursors: dict[str, Cursor] = field(default_factory=dict)
    written: dict[str, Progress] = field(default_factory=dict)


def this_machine(name: str) -> str:
    """Return what tells this machine from one that its files were copied to."""
    try:
        return f"{name} {Path('/etc/machine-id').read_text(encoding='ascii').strip()}"
    except (OSError, UnicodeDecodeError):
        return name


_DECODER = msgspec.json.Decoder(SavedShare)


def load_shares(folder: Path) -> list[SavedShare]:
    """Return what was saved; what is damaged is set aside and named in the file's new name."""
    shares = []
    for path in sorted(folder.glob("*.json")):
        try:
            shares.append(_DECODER.decode(path.read_bytes()))
        except msgspec.MsgspecError:
            path.rename(path.with_suffix(".damaged"))
    return shares


def forget_share(folder: Path, share: SavedShare) -> None:
    """Remove what was saved of one."""
    (folder / f"{share.replica}.json").unlink(missing_ok=True)


def save_share(folder: Path, share: SavedShare) -> None:
    """Write one, whole or not at all.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    path = folder / f"{share.replica}.json"
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.encode(share))
        os.replace(partial, path)  # noqa: PTH105 - atomic, and named so
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error}", hint="make the data folder writable"
        ) from error

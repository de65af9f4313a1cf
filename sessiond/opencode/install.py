"""Putting the plugin into a configuration folder of opencode, and taking it out again.

What is put there is written down beside it, with a hash of each file: only what is still as it
was put is ever replaced or removed. What a person has, or has changed, stays, and is named.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from sessiond import __version__
from sessiond.errors import AlreadyExists, ConfigurationError
from sessiond.opencode import settings as plugin_settings
from sessiond.opencode.installed import (
    PLUGIN,
    RECORD,
    SETTINGS,
    TWIN,
    Record,
    Report,
    Step,
    packaged,
    read_record,
    read_settings,
)
from sessiond.opencode.seed import MODULES, SEED, importers, is_prepared, seed
from sessiond.opencode.settings import Settings

_GIT_IGNORE = ".gitignore"
_IGNORED = b"node_modules\npackage.json\npackage-lock.json\nbun.lock\n.gitignore"
"""What opencode writes into `.gitignore` of each of its configuration folders."""


def install(
    folder: Path,
    given: Mapping[str, Any],
    *,
    opencode: str,
    dry_run: bool = False,
    force: bool = False,
) -> Report:
    """Put the plugin, its settings and the seed in place, or bring them up to date.

    Args:
        folder: a configuration folder of opencode.
        given: settings; those that are not given stay as they are.
        opencode: the version it is for; empty when unknown, then nothing is seeded.
        dry_run: only tell what would be done.
        force: replace a plugin that sessiond did not put there.

    Raises:
        AlreadyExists: another file lies where the plugin belongs.
        InvalidInput: the settings given are not valid.
        ConfigurationError: the folder cannot be written, or the settings there are not valid.
    """
    before = read_settings(folder)
    settings = before.changed(given)
    work = _Work(folder, read_record(folder) or Record(), dry_run=dry_run)
    try:
        work.put_plugin(force=force)
        work.put_settings(before, settings)
        work.prepare(opencode)
    except ConfigurationError:
        with contextlib.suppress(ConfigurationError):
            work.record()
        raise
    work.record()
    return work.report


def uninstall(folder: Path, notes: Path | None = None, *, dry_run: bool = False) -> Report:
    """Take out what `install` put in place, and the folders it made when nothing else is in them.

    Args:
        folder: where it was put.
        notes: what the plugin noted beside opencode's database; goes too, unless it says that
            sessions are private: installed again, they would be shared.
        dry_run: only tell what would be done.

    Raises:
        ConfigurationError: the folder cannot be written, or the record cannot be read.
    """
    work = _Work(folder, read_record(folder) or Record(), dry_run=dry_run)
    work.take_out()
    if notes:
        work.take_notes(notes)
    return work.report


class _Work:
    """What is done in one folder, step by step."""

    def __init__(self, folder: Path, record: Record, *, dry_run: bool) -> None:
        self.report = Report(folder=str(folder))
        self._folder = folder
        self._record = record
        self._before = msgspec.to_builtins(record)
        self._dry_run = dry_run
        self._gone: set[Path] = set()

    def take_notes(self, notes: Path) -> None:
        """Remove what the plugin noted, unless it is all that keeps sessions private."""
        content = _content(notes)
        if content is None:
            return
        if any(line.startswith(b"private ") for line in content.splitlines()):
            reason = "says which sessions are private; remove it if you do not need that any more"
            self.report.steps.append(Step("keep", str(notes), reason))
        else:
            self._do(Step("remove", str(notes), "the plugin's notes"), notes.unlink)

    # In

    def put_plugin(self, *, force: bool) -> None:
        """Put the plugin in place.

        Raises:
            AlreadyExists: another file lies there.
        """
        path, content = self._folder / PLUGIN, packaged()
        found = _content(path)
        is_other = found is not None and found != content and not self._is_ours(PLUGIN)
        if not force and (is_other or path.is_symlink()):
            raise AlreadyExists(
                f"{path} was changed, or is not sessiond's",
                hint="move it away, or replace it with --force",
            )
        if force and (is_other or path.is_symlink()):
            self._do(Step("remove", str(path), "was changed"), path.unlink)
        elif found == content:
            self._record.files[PLUGIN] = _hash(content)
        self.put(PLUGIN, content, known=True)
        if (self._folder / TWIN).exists():
            self.report.notes.append(
                f"{self._folder / TWIN} is another copy: opencode loads both. Remove that one."
            )

    def put_settings(self, before: Settings, settings: Settings) -> None:
        """Write the settings if they change; there is no file while all are the defaults."""
        if settings == before:
            if (self._folder / SETTINGS).exists():
                self._step("keep", SETTINGS, "is up to date")
        elif settings == Settings() and self._is_ours(SETTINGS):
            self._remove(SETTINGS)
            self._record.files.pop(SETTINGS)
        else:
            self.put(SETTINGS, plugin_settings.encoded(settings))

    def put(self, name: str, content: bytes, *, known: bool = False) -> None:
        """Write a file unless it is so already.

        One that a person wrote as well is theirs from then on, unless it is `known` not to be.
        """
        path = self._folder / name
        found = _content(path)
        if found == content:
            self._step("keep", name, "is up to date")
            return
        is_ours = known or found is None or self._is_ours(name)
        self._folder_for(path)
        action: Literal["create", "replace"] = "create" if found is None else "replace"
        self._do(Step(action, str(path)), lambda: _write(path, content))
        if is_ours:
            self._record.files[name] = _hash(content)

    def prepare(self, opencode: str) -> None:
        """Seed the folder so that opencode starts without a network, if that does no harm."""
        self._forget_changed_seed()
        ours = [name for name in SEED if name in self._record.files]
        needing = importers(self._folder)
        if ours and needing:
            self._take_seed_out(ours)
            self.report.notes.append(
                f"{needing[0]} imports opencode's plugin package, which opencode fetches at its "
                "next start; that needs a network."
            )
        elif not ours and is_prepared(self._folder):
            return
        elif needing:
            self._leave_unprepared(f"{needing[0]} imports opencode's plugin package")
        elif theirs := self._theirs(ours):
            self._leave_unprepared(f"{theirs} is yours and was left alone")
        elif opencode:
            self._seed(opencode)
        else:
            self._leave_unprepared("opencode was not found (name it with --opencode PATH)")

    def record(self) -> None:
        """Write down what was put here, if that changed."""
        self._record.sessiond = __version__
        path = self._folder / RECORD
        if msgspec.to_builtins(self._record) == self._before and path.exists():
            return
        content = msgspec.json.format(msgspec.json.encode(self._record), indent=2) + b"\n"
        action: Literal["create", "replace"] = "replace" if path.exists() else "create"
        self._do(Step(action, str(path)), lambda: _write(path, content))

    def _seed(self, opencode: str) -> None:
        modules = self._folder / MODULES
        if not modules.exists():
            self._folder_for(modules)
            self._make(modules)
        for name, content in seed(opencode).items():
            self.put(name, content)
        self._record.opencode = opencode

    def _forget_changed_seed(self) -> None:
        """Leave the seed to npm, opencode or a person, once one of them went on from there."""
        names = [name for name in SEED if name in self._record.files]
        if any(_lies(self._folder / name) and not self._as_put(name) for name in names):
            self._forget(names)

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            del self._record.files[name]
        self._record.folders = [name for name in self._record.folders if name != MODULES]
        self._record.opencode = ""

    def _theirs(self, ours: list[str]) -> Path | None:
        """Return what a person has where the seed belongs, if anything."""
        names = [*SEED, MODULES]
        if ours:
            names = [name for name in SEED if name not in ours]
        return next((self._folder / name for name in names if _lies(self._folder / name)), None)

    def _leave_unprepared(self, reason: str) -> None:
        self.report.notes.append(
            f"{reason}: until opencode was once started with a network, each start without one "
            "takes over a minute."
        )

    # Out

    def take_out(self) -> None:
        """Remove every file that is as it was put, then the folders that were made."""
        if PLUGIN not in self._record.files and _content(self._folder / PLUGIN) == packaged():
            self._record.files[PLUGIN] = _hash(packaged())  # put there by hand
        for name in self._record.files:
            self._remove(name)
        for name in (PLUGIN, TWIN, SETTINGS):
            if name not in self._record.files and _lies(self._folder / name):
                self._step("keep", name, "is not what was installed")
        path = self._folder / RECORD
        if path.exists():
            self._do(Step("remove", str(path)), path.unlink)
            self._gone.add(path)
        self._remove_folders(self._record.folders)

    def _take_seed_out(self, names: list[str]) -> None:
        for name in names:
            self._remove(name)
        self._remove_folders(name for name in self._record.folders if name == MODULES)
        self._forget(names)

    def _remove(self, name: str) -> bool:
        """Remove a file that is as it was put; return whether it is gone."""
        path = self._folder / name
        if not _lies(path):
            return True
        if not self._as_put(name):
            self._step("keep", name, "was changed since it was installed")
            return False
        self._do(Step("remove", str(path)), path.unlink)
        self._gone.add(path)
        return True

    def _remove_folders(self, names: Iterable[str]) -> None:
        for path in sorted((_joined(self._folder, name) for name in names), key=_depth):
            if path.is_symlink() or not path.is_dir():
                continue
            left = [child for child in path.iterdir() if child not in self._gone]
            ignore = path / _GIT_IGNORE
            if left == [ignore] and _content(ignore) == _IGNORED:  # opencode's, for this folder
                self._do(Step("remove", str(ignore)), ignore.unlink)
                self._gone.add(ignore)
                left = []
            if not left:
                self._do(Step("remove", str(path)), path.rmdir)
                self._gone.add(path)

    # Both

    def _is_ours(self, name: str) -> bool:
        return name in self._record.files and self._as_put(name)

    def _as_put(self, name: str) -> bool:
        path = self._folder / name
        found = None if path.is_symlink() else _content(path)
        return found is not None and _hash(found) == self._record.files.get(name)

    def _folder_for(self, path: Path) -> None:
        missing = [folder for folder in path.parents if not folder.exists()]
        for folder in reversed(missing):
            self._make(folder)

    def _make(self, folder: Path) -> None:
        name = os.path.relpath(folder, self._folder)
        if name in self._record.folders and self._dry_run:
            return
        if name not in self._record.folders:
            self._record.folders.append(name)
        self._do(Step("create", str(folder)), lambda: folder.mkdir(exist_ok=True))

    def _step(self, action: Literal["remove", "keep"], name: str, reason: str) -> None:
        self.report.steps.append(Step(action, str(self._folder / name), reason))

    def _do(self, step: Step, action: Callable[[], object]) -> None:
        self.report.steps.append(step)
        if self._dry_run:
            return
        try:
            action()
        except OSError as error:
            raise ConfigurationError(
                f"cannot {step.action} {step.path}: {error.strerror or error}",
                hint=f"make {self._folder} writable, or choose another folder",
            ) from error


def _lies(path: Path) -> bool:
    """Tell whether anything is there, be it a link that leads nowhere."""
    return path.is_symlink() or path.exists()


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that an opencode that starts now reads the old or the new."""
    path = path.resolve()  # a link stays one
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _joined(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder / name))


def _depth(path: Path) -> int:
    return -len(path.parts)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

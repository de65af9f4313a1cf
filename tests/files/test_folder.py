"""A session's files are written whole or not at all, private, and their backup is a valid one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from sessiond.errors import FolderHeld
from sessiond.files.folder import BACKUP, FolderChanged, Missing, SessionFolder
from sessiond.files.layout import FILES, file_of, rendered
from sessiond.files.reading import stamp_of
from sessiond.files.root import FilesRoot
from sessiond.files.state import FileState, FolderState
from sessiond.model import Cache
from tests.files.support import SESSION, overwrite, session, written


def test_the_files_say_what_the_specification_s_say(tmp_path: Path) -> None:
    folder = SessionFolder(tmp_path / "ses_1", tmp_path / ".quarantine")
    folder.write(FolderState(session_id="ses_1"), rendered(msgspec.json.encode(SESSION), Cache()))
    for name in FILES[:-1]:
        content = folder.file(name).read_text(encoding="utf-8")
        assert msgspec.json.decode(content) == SESSION[name]
    assert '"content": "Hélp",\n' in folder.file("conversation").read_text(encoding="utf-8")
    assert msgspec.json.decode(folder.file("cache").read_bytes()) == {"entries": {}}


def test_everything_is_private(tmp_path: Path) -> None:
    folder, state = written(tmp_path)
    folder.write(state, session(theme="light"))
    folder.quarantine("cache.json", 1)
    for path in (folder.path, *tmp_path.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 == wanted, path


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    folder, state = written(tmp_path)
    inodes = {name: folder.file(name).stat().st_ino for name in FILES}
    new = folder.write(state, session(theme="light"))
    changed = [name for name in FILES if folder.file(name).stat().st_ino != inodes[name]]
    assert changed == ["preferences"]
    assert folder.load_state() == new
    assert folder.examine(new, wholly=True) == (new, [])


def test_the_backup_has_what_was_there_before(tmp_path: Path) -> None:
    folder, state = written(tmp_path)
    before = folder.file("preferences").read_bytes()
    state = folder.write(state, session(theme="light"))
    assert (folder.path / BACKUP / file_of("preferences")).read_bytes() == before
    assert folder.valid_content("preferences", state) == session(theme="light").files["preferences"]
    flipped = before.replace(b"d", b"e")
    overwrite(folder.file("preferences"), flipped, keep_time=True)
    state = structs.replace(state, files={**state.files, "preferences": _seen(folder, state)})
    assert folder.valid_content("preferences", state) == before


def _seen(folder: SessionFolder, state: FolderState) -> FileState:
    """What is known of the preferences, had the flip kept their time to the nanosecond."""
    known = state.files["preferences"]
    return structs.replace(known, stamp=stamp_of(folder.file("preferences")))


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, b'{"theme": "li'])
def test_a_damaged_file_gives_way_to_its_backup(tmp_path: Path, damage: bytes) -> None:
    folder, state = written(tmp_path)
    before = folder.file("preferences").read_bytes()
    state = folder.write(state, session(theme="light"))
    overwrite(folder.file("preferences"), damage, keep_time=False)
    assert folder.valid_content("preferences", state) == before
    backup = folder.path / BACKUP / file_of("preferences")
    overwrite(backup, before.replace(b"theme", b"thema"), keep_time=False)
    assert folder.valid_content("preferences", state) is None


def test_nothing_is_written_over_what_somebody_just_changed(tmp_path: Path) -> None:
    folder, state = written(tmp_path)
    overwrite(folder.file("preferences"), b'{"theme": "mine"}', keep_time=False)
    with pytest.raises(FolderChanged):
        folder.write(state, session(theme="light"))
    assert folder.file("preferences").read_bytes() == b'{"theme": "mine"}'


class _Crash(Exception):
    """The process ends here."""


@pytest.mark.parametrize("step", range(40))
def test_a_crash_at_any_step_leaves_files_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder, state = written(tmp_path)
    state = folder.write(state, session(theme="light", x="1"))
    steps = iter(range(step + 1))

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(steps, None) is None:
                raise _Crash
            return function(*args, **options)

        return call

    with monkeypatch.context() as patched:
        for place, name in ((os, "fsync"), (os, "link"), (Path, "rename")):
            patched.setattr(place, name, counted(getattr(place, name)))
        patched.setattr(Path, "unlink", lambda *_args, **_options: None)
        try:
            folder.write(state, session(theme="pink"))
        except (_Crash, OSError):
            pass
        else:
            assert step > 5, "otherwise nothing was tried"
    known = folder.load_state()
    assert known is not None
    state, findings = folder.examine(known, wholly=True)
    assert all(isinstance(finding, Missing) for finding in findings), findings
    done = folder.write(state, session(theme="pink"))
    assert folder.examine(done, wholly=True)[1] == []


def test_what_people_put_there_stays_when_the_session_goes(tmp_path: Path) -> None:
    folder, _ = written(tmp_path)
    note = folder.path / "note.txt"
    note.write_text("mine", encoding="utf-8")
    folder.remove()
    assert list(folder.path.iterdir()) == [note]
    note.unlink()
    folder.remove()
    assert not folder.path.exists()


def test_nothing_is_overwritten_in_the_quarantine(tmp_path: Path) -> None:
    folder, state = written(tmp_path)
    first = folder.quarantine("cache.json", 7)
    state, _ = folder.examine(state, wholly=False)
    folder.write(state, session())
    second = folder.quarantine("cache.json", 7)
    assert first != second
    assert first.exists()


def test_one_daemon_at_a_time_has_the_folder(tmp_path: Path) -> None:
    root = FilesRoot.open(tmp_path / "sessions")
    with pytest.raises(FolderHeld, match="Another daemon keeps"):
        FilesRoot.open(tmp_path / "sessions")
    root.close()
    root = FilesRoot.open(tmp_path / "sessions")
    (root.path / "ses_1").mkdir()
    (root.path / "not a session").mkdir()
    assert [folder.session_id for folder in root.found()] == ["ses_1"]
    root.close()

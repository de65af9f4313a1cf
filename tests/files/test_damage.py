"""Whatever happens to a byte of a session's files is noticed, and no edit is taken for damage."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sessiond.files.folder import Damaged, Edited, Missing, Rejected, SessionFolder
from sessiond.files.layout import FILES, FileName, file_of
from sessiond.files.reading import Unreadable
from sessiond.files.state import STATE_FILE, FolderState, decode_state
from tests.files.support import overwrite, session, written

every_file = pytest.mark.parametrize("name", FILES)


def found(folder: SessionFolder, state: FolderState) -> list[object]:
    return list(folder.examine(state, wholly=True)[1])


@every_file
def test_every_flipped_bit_is_damage_where_nobody_wrote(tmp_path: Path, name: FileName) -> None:
    folder, state = written(tmp_path)
    path = folder.file(name)
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in (0, 3, 5):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            overwrite(path, bytes(flipped), keep_time=True)
            (finding,) = found(folder, state)
            assert isinstance(finding, Damaged), (place, bit)
    overwrite(path, content, keep_time=True)
    assert found(folder, state) == []


@every_file
@pytest.mark.parametrize("keep_time", [True, False], ids=["unseen", "touched"])
def test_every_truncation_is_noticed(tmp_path: Path, name: FileName, *, keep_time: bool) -> None:
    folder, state = written(tmp_path)
    path = folder.file(name)
    content = path.read_bytes()
    for length in range(len(content) - 1):  # without its last line break it says the same
        overwrite(path, content[:length], keep_time=keep_time)
        (finding,) = found(folder, state)
        assert isinstance(finding, Damaged | Rejected), length


@every_file
def test_every_tail_of_zeros_is_damage(tmp_path: Path, name: FileName) -> None:
    folder, state = written(tmp_path)
    path = folder.file(name)
    content = path.read_bytes()
    for length in range(len(content)):
        overwrite(path, content[:length].ljust(len(content), b"\0"), keep_time=False)
        (finding,) = found(folder, state)
        assert isinstance(finding, Damaged), length


def _a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _unreadable(path: Path) -> None:
    path.chmod(0)


@pytest.mark.parametrize("change", [_a_link, _a_pipe, _a_folder, _unreadable])
@every_file
def test_what_is_no_file_any_more_is_damage_and_can_be_moved_away(
    tmp_path: Path, name: FileName, change: Callable[[Path], None]
) -> None:
    if change is _unreadable and os.geteuid() == 0:
        pytest.skip("root reads everything")
    folder, state = written(tmp_path)
    change(folder.file(name))
    (finding,) = found(folder, state)
    assert isinstance(finding, Damaged)
    kept = folder.quarantine(file_of(name), 1)
    assert os.path.lexists(kept)
    assert not os.path.lexists(folder.file(name))


def test_a_file_that_cannot_be_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = written(tmp_path)
    opened = os.open

    def refused(path: Path, flags: int, mode: int = 0o777) -> int:
        if Path(path).name == "context.json":
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", refused)
    (finding,) = found(folder, state)
    assert finding == Damaged("context", "it cannot be read: Permission denied")


def test_every_flipped_bit_of_what_is_known_of_the_files_is_noticed(tmp_path: Path) -> None:
    folder, state = written(tmp_path)
    content = (folder.path / STATE_FILE).read_bytes()
    assert decode_state(content) == state
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            assert decode_state(bytes(flipped)) is None, (place, bit)
        assert decode_state(content[:place]) is None, place


def test_the_state_of_another_session_s_folder_is_refused(tmp_path: Path) -> None:
    folder, _ = written(tmp_path)
    copied = folder.path.rename(tmp_path / "ses_2")
    with pytest.raises(Unreadable, match="ses_1"):
        SessionFolder(copied, tmp_path / ".quarantine").load_state()


def test_an_edit_is_no_damage(tmp_path: Path) -> None:
    folder, state = written(tmp_path)
    overwrite(folder.file("preferences"), b'{"theme": "light"}', keep_time=False)
    (finding,) = found(folder, state)
    assert isinstance(finding, Edited)
    assert finding.value == {"theme": "light"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("preferences", b'{"theme": "li', "not valid JSON"),
        ("preferences", b"[]", "no preferences.json: Expected `object`, got `array`"),
        ("conversation", b'{"messages": [{"content": "x"}]}', "missing required field `role`"),
        ("conversation", b'{"mesages": []}', "unknown field `mesages`"),
        ("context", b'{"active_files": "README.md"}', r"Expected `array`, got `str`"),
        ("context", b"[" * 100 + b"]" * 100, "deeper than 64"),
        ("metadata", b'{"session_id": "ses_1"}', "missing required field `created_at`"),
    ],
)
def test_an_edit_that_says_nothing_is_rejected_with_the_reason(
    tmp_path: Path, name: FileName, content: bytes, reason: str
) -> None:
    folder, state = written(tmp_path)
    overwrite(folder.file(name), content, keep_time=False)
    (finding,) = found(folder, state)
    assert isinstance(finding, Rejected)
    assert reason in finding.reason
    assert folder.file(name).read_bytes() == content


def test_a_touched_file_is_nothing_to_do_about(tmp_path: Path) -> None:
    folder, state = written(tmp_path)
    content = folder.file("context").read_bytes()
    overwrite(folder.file("context"), content, keep_time=False)
    state, findings = folder.examine(state, wholly=False)
    assert findings == []
    assert not folder.is_touched(state)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    folder, state = written(tmp_path)
    folder.file("cache").unlink()
    state, findings = folder.examine(state, wholly=False)
    assert findings == [Missing("cache")]
    folder.write(state, session())
    assert folder.file("cache").read_bytes() == session().files["cache"]

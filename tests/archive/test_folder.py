"""A folder of archives."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sessiond.archive.folder import ArchiveFolder, file_name, parse_file
from sessiond.errors import ArchiveUnavailable

EPOCH = "00f3a9c1d2e4b7"
NAME = file_name("ses_1", EPOCH, 12, "0123456789abcdef")


@pytest.fixture
def folder(tmp_path: Path) -> ArchiveFolder:
    return ArchiveFolder(tmp_path / "deep" / "archive")


def test_a_name_says_whose_it_is_and_up_to_where() -> None:
    file = parse_file(NAME)
    assert file
    assert (file.session_id, file.epoch, file.version, file.released_ms) == (
        "ses_1",
        EPOCH,
        12,
        None,
    )
    marked = parse_file(f"{NAME}.released-77")
    assert marked
    assert (marked.name, marked.released_ms) == (NAME, 77)


@pytest.mark.parametrize(
    "name", ["", "notes.txt", f"{NAME}.new", f"../{NAME}", "a.b-c.d.archive", f"{NAME}.released-x"]
)
async def test_other_names_are_no_archives(folder: ArchiveFolder, name: str) -> None:
    assert parse_file(name) is None
    with pytest.raises(ArchiveUnavailable, match="not the name of an archive"):
        await folder.read(name)


async def test_an_archive_is_private_and_whole(folder: ArchiveFolder) -> None:
    assert await folder.files() == []
    await folder.write(NAME, b"content")
    assert await folder.read(NAME) == b"content"
    assert [entry.name for entry in os.scandir(folder.path)] == [NAME]
    assert stat.S_IMODE((folder.path / NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


async def test_a_released_archive_is_read_until_it_is_removed(folder: ArchiveFolder) -> None:
    await folder.write(NAME, b"content")
    await folder.release(NAME, 77)
    await folder.release(NAME, 99)  # once is enough
    (file,) = await folder.files()
    assert file.released_ms == 77
    assert await folder.read(NAME) == b"content"
    await folder.remove(file)
    assert await folder.files() == []
    with pytest.raises(ArchiveUnavailable, match="No such file"):
        await folder.read(NAME)


async def test_what_a_killed_writer_left_is_removed_when_it_is_old(folder: ArchiveFolder) -> None:
    await folder.drop_drafts(0)  # there is no folder yet
    await folder.write(NAME, b"content")
    draft = folder.path / f"{NAME}.new"
    draft.write_bytes(b"cont")
    written = draft.stat().st_mtime
    await folder.drop_drafts(written - 1)
    assert draft.exists()
    await folder.drop_drafts(written + 1)
    assert [entry.name for entry in os.scandir(folder.path)] == [NAME]


async def test_links_and_pipes_are_not_read(folder: ArchiveFolder, tmp_path: Path) -> None:
    await folder.write(NAME, b"content")
    path = folder.path / NAME
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArchiveUnavailable):
        await folder.read(NAME)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ArchiveUnavailable, match="not a plain file"):
        await folder.read(NAME)


async def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = ArchiveFolder(tmp_path / "file")
    with pytest.raises(ArchiveUnavailable, match="archive folder"):
        await folder.write(NAME, b"content")

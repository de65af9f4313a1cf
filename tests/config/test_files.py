from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from sessiond.config import find_file, load
from sessiond.errors import ConfigurationError


def refused(file: Path) -> ConfigurationError:
    started = time.monotonic()
    with pytest.raises(ConfigurationError) as caught:
        load(file=file, environ={}, flags={})
    assert time.monotonic() - started < 1
    assert caught.value.detail.startswith(f"{file}: expected a file of at most 65536 bytes, found ")
    assert caught.value.hint
    return caught.value


def write(file: Path, text: str = "debug: {sessions: true}\n") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_the_named_file_is_found_whether_it_exists_or_not(tmp_path: Path) -> None:
    write(tmp_path / "xdg" / "sessiond" / "sessions.yaml")
    environ = {
        "SESSIOND_CONFIG": str(tmp_path / "named.yaml"),
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
    }
    assert find_file(environ) == tmp_path / "named.yaml"


def test_an_empty_name_is_no_name(tmp_path: Path) -> None:
    assert find_file({"SESSIOND_CONFIG": "", "HOME": str(tmp_path)}) is None


def test_a_relative_name_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_file({"SESSIOND_CONFIG": "sessions.yaml"})
    assert caught.value.detail == (
        "variable SESSIOND_CONFIG: expected an absolute path, found the text 'sessions.yaml'"
    )
    assert caught.value.hint == "give the whole path: the current folder never configures sessiond"


def test_the_xdg_folder_comes_before_the_home_folder(tmp_path: Path) -> None:
    home = write(tmp_path / "home" / ".config" / "sessiond" / "sessions.yaml")
    xdg = tmp_path / "xdg" / "sessiond" / "sessions.yaml"
    environ = {"HOME": str(tmp_path / "home")}
    assert find_file(environ) == home
    environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert find_file(environ) is None
    write(xdg)
    assert find_file(environ) == xdg
    environ["XDG_CONFIG_HOME"] = "relative"
    assert find_file(environ) == home
    environ["XDG_CONFIG_HOME"] = ""
    assert find_file(environ) == home


def test_no_file_and_no_home_is_none(tmp_path: Path) -> None:
    assert find_file({"HOME": str(tmp_path)}) is None
    assert find_file({}) is None
    assert find_file({"HOME": "relative"}) is None
    assert find_file({"HOME": "/\0"}) is None


def test_the_current_folder_is_never_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (
        "sessions.yaml",
        "config/sessions.yaml",
        "sessiond/sessions.yaml",
        ".config/sessiond/sessions.yaml",
        "x/sessiond/sessions.yaml",
    ):
        write(tmp_path / place)
    monkeypatch.chdir(tmp_path)
    assert find_file({}) is None
    assert find_file({"HOME": "", "XDG_CONFIG_HOME": ""}) is None
    assert find_file({"HOME": ".", "XDG_CONFIG_HOME": "x"}) is None


def test_a_broken_link_does_not_silently_mean_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "sessiond" / "sessions.yaml"
    file.parent.mkdir()
    file.symlink_to(tmp_path / "gone")
    assert find_file({"XDG_CONFIG_HOME": str(tmp_path)}) == file
    assert "nothing there" in refused(file).detail


def test_a_named_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    error = refused(tmp_path / "absent.yaml")
    assert error.detail.endswith("found nothing there")
    assert error.hint == "create it, or name another with --config or SESSIOND_CONFIG"


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to(write(tmp_path / "real.yaml"))
    assert load(file=tmp_path / "link.yaml", environ={}, flags={}).debug.sessions


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path).detail.endswith("found a folder")


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").detail.endswith("found a pipe, a socket or a device")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(device: str) -> None:
    assert refused(Path(device)).detail.endswith("found a pipe, a socket or a device")


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert "cannot be opened" in refused(tmp_path / "s").detail


def test_more_than_64_kib_are_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path / "large.yaml", "#" * 65_537))
    assert error.detail.endswith("found 65537 bytes")
    load(file=write(tmp_path / "full.yaml", "#" * 65_536), environ={}, flags={})


def test_a_file_that_grows_while_it_is_read_is_refused() -> None:
    # /proc files say that they are empty and are not.
    file = Path("/proc/self/smaps")
    if not file.exists() or len(file.read_bytes()) <= 65_536:
        pytest.skip("needs a large file of /proc")
    with pytest.raises(ConfigurationError, match="expected at most 65536 bytes, found more"):
        load(file=file, environ={}, flags={})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "locked.yaml")
    file.chmod(0)
    assert "Permission denied" in refused(file).detail


def test_a_path_that_no_file_system_takes_is_refused() -> None:
    for name in ("/a\0b", "/\ud800"):
        with pytest.raises(ConfigurationError, match="cannot be opened"):
            load(file=Path(name), environ={}, flags={})


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    descriptors = Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    refused(tmp_path / "pipe")
    refused(tmp_path)
    load(file=write(tmp_path / "a.yaml"), environ={}, flags={})
    assert len(list(descriptors.iterdir())) == before

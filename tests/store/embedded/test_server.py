"""The life of an embedded server, on each binary that this machine has."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import uvloop
from structlog.testing import capture_logs

from sessiond.errors import EmbeddedServerFailed, FolderHeld
from sessiond.folders import read_holder, try_lock
from sessiond.store.embedded.server import Binary, Patience
from tests.store.embedded.support import (
    SHORT,
    client,
    descriptors,
    eventually,
    free_port,
    installed_binaries,
    kept,
    kill_daemon,
    linux_only,
    obstruct,
    open_to_others,
    options,
    pid_of,
    put,
    running,
    script,
    server_of,
    server_pid_of,
    servers_on,
    short_folder,
    spawn_daemon,
    state_of,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

folder = pytest.fixture(short_folder, name="folder")


@pytest.fixture(params=installed_binaries())
def binary(request: pytest.FixtureRequest) -> Binary:
    found = request.param
    assert isinstance(found, Binary)
    return found


@pytest.fixture
def daemons() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def test_a_started_server_answers_and_is_set_up_to_keep_data(
    folder: Path, binary: Binary
) -> None:
    async with running(options(folder, binary)) as server, client(server.url) as redis:
        assert await redis.ping()
        settings = await redis.config_get()
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "everysec"
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["save"] == ""
        assert settings["port"] == "0"
        assert server.url == f"unix://{folder}/redis.sock"
        assert server.version.startswith(("redis 7", "valkey 9"))
        assert not server.adopted


async def test_nothing_in_the_folder_is_open_to_others(folder: Path, binary: Binary) -> None:
    async with running(options(folder, binary, port=free_port())) as server:
        await put(server, "v")
        assert open_to_others(folder) == []


async def test_data_survives_a_stop_and_a_start(folder: Path, binary: Binary) -> None:
    async with running(options(folder, binary)) as server:
        await put(server, "first")
    async with running(options(folder, binary)) as server:
        assert await kept(server) == "first"
        assert not server.adopted


async def test_one_object_starts_again_after_a_stop(folder: Path, binary: Binary) -> None:
    server = server_of(options(folder, binary))
    for value in ("a", "b"):
        await server.start()
        await put(server, value)
        await server.stop()
        assert server.pid is None


@linux_only
async def test_the_server_of_a_killed_daemon_is_adopted(
    folder: Path, binary: Binary, daemons: ExitStack
) -> None:
    daemon = spawn_daemon(folder, binary)
    daemons.callback(kill_daemon, daemon)
    pid = server_pid_of(daemon)
    async with client(f"unix://{folder}/redis.sock") as redis:
        await redis.set("kept", "through the kill")
    kill_daemon(daemon)
    async with running(options(folder, binary)) as server:
        assert server.adopted
        assert server.pid == pid
        assert await kept(server) == "through the kill"
    assert servers_on(folder) == []


@linux_only
async def test_an_adopted_server_that_dies_is_restarted(
    folder: Path, binary: Binary, daemons: ExitStack
) -> None:
    daemon = spawn_daemon(folder, binary)
    daemons.callback(kill_daemon, daemon)
    pid = server_pid_of(daemon)
    kill_daemon(daemon)
    async with running(options(folder, binary)) as server:
        await put(server, "still here")
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: server.restarts == 1)
        assert server.pid != pid
        assert not server.adopted
        assert await kept(server) == "still here"


@linux_only
@pytest.mark.parametrize("other", ["appendfsync", "port"])
async def test_a_server_left_with_other_settings_is_replaced(
    folder: Path, binary: Binary, daemons: ExitStack, other: str
) -> None:
    daemon = spawn_daemon(folder, binary)
    daemons.callback(kill_daemon, daemon)
    pid = server_pid_of(daemon)
    async with client(f"unix://{folder}/redis.sock") as redis:
        await redis.set("kept", "before")
    kill_daemon(daemon)
    value = "always" if other == "appendfsync" else free_port()
    wanted = options(folder, binary, **{other: value})
    async with running(wanted) as server, client(server.url) as redis:
        assert server.pid != pid
        assert await redis.config_get(other) == {other: str(value)}
        assert await redis.get("kept") == "before"
    async with running(options(folder, binary)) as server:
        assert await kept(server) == "before"


@linux_only
async def test_a_killed_server_comes_back_with_its_data(folder: Path, binary: Binary) -> None:
    with capture_logs() as logs:
        async with running(options(folder, binary)) as server:
            await put(server, "acknowledged")
            pid = pid_of(server)
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: server.restarts == 1)
            assert server.pid != pid
            assert state_of(pid) == ""
            assert await kept(server) == "acknowledged"
    events = [entry["event"] for entry in logs]
    assert events == [
        "embedded.started",
        "embedded.died",
        "embedded.restarted",
        "embedded.stopped",
    ]
    assert logs[1]["status"] == -signal.SIGKILL


@linux_only
async def test_a_server_that_cannot_come_back_is_tried_until_it_can(
    folder: Path, binary: Binary
) -> None:
    program = folder.parent / "server"
    program.symlink_to(binary.path)
    with capture_logs() as logs:
        async with running(options(folder, Binary(program, "configured"))) as server:
            await put(server, "patience")
            program.unlink()
            os.kill(pid_of(server), signal.SIGKILL)
            await eventually(lambda: logs[-1]["event"] == "embedded.restart_failed")
            assert server.pid is None
            program.symlink_to(binary.path)
            await eventually(lambda: server.restarts == 1)
            assert await kept(server) == "patience"


@linux_only
async def test_a_stopped_server_is_not_taken_for_dead(folder: Path, binary: Binary) -> None:
    async with running(options(folder, binary)) as server:
        pid = pid_of(server)
        os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: state_of(pid) == "T")
        with pytest.raises(TimeoutError):  # that nothing happens can only be waited for
            await eventually(lambda: servers_on(folder) != [pid], within_s=0.3)
        os.kill(pid, signal.SIGCONT)
        await put(server, "awake")
        assert server.pid == pid
        assert server.restarts == 0


@linux_only
async def test_a_stopped_server_of_a_killed_daemon_is_not_doubled(
    folder: Path, binary: Binary, daemons: ExitStack
) -> None:
    daemon = spawn_daemon(folder, binary)
    daemons.callback(kill_daemon, daemon)
    pid = server_pid_of(daemon)
    kill_daemon(daemon)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EmbeddedServerFailed, match=f"pid {pid} still uses"):
        await server_of(options(folder, binary, patience=SHORT)).start()
    assert servers_on(folder) == [pid]
    os.kill(pid, signal.SIGCONT)
    async with running(options(folder, binary)) as server:
        assert server.pid == pid


@linux_only
async def test_a_server_that_is_just_ending_is_waited_for(folder: Path, binary: Binary) -> None:
    async with running(options(folder, binary)):
        pass
    lock = try_lock(folder / "server.lock")  # as a server holds it until its very end
    assert lock is not None
    server = server_of(options(folder, binary))
    starting = asyncio.create_task(server.start())
    with pytest.raises(TimeoutError):
        await eventually(lambda: starting.done() or servers_on(folder) != [], within_s=0.2)
    os.close(lock)
    await starting
    await server.stop()


async def test_a_second_owner_is_told_who_holds_the_folder(folder: Path, binary: Binary) -> None:
    async with running(options(folder, binary)) as server:
        with pytest.raises(FolderHeld, match=f"pid {os.getpid()}.*kill {os.getpid()}"):
            await server_of(options(folder, binary)).start()
        assert await kept(server) is None


@linux_only
async def test_daemons_in_a_race_make_one_server(
    folder: Path, binary: Binary, daemons: ExitStack
) -> None:
    for _ in range(3):
        racers = [spawn_daemon(folder, binary) for _ in range(4)]
        for racer in racers:
            daemons.callback(kill_daemon, racer)
        winner = await last_one_standing(racers)
        for loser in set(racers) - {winner}:
            assert f"pid {winner.pid}" in loser.communicate()[1]
        assert servers_on(folder) == [server_pid_of(winner)]
        kill_daemon(winner)


async def last_one_standing(racers: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    await eventually(lambda: sum(racer.poll() is None for racer in racers) == 1)
    return next(racer for racer in racers if racer.poll() is None)


@linux_only
@pytest.mark.parametrize("moment", ["locked", "configured", "spawned", "listening", "recorded"])
async def test_a_daemon_killed_while_starting_never_leads_to_two_servers(
    folder: Path, binary: Binary, daemons: ExitStack, moment: str
) -> None:
    moments: dict[str, Callable[[], bool]] = {
        "locked": (folder / "daemon.lock").exists,
        "configured": (folder / "redis.conf").exists,
        "spawned": lambda: read_holder(folder / "server.lock") is not None,
        "listening": (folder / "redis.sock").exists,
        "recorded": (folder / "server.binary").exists,
    }
    daemon = spawn_daemon(folder, binary)
    daemons.callback(kill_daemon, daemon)
    await eventually(moments[moment], pause_s=0)
    kill_daemon(daemon)
    left = servers_on(folder)
    async with running(options(folder, binary)) as server:
        assert servers_on(folder) == [server.pid]
        assert left in ([], [server.pid])


@linux_only
@pytest.mark.parametrize("file", ["redis.conf.new", "server.binary.new"])
async def test_a_start_that_cannot_write_leaves_nothing_behind(
    folder: Path, binary: Binary, file: str
) -> None:
    obstacle = obstruct(folder, file)
    with pytest.raises(EmbeddedServerFailed, match="cannot be used"):
        await server_of(options(folder, binary)).start()
    assert servers_on(folder) == []
    obstacle.rmdir()
    async with running(options(folder, binary)) as server:
        assert not server.adopted


@linux_only
async def test_a_slow_load_is_waited_for(folder: Path, binary: Binary) -> None:
    async with running(options(folder, binary)) as server, client(server.url) as redis:
        pipeline = redis.pipeline(transaction=False)
        for number in range(8_000):
            pipeline.set(f"key-{number}", number)
        await pipeline.execute()
    slow = script(folder, f'exec {binary.path} "$1" --key-load-delay 200')
    patience = Patience(ready_s=1.0)
    slowly = options(folder, Binary(slow, "configured"), patience=patience)
    began = asyncio.get_running_loop().time()
    async with running(slowly) as server, client(server.url) as redis:
        assert asyncio.get_running_loop().time() - began > patience.ready_s
        assert await redis.dbsize() == 8_000


@linux_only
async def test_stop_is_clean_and_can_be_repeated(folder: Path, binary: Binary) -> None:
    server = server_of(options(folder, binary))
    await server.stop()
    await server.start()
    pid = pid_of(server)
    await asyncio.gather(server.stop(), server.stop())
    await server.stop()
    assert state_of(pid) == ""  # reaped, too
    assert not (folder / "redis.sock").exists()


@linux_only
async def test_no_descriptor_is_left_open(folder: Path, binary: Binary) -> None:
    counts = []
    for _ in range(2):
        async with running(options(folder, binary)) as server:
            await put(server, "v")
            os.kill(pid_of(server), signal.SIGKILL)
            await eventually(lambda: server.restarts == 1)
        counts.append(descriptors())
    assert counts[0] == counts[1]


@linux_only
async def test_a_server_that_does_not_end_is_killed(folder: Path, binary: Binary) -> None:
    server = server_of(options(folder, binary, patience=SHORT))
    await server.start()
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    with capture_logs() as logs:
        await server.stop()
    assert [entry["event"] for entry in logs] == ["embedded.killed", "embedded.stopped"]
    assert state_of(pid) == ""
    assert not (folder / "redis.sock").exists()


async def test_waiting_for_a_failure_ends_with_the_stop(folder: Path, binary: Binary) -> None:
    async with running(options(folder, binary)) as server:
        waiting = asyncio.create_task(server.wait_failed())
        with pytest.raises(TimeoutError):
            await eventually(waiting.done, within_s=0.05)
    await waiting


@linux_only
@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_supervision_works_on_every_event_loop(
    folder: Path, binary: Binary, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def scenario() -> None:
        async with running(options(folder, binary)) as server:
            await put(server, "kept")
            os.kill(pid_of(server), signal.SIGKILL)
            await eventually(lambda: server.restarts == 1)
            assert await kept(server) == "kept"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


@linux_only
async def test_supervision_works_without_process_descriptors(
    folder: Path, binary: Binary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    async with running(options(folder, binary)) as server:
        os.kill(pid_of(server), signal.SIGKILL)
        await eventually(lambda: server.restarts == 1)

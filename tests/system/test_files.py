"""The JSON files of real daemons: edited here and seen there, and what is left when Redis is lost.

And a daemon that keeps nothing, which says so.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sessiond.client import DaemonClient
from sessiond.model import NewMessage, NewSession, Session
from sessiond.service.status import Diagnosis, Status
from tests.cli.commands import sessiond
from tests.daemons import RunningDaemon, running_daemon
from tests.system.observing import until

FOLDER = Path("sessiond/.opencode/sessions")


def files_of(daemon: RunningDaemon, session_id: str = "s") -> Path:
    return daemon.folder / FOLDER / session_id


def read(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else None


async def status_of(client: DaemonClient) -> Status:
    status: Status
    status, _ = await client.call("GET", "/v1/status", Status)
    return status


async def write(client: DaemonClient) -> Session:
    await client.create(NewSession(session_id="s", preferences={"theme": "dark"}))
    await client.append("s", [NewMessage(role="user", content=f"no {n}") for n in range(20)])
    return await client.load("s")


async def mirrored(daemon: RunningDaemon, messages: int) -> None:
    path = files_of(daemon) / "conversation.json"

    async def is_there() -> bool:
        found = await asyncio.to_thread(read, path)
        return found is not None and found["total_messages"] == messages

    await until(is_there)


async def test_a_file_edited_on_one_machine_is_a_change_on_the_other(
    laptop: RunningDaemon, here: DaemonClient, there: DaemonClient
) -> None:
    await write(here)
    await mirrored(laptop, 20)
    (files_of(laptop) / "preferences.json").write_text('{"theme": "light"}', encoding="utf-8")

    async def is_changed() -> bool:
        return bool((await there.load("s")).preferences == {"theme": "light"})

    await until(is_changed)
    operation = (await there.operations("s")).operations[-1]
    assert operation.origin.startswith("files@laptop")


async def test_beside_a_shared_redis_there_are_files_only_where_they_are_wanted(
    laptop: RunningDaemon, here: DaemonClient
) -> None:
    url = f"unix://{laptop.redis_socket}"
    await write(here)
    with running_daemon("--redis-url", url, start=False) as without:
        without.start()
        with running_daemon("--redis-url", url, start=False) as wanted:
            wanted.configure("persistence:\n  mirror: true\n  directory: notes/sessions\n")
            wanted.start()
            path = wanted.folder / "sessiond/notes/sessions/s/conversation.json"

            async def is_there() -> bool:
                return await asyncio.to_thread(path.exists)

            await until(is_there)
        assert not (without.folder / "sessiond" / ".opencode").exists()


async def test_when_the_server_s_data_is_lost_sessions_come_back_from_the_files(
    laptop: RunningDaemon,
) -> None:
    client = DaemonClient(socket=str(laptop.socket))
    before = await write(client)
    await mirrored(laptop, 20)
    await client.close()
    laptop.stop()
    for lost in ("redis", "journal", "replica"):
        shutil.rmtree(laptop.folder / "sessiond" / lost)
    laptop.start()
    client = DaemonClient(socket=str(laptop.socket))

    async def is_back() -> bool:
        files = (await status_of(client)).files
        return files is not None and [each.what for each in files.recent] == ["restored"]

    await until(is_back)
    after = await client.load("s")
    assert after.conversation == before.conversation
    assert (after.preferences, after.context) == (before.preferences, before.context)
    await client.close()
    assert "restored: Redis had lost it" in sessiond(laptop, "status").stdout


async def test_two_daemons_do_not_keep_the_same_files(laptop: RunningDaemon) -> None:
    with running_daemon(start=False) as other:
        other.configure(f"persistence:\n  directory: {laptop.folder / FOLDER}\n")
        other.start()
        client = DaemonClient(socket=str(other.socket))
        diagnosis: Diagnosis
        diagnosis, _ = await client.call("GET", "/v1/doctor", Diagnosis)
        await client.close()
    (finding,) = [found for found in diagnosis.findings if found.check == "files"]
    assert (finding.state, finding.code) == ("failed", "folder-held")
    assert "persistence.directory" in finding.remedy


@pytest.fixture
def forgetful() -> Iterator[RunningDaemon]:
    with running_daemon(start=False) as daemon:
        daemon.configure("persistence:\n  enabled: false\n")
        daemon.start()
        yield daemon


async def test_in_memory_only_nothing_is_left_and_nothing_is_promised(
    forgetful: RunningDaemon,
) -> None:
    client = DaemonClient(socket=str(forgetful.socket))
    await write(client)
    status = await status_of(client)
    assert status.in_memory
    assert status.files is None
    diagnosis: Diagnosis
    diagnosis, _ = await client.call("GET", "/v1/doctor", Diagnosis)
    await client.close()
    said = {promise.of: promise.promise for promise in diagnosis.promises}
    assert "lost when this daemon ends" in said["journaled"]
    assert said["committed"] == said["journaled"]
    assert "in memory only" in sessiond(forgetful, "status").stdout
    assert (forgetful.folder / "sessiond" / "memory" / "journal").exists()
    assert list((forgetful.folder / "sessiond" / "memory" / "redis").glob("appendonlydir*")) == []
    forgetful.stop()
    left = [path.name for path in (forgetful.folder / "sessiond").rglob("*")]
    assert not {"memory", "journal", "replica", "redis"} & set(left), left
    assert not (forgetful.folder / FOLDER).exists()
    forgetful.start()
    client = DaemonClient(socket=str(forgetful.socket))
    assert (await client.list_sessions()).sessions == []
    await client.close()


async def test_what_a_killed_daemon_had_in_memory_is_gone_with_its_server(
    forgetful: RunningDaemon,
) -> None:
    client = DaemonClient(socket=str(forgetful.socket))
    await write(client)
    await client.close()
    forgetful.kill()
    forgetful.start()  # takes the server over that goes on alone
    client = DaemonClient(socket=str(forgetful.socket))
    assert len((await client.list_sessions()).sessions) == 1
    await client.close()
    forgetful.stop()
    assert not (forgetful.folder / "sessiond" / "memory").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("redis:\n  url: redis://localhost:1/0\n", "redis.url names a Redis that keeps sessions"),
        ("", "persistence.mirror asks for files"),
    ],
)
def test_what_contradicts_memory_only_is_refused(options: str, expected: str) -> None:
    with running_daemon(start=False) as daemon:
        mirror = "" if options else "  mirror: true\n"
        daemon.configure(f"persistence:\n  enabled: false\n{mirror}{options}")
        refused = sessiond(daemon, "run", code=4)
    assert expected in refused.stderr

"""While Redis is away, a daemon answers for the sessions that it saw, and says how old that is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET
from redis import Redis

import sessiond as sessiond_package
from sessiond import SessionManager
from sessiond.client import DaemonClient
from sessiond.model import (
    JOURNALED,
    Context,
    JournaledOperation,
    NewMessage,
    NewSession,
    Operation,
)
from sessiond.opencode.protocol import Attached, Attachment
from sessiond.service.status import Status
from tests.api.client import Client
from tests.api.servers import DurableServer
from tests.api.wire import Answer
from tests.cli.commands import sessiond
from tests.daemons import RunningDaemon
from tests.opencode.tables import add_session, make_database
from tests.system.observing import settled, until


@pytest.fixture
def wire(daemon: RunningDaemon) -> Client:
    return Client(daemon.socket)


def message(content: str, name: str) -> NewMessage:
    return NewMessage(role="user", content=content, id=name)


async def copied(client: DaemonClient, sessions: int) -> None:
    """Return when a daemon has copies of so many sessions, with all that is in them."""

    async def is_copied() -> bool:
        status: Status
        status, _ = await client.call("GET", "/v1/status", Status)
        replica = status.replica
        return replica is not None and (replica.sessions, replica.behind) == (sessions, 0)

    await until(is_copied)


async def write_history(client: DaemonClient) -> None:
    context = Context(state={"phase": 1}, active_files=["a.py"])
    await client.create(NewSession(session_id="s", title="seen", context=context))
    for number in range(12):
        await client.append("s", [message(f"words {number}", f"m{number}")])
    await client.edit("s", "m3", {"content": "edited"})
    await client.remove("s", "m4")
    await client.put_part("s", "m5", "p1", {"type": "text", "text": "a part"})
    await client.change_document("s", "context", {"state": {"phase": 2}})
    await client.change_document("s", "preferences", {"theme": "dark"})
    await client.create(NewSession(session_id="t", title="another"))


READS = (
    "/v1/sessions/s",
    "/v1/sessions/s/position",
    "/v1/sessions/s/operations?after=3&limit=5",
    "/v1/sessions/s/messages?limit=4",
    "/v1/sessions/s/messages?after=6&limit=100",
    "/v1/sessions/s/messages/m3",
    "/v1/sessions/s/messages/m5",
    "/v1/sessions/s/metadata",
    "/v1/sessions/s/context",
    "/v1/sessions/s/preferences",
    "/v1/sessions?limit=1",
    "/v1/sessions?limit=10",
    "/v1/sessions?user_id=nobody",
)


def told(answer: Answer) -> tuple[int, Any, str]:
    """What must be the same without Redis: of a cursor, that there is one."""
    body = answer.json
    cursor = {"cursor": bool(body["cursor"])} if "cursor" in body else {}
    return answer.status, body | cursor, answer.header("etag")


async def fresh(wire: Client) -> bool:
    """Tell whether Redis is known to be back."""
    return not wire.call("GET", "/v1/sessions").header("sessiond-stale")


async def test_what_was_seen_is_read_as_it_was_and_marked_stale_until_redis_is_back(
    server: DurableServer, client: DaemonClient, wire: Client
) -> None:
    await write_history(client)
    await copied(client, sessions=2)
    before = {path: wire.call("GET", path) for path in READS}
    assert not any(answer.header("sessiond-stale") for answer in before.values())
    server.kill()
    for path, answer in before.items():
        now = wire.call("GET", path)
        assert told(now) == told(answer), path
        assert 0 <= float(now.header("sessiond-stale")) < 30, path
        assert not now.header("sessiond-waiting")
    server.start()
    await until(lambda: fresh(wire))
    for path, answer in before.items():
        now = wire.call("GET", path)
        assert told(now) == told(answer), path
        assert not now.header("sessiond-stale")


async def test_a_daemon_starts_without_redis_reads_what_it_knew_and_goes_on_when_it_is_there(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient, wire: Client
) -> None:
    await write_history(client)
    await copied(client, sessions=2)
    before = {path: wire.call("GET", path) for path in READS}
    daemon.stop()
    server.kill()
    daemon.start()
    for path, answer in before.items():
        now = wire.call("GET", path)
        assert told(now) == told(answer), path
        assert 0 < float(now.header("sessiond-stale")) < 60, path
    status: Status
    status, _ = await client.call("GET", "/v1/status", Status)
    assert status.server.away_seconds is not None
    assert (status.sessions, status.server.ping_ms) == (None, None)
    assert wire.call("GET", "/v1/ready").status == 503
    written = await client.append("s", [message("offline", "m99")])
    assert written.durability == JOURNALED
    assert (await client.load("s")).conversation.messages[-1].content == "offline"
    server.start()
    await settled(client)
    await until(lambda: fresh(wire))
    assert wire.call("GET", "/v1/ready").status == 200
    assert (await client.load("s")).conversation.messages[-1].content == "offline"
    await copied(client, sessions=2)


async def test_own_and_neighbours_journaled_writes_are_read_and_may_be_gone_on_from(
    server: DurableServer, client: DaemonClient, wire: Client
) -> None:
    await client.create(NewSession(session_id="s", context=Context(state={"a": 1})))
    await client.append("s", [message("first", "m1")])
    await copied(client, sessions=1)
    server.kill()
    patch = {"state": {"b": 2}}
    changed = await client.change_document("s", "context", patch)
    assert changed.value["state"] == {"a": 1, "b": 2}, "the whole document, not the patch"
    await client.append("s", [message("second", "m2")])
    await client.create(NewSession(session_id="t", title="made offline"))
    found = wire.call("GET", "/v1/sessions/s")
    assert (found.header("sessiond-waiting"), found.json["versions"]["context"]) == (
        "2",
        changed.version,
    )
    assert [each["id"] for each in found.json["conversation"]["messages"]] == ["m1", "m2"]
    assert found.json["context"]["state"] == {"a": 1, "b": 2}
    assert wire.get("/v1/sessions/t/metadata")["title"] == "made offline"
    listed = (await client.list_sessions()).sessions
    assert {each.metadata.session_id: each.total_messages for each in listed} == {"s": 2, "t": 0}
    await client.change_document("s", "context", {"state": {"c": 3}}, base=changed.version)
    server.start()
    await settled(client)
    await until(lambda: fresh(wire))
    assert (await client.load("s")).context.state == {"a": 1, "b": 2, "c": 3}
    assert await client.conflicts() == []


async def test_a_server_that_comes_back_unfit_is_not_written_to(
    server: DurableServer, client: DaemonClient, wire: Client
) -> None:
    await client.create(NewSession(session_id="s"))
    await copied(client, sessions=1)
    server.kill()
    server.start("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with Redis(unix_socket_path=str(server.socket)) as redis:
        before = redis.info("commandstats")
        written = await client.append("s", [message("kept here", "m1")])
        assert written.durability == JOURNALED
        assert wire.call("GET", "/v1/sessions/s").header("sessiond-stale")
        assert wire.call("GET", "/v1/ready").status == 503
        assert written_by(redis.info("commandstats")) == written_by(before)
    server.kill()
    server.start()
    await settled(client)
    await until(lambda: fresh(wire))
    assert [each.id for each in (await client.load("s")).conversation.messages] == ["m1"]


def written_by(stats: dict[str, Any]) -> dict[str, int]:
    """How often each command was called that a daemon writes with."""
    writes = ("evalsha", "eval", "hset", "zadd", "xadd", "set", "publish", "zremrangebyscore")
    return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in writes}


async def test_programs_and_people_are_told_how_old_it_is_and_get_what_is_new_afterwards(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient, wire: Client
) -> None:
    await write_history(client)
    await copied(client, sessions=2)
    server.kill()
    await client.change_document("s", "context", {"state": {"phase": 3}})
    for found in (
        await client.load("s"),
        await client.list_sessions(),
        await client.page("s"),
        await client.document("s", "context"),
        await client.message("s", "m1"),
    ):
        assert isinstance(found.stale_seconds, float)
    assert sessiond(daemon, "show", "s").stderr.startswith("Redis is away: this is what this machi")
    listed = sessiond(daemon, "sessions")
    assert " s ago" in listed.stderr
    assert "seen" in listed.stdout
    async with SessionManager.connect(socket=str(daemon.socket)) as manager:
        session = await manager.load("s")
        assert isinstance(session.stale_seconds, float)
        assert 0 <= float(await javascript(JAVASCRIPT_LOADS, daemon)) < 60
        assert session.context.state == {"phase": 3}
        server.start()
        await settled(client)
        await until(lambda: fresh(wire))
        session.preferences["unsaved"] = True
        await client.append("s", [message("from elsewhere", "m50")])
        await session.add_message(role="user", content="after", id="m51")
        assert not session.stale_seconds
        assert [each.id for each in session.messages[-2:]] == ["m50", "m51"]
        assert session.context.state == {"phase": 3}
        await session.save()
        assert (await client.load("s")).preferences == {"theme": "dark", "unsaved": True}
    assert (await client.load("s")).stale_seconds is UNSET


async def test_who_watches_here_sees_what_is_journaled_here_and_then_its_place(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient
) -> None:
    await client.create(NewSession(session_id="s"))
    async with SessionManager.connect(socket=str(daemon.socket)) as manager:
        session = await manager.load("s")
        seen: list[Operation | JournaledOperation] = []

        async def watch() -> None:
            async for event in session.subscribe():
                match event:
                    case Operation() | JournaledOperation():
                        seen.append(event)

        async def has_seen(count: int) -> bool:
            return len(seen) >= count

        watching = asyncio.create_task(watch())
        await client.append("s", [message("before", "m1")])
        await until(lambda: has_seen(1))
        server.kill()
        written = await client.append("s", [message("offline", "m2")])
        await client.change_document("s", "context", {"state": {"phase": 2}})
        await until(lambda: has_seen(3))
        said, changed = seen[1:]
        assert isinstance(said, JournaledOperation)
        assert isinstance(changed, JournaledOperation)
        assert (said.op, said.id, said.version) == (
            "message.append",
            "m2",
            written.records[0].version,
        )
        assert said.origin.startswith("ana@")
        assert (changed.id, changed.body) == ("context", {"state": {"phase": 2}})
        assert [each.content for each in session.messages] == ["before", "offline"]
        server.start()
        await until(lambda: has_seen(5))
        assert [type(each) for each in seen[3:]] == [Operation, Operation]
        assert [each.id for each in seen[3:]] == ["m2", "context"]
        assert [each.content for each in session.messages] == ["before", "offline"]
        assert session.context.state == {"phase": 2}
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_javascript_program_sees_it_too(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient
) -> None:
    await client.create(NewSession(session_id="s"))
    program = await started(JAVASCRIPT_WATCHES, daemon)
    assert program.stdout
    assert await program.stdout.readline() == b"loaded\n"
    await client.append("s", [message("before", "m1")])
    assert await program.stdout.readline() == b"message.append before\n"
    server.kill()
    await client.append("s", [message("offline", "m2")])
    assert await program.stdout.readline() == b"journaled before,offline\n"
    server.start()
    assert await program.stdout.readline() == b"message.append before,offline\n"
    program.kill()
    await program.wait()


async def test_an_opencode_may_attach_though_redis_was_away_from_the_start(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient, tmp_path: Path
) -> None:
    daemon.stop()
    server.kill()
    daemon.start()
    database = tmp_path / "opencode.db"
    make_database(database)
    add_session(database, "ses_oc", "project", round(time.time() * 1000))
    described = Attachment(
        version="1.18.33",
        plugin="0.1.0",
        pid=1,
        database=str(database),
        project_id="project",
        directory="/home/dev/proj",
        worktree="/home/dev/proj",
    )
    instance = "/v1/opencode/instances/oc-1"
    attached: Attached
    attached, _ = await client.call("PUT", instance, Attached, body=described)
    assert attached.workspace == "project"
    commands = client.stream(f"{instance}/commands", "")
    first = asyncio.create_task(anext(commands))
    server.start()

    async def is_shared() -> bool:
        listed = await client.list_sessions(workspace="project")
        is_there = any(each.metadata.session_id == "ses_oc" for each in listed.sessions)
        return is_there and listed.stale_seconds is UNSET

    await until(is_shared)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await commands.aclose()
    assert "Traceback" not in daemon.log


JAVASCRIPT_LOADS = """
const manager = SessionManager.connect({ socket: process.argv[1] });
console.log((await manager.load("s")).staleSeconds);
await manager.close();
"""

JAVASCRIPT_WATCHES = """
const session = await SessionManager.connect({ socket: process.argv[1] }).load("s");
console.log("loaded");
for await (const { name } of session.subscribe()) {
  console.log(name, session.messages.map(({ content }) => content).join());
}
"""


async def started(program: str, daemon: RunningDaemon) -> asyncio.subprocess.Process:
    """Start a program that uses the JavaScript module."""
    module = Path(sessiond_package.__file__).parent / "javascript" / "sessiond.mjs"
    program = f'import {{ SessionManager }} from "{module}";\n{program}'
    node = ("node", "--input-type=module", "-e", program, str(daemon.socket))
    return await asyncio.create_subprocess_exec(*node, stdout=asyncio.subprocess.PIPE)


async def javascript(program: str, daemon: RunningDaemon) -> str:
    """Run such a program, and return what it prints."""
    printed, _ = await (await started(program, daemon)).communicate()
    return printed.decode()

"""What a daemon acknowledged is done, whatever Redis does: away, gone back, emptied."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import UNSET, UnsetType
from redis import Redis

from sessiond.client import DaemonClient
from sessiond.errors import AlreadyExists, NotFound, SessionDeleted
from sessiond.model import JOURNALED, Context, NewMessage, NewSession, Written
from sessiond.service.health.tracing import SessionTrace
from sessiond.service.status import Status
from tests.api.servers import DurableServer
from tests.cli.commands import sessiond
from tests.daemons import RunningDaemon, running_daemon, wait_for
from tests.system.observing import settled, until


def message(content: str, name: str | UnsetType = UNSET) -> NewMessage:
    return NewMessage(role="user", content=content, id=name)


async def contents(client: DaemonClient, session_id: str) -> list[str]:
    return [found.content for found in (await client.load(session_id)).conversation.messages]


async def test_what_is_written_while_redis_is_away_is_there_in_order_when_it_is_back(
    server: DurableServer, client: DaemonClient
) -> None:
    await client.create(NewSession(session_id="s"))
    first = await client.append("s", [message("first", "m1")])
    assert not first.durability
    server.kill()
    second = await client.append("s", [message("second")])
    assert (second.durability, second.position) == (JOURNALED, "")
    assert second.records[0].id.startswith("msg_")
    edited = await client.edit("s", "m1", {"content": "edited"})
    changed = await client.change_document("s", "context", {"state": {"phase": 2}})
    part = await client.put_part("s", "m1", "p1", {"type": "text", "text": "a part"})
    created = await client.create(NewSession(session_id="t", title="made offline"))
    assert {edited.durability, changed.durability, part.durability, created.durability} == {
        JOURNALED
    }
    third = await client.append("s", [message("third")])
    assert third.durability == JOURNALED
    await client.append("t", [message("in the new one")])
    server.start()
    await settled(client)
    session = await client.load("s")
    ids = [found.id for found in session.conversation.messages]
    assert ids == ["m1", second.records[0].id, third.records[0].id]
    assert session.conversation.messages[0].content == "edited\na part"
    assert session.context.state == {"phase": 2}
    assert (await client.load("t")).metadata.title == "made offline"
    assert await contents(client, "t") == ["in the new one"]


async def test_a_caller_chooses_what_to_wait_for(
    server: DurableServer, client: DaemonClient
) -> None:
    await client.create(NewSession(session_id="s"))

    async def append(preference: str) -> Written:
        path, headers = "/v1/sessions/s/messages", {"Prefer": preference}
        answer: Written
        answer, _ = await client.call("POST", path, Written, body=message("x"), headers=headers)
        return answer

    assert (await append("respond-async")).durability == JOURNALED
    server.kill()
    waiting = asyncio.create_task(append("wait=20"))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    server.start()
    assert (await waiting).position
    assert len(await contents(client, "s")) == 2


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_what_was_journaled_outlives_the_daemon(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient, how: str
) -> None:
    await client.create(NewSession(session_id="s"))
    server.kill()
    for number in range(20):
        await client.append("s", [message(str(number))])
    daemon.kill() if how == "kill" else daemon.stop()
    server.start()
    daemon.start()
    await settled(client)
    assert await contents(client, "s") == [str(number) for number in range(20)]


async def test_what_redis_lost_is_written_again(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient
) -> None:
    await client.create(NewSession(session_id="s"))
    await client.append("s", [message("kept")])
    server.kill()
    server.copy("older")
    server.start()
    for number in range(5):
        await client.append("s", [message(f"lost {number}")])
    changed = await client.change_document("s", "context", {"state": {"phase": 1}})
    phase = {"state": {"phase": 2}}
    latest = await client.change_document("s", "context", phase, expected=changed.version)
    await client.create(NewSession(session_id="new"))
    server.kill()
    server.restore("older")
    server.start()
    wait_for(lambda: "outbox.redis_lost_writes" in daemon.log)
    await settled(client)
    session = await client.load("s")
    found = [found.content for found in session.conversation.messages]
    assert found == ["kept", *(f"lost {number}" for number in range(5))]
    assert session.context.state == {"phase": 2}
    assert await contents(client, "new") == []
    assert await client.conflicts() == []
    again = {"state": {"phase": 3}}
    await client.change_document("s", "context", again, expected=latest.version)


async def test_an_emptied_redis_is_filled_again_though_no_connection_broke(
    server: DurableServer, client: DaemonClient
) -> None:
    await client.create(NewSession(session_id="s"))
    await client.append("s", [message("a"), message("b")])
    with Redis(unix_socket_path=str(server.socket)) as redis:
        redis.flushall()

    async def is_back() -> bool:
        try:
            return await contents(client, "s") == ["a", "b"]
        except NotFound:
            return False

    await until(is_back)


async def test_what_was_deleted_stays_deleted_though_only_the_deletion_is_left(
    server: DurableServer, client: DaemonClient
) -> None:
    """The session is in the journal of another machine, and that machine is gone."""
    with running_daemon("--redis-url", server.url) as other:
        there = DaemonClient(socket=str(other.socket))
        await there.create(NewSession(session_id="s"))
        await there.append("s", [message("first")])
        await there.close()
    await client.delete("s")
    with pytest.raises(NotFound):
        await client.delete("t")
    with Redis(unix_socket_path=str(server.socket)) as redis:
        redis.flushall()

    async def is_deleted() -> bool:
        try:
            await client.load("s")
        except SessionDeleted:
            return True
        except NotFound:
            return False
        raise AssertionError("it came back")

    await until(is_deleted)
    await settled(client)
    with pytest.raises(NotFound):
        await client.load("t")


async def test_a_write_that_is_refused_after_it_was_acknowledged_becomes_a_conflict(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient
) -> None:
    await client.create(NewSession(session_id="s"))
    await client.append("s", [message("taken", "m1")])
    server.kill()
    answer = await client.append("s", [message("too late", "m1")])
    assert answer.durability == JOURNALED
    await client.edit("s", "nobody", {"content": "of none"})
    server.start()
    await settled(client)
    assert await contents(client, "s") == ["taken"]
    refused, missing = await client.conflicts("s")
    assert (refused.strategy, refused.id, refused.outcome) == ("refusal", "m1", "theirs")
    assert refused.ours.value["content"] == "too late"
    assert refused.theirs.value["content"] == "taken"
    assert "taken by another message" in str(refused.reason)
    assert (missing.id, missing.ours.value) == ("nobody", {"content": "of none"})
    with pytest.raises(AlreadyExists):
        await client.append("s", [message("now it is told at once", "m1")])
    assert len(await client.conflicts("s")) == 2


async def test_a_change_may_be_based_on_one_that_only_is_journaled(
    server: DurableServer, client: DaemonClient
) -> None:
    """So a chain of changes made offline merges as it would have online: nothing counts twice."""
    await client.create(NewSession(session_id="s", context=Context(state={"count": 0})))
    known = await client.document("s", "context")
    server.kill()
    for count in (1, 2, 3):
        patch = {"state": {"count": count}, "active_files": [f"{count}.py"]}
        known = await client.change_document("s", "context", patch, base=known.version)
        assert known.durability == JOURNALED
    server.start()
    await settled(client)
    context = (await client.load("s")).context
    assert context.state == {"count": 3}
    assert context.active_files == ["3.py"]
    await client.change_document("s", "context", {"state": {"count": 4}}, base=known.version)
    assert (await client.load("s")).context.state == {"count": 4}
    assert await client.conflicts("s") == []


async def test_a_session_that_no_journal_can_create_again_comes_back_from_a_copy(
    server: DurableServer,
) -> None:
    """Its creator is gone for good, and Redis went back behind the creation."""
    server.copy("before")
    with running_daemon("--redis-url", server.url) as gone:
        creator = DaemonClient(socket=str(gone.socket))
        await creator.create(NewSession(session_id="s", title="kept"))
        await creator.append("s", [message("from the creator", "m1")])
        await creator.close()
    with running_daemon("--redis-url", server.url, start=False) as daemon:
        daemon.start()
        client = DaemonClient(socket=str(daemon.socket))
        before = await client.append("s", [message("from here", "m2")])

        async def is_copied() -> bool:
            status: Status
            status, _ = await client.call("GET", "/v1/status", Status)
            copies = status.replica
            return copies is not None and (copies.sessions, copies.behind) == (1, 0)

        await until(is_copied)
        server.kill()
        server.restore("before")
        server.start()
        written = await client.append("s", [message("after the loss", "m3")])
        await settled(client)
        session = await client.load("s")
        assert session.metadata.title == "kept"
        found = [each.content for each in session.conversation.messages]
        assert found == ["from the creator", "from here", "after the loss"]
        operations = (await client.operations("s", after=before.position)).operations
        assert [each.id for each in operations] == ["m3"], "positions are those from before"
        assert written.position in ("", session.position)
        await client.close()


async def test_the_trace_tells_what_was_refused_at_once_and_what_when_it_was_tried(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient
) -> None:
    sessiond(daemon, "config", "set", "debug.sessions", "true")
    await client.create(NewSession(session_id="s"))
    await client.append("s", [message("first", "m1")])
    with pytest.raises(AlreadyExists):
        await client.append("s", [message("another", "m1")])
    server.kill()
    await client.edit("s", "m2", {"content": "of none"})
    server.start()
    await settled(client)
    path = "/v1/sessions/s/trace"
    trace: SessionTrace
    trace, _ = await client.call("GET", path, SessionTrace)
    refused = {event.id: event.detail for event in trace.events if event.stage == "refused"}
    assert refused.keys() == {"m1", "m2"}
    assert refused["m1"].startswith("already-exists: ")
    assert refused["m2"].startswith("not-found: ")
    assert refused["m2"].endswith("; kept as a conflict")
    assert len(await client.conflicts()) == 1
    assert "refused" in sessiond(daemon, "trace", "s", "--operation", "m2").stdout

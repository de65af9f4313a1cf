"""Two daemons, one conversation: live, in one order, nothing lost and nothing doubled."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from sessiond.client import DaemonClient
from sessiond.errors import SessionDeleted
from sessiond.model import NewMessage, NewSession
from tests.daemons import RunningDaemon, wait_for
from tests.system.observing import Observer, append_surely

ROOT = Path(__file__).parents[2]
WRITERS = 8
EACH = 200


def message(content: str) -> NewMessage:
    return NewMessage(role="user", content=content)


async def test_a_message_appended_here_arrives_there_live(
    here: DaemonClient, there: DaemonClient
) -> None:
    session = await here.create(NewSession(title="shared"))
    observer = Observer(there, session.metadata.session_id)
    await observer.start()
    await here.append(session.metadata.session_id, [message("hello")])
    await observer.until(2)
    await observer.stop()
    assert observer.operations[1].body["content"] == "hello"
    assert observer.operations[1].origin.startswith("here@laptop.")
    assert await here.load(session.metadata.session_id) == await there.load(
        session.metadata.session_id
    )


async def test_live_events_arrive_in_order_and_are_not_stored(
    here: DaemonClient, there: DaemonClient
) -> None:
    session_id = (await here.create(NewSession())).metadata.session_id
    observer = Observer(there, session_id)
    await observer.start()
    await observer.until(1)
    for number in range(20):
        await here.append(session_id, [message(str(number))])
        await here.send_live(session_id, {"typing": number})
    await observer.until(21)
    wait = asyncio.create_task(observer.until(22, seconds=5))
    await here.append(session_id, [message("end")])
    await wait
    await observer.stop()
    assert observer.names[1:] == ["message.append", "live"] * 20 + ["message.append"]
    assert (await here.operations(session_id)).operations[-1].body["content"] == "end"


async def test_deleting_ends_the_streams_and_refuses_what_comes_later(
    here: DaemonClient, there: DaemonClient
) -> None:
    session_id = (await here.create(NewSession())).metadata.session_id
    async with there.events(session_id) as events:
        await here.delete(session_id)
        async with asyncio.timeout(10):
            assert (await anext(events)).name == "session.delete"
    with pytest.raises(SessionDeleted):
        await there.append(session_id, [message("too late")])


async def test_eight_processes_write_one_session_in_one_order(
    laptop: RunningDaemon, desktop: RunningDaemon, here: DaemonClient, there: DaemonClient
) -> None:
    session_id = (await here.create(NewSession())).metadata.session_id
    observers = [Observer(here, session_id), Observer(there, session_id)]
    for observer in observers:
        await observer.start()
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.system.writer",
            str((laptop, desktop)[number % 2].socket), session_id, f"w{number}", str(EACH),
            cwd=ROOT,
        )
        for number in range(WRITERS)
    ]  # fmt: skip
    assert [await process.wait() for process in processes] == [0] * WRITERS
    for observer in observers:
        await observer.until(1 + WRITERS * EACH)
        await observer.stop()

    assert observers[0].operations == observers[1].operations
    assert observers[0].offsets == list(range(1, 2 + WRITERS * EACH))
    contents = [each.body["content"] for each in observers[0].operations[1:]]
    assert len(set(contents)) == WRITERS * EACH
    for number in range(WRITERS):
        mine = [content for content in contents if content.startswith(f"w{number}-")]
        assert mine == [f"w{number}-{index}" for index in range(EACH)]
    loaded = [await client.load(session_id) for client in (here, there)]
    assert loaded[0] == loaded[1]
    assert [each.content for each in loaded[0].conversation.messages] == contents


async def test_kill_of_a_daemon_loses_and_doubles_nothing(
    laptop: RunningDaemon, desktop: RunningDaemon, here: DaemonClient, there: DaemonClient
) -> None:
    session_id = (await here.create(NewSession())).metadata.session_id
    observer = Observer(there, session_id)
    await observer.start()
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.system.writer", str(desktop.socket), session_id, "w", "300",
        cwd=ROOT,
    )  # fmt: skip
    for kills in range(1, 4):
        await observer.until(40 * kills)
        await asyncio.to_thread(desktop.kill)
        await asyncio.to_thread(desktop.start)
    assert await writer.wait() == 0
    await observer.until(301)
    await observer.stop()
    assert observer.offsets == list(range(1, 302))
    contents = [each.body["content"] for each in observer.operations[1:]]
    assert contents == [f"w-{number}" for number in range(300)]
    assert "reset" not in observer.names


async def test_the_embedded_server_survives_its_daemon_and_is_adopted(
    laptop: RunningDaemon, here: DaemonClient
) -> None:
    session_id = (await here.create(NewSession())).metadata.session_id
    position = (await here.append(session_id, [message("kept")])).position
    await asyncio.to_thread(laptop.kill)
    await asyncio.to_thread(laptop.start)
    assert "embedded.adopted" in laptop.log
    assert await here.position(session_id) == position


async def test_restart_of_the_server_costs_readers_nothing(
    laptop: RunningDaemon, here: DaemonClient, there: DaemonClient
) -> None:
    session_id = (await here.create(NewSession())).metadata.session_id
    observers = [Observer(here, session_id), Observer(there, session_id)]
    for observer in observers:
        await observer.start()
    await append_surely(here, session_id, "before")
    for observer in observers:
        await observer.until(2)
    server = int(re.findall(r'"pid": (\d+), "version"', laptop.log)[-1])
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: "embedded.restarted" in laptop.log)
    await append_surely(there, session_id, "after")
    for observer in observers:
        await observer.until(3)
        await observer.stop()
        assert [each.body["content"] for each in observer.operations[1:]] == ["before", "after"]
        assert "reset" not in observer.names


async def test_a_stalled_subscriber_is_cut_and_resumes_by_position() -> None:
    from tests.daemons import running_daemon  # noqa: PLC0415 - this test wants other options

    with running_daemon(start=False) as daemon:
        daemon.environ["SESSIOND_SYNC_SUBSCRIBER_BUFFER_BYTES"] = "65536"
        daemon.start()
        client = DaemonClient(socket=str(daemon.socket))
        session_id = (await client.create(NewSession())).metadata.session_id
        stalled = socket.socket(socket.AF_UNIX)
        stalled.connect(str(daemon.socket))
        request = (
            f"GET /v1/sessions/{session_id}/events?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        stalled.sendall(request.encode())
        wait_for(lambda: b"session.create" in stalled.recv(65536, socket.MSG_PEEK))
        for number in range(60):
            await client.append(session_id, [message(f"{number}-" + "x" * 50_000)])
        stalled.settimeout(20)
        received = bytearray()
        try:
            while chunk := await asyncio.to_thread(stalled.recv, 1 << 20):
                received += chunk
        except ConnectionResetError:
            pass
        assert received.count(b"event: message.append") < 60, "it was never cut"
        last = received.rpartition(b"\n\n")[0].rpartition(b"\nid: ")[2].partition(b"\n")[0].decode()
        observer = Observer(client, session_id)
        await observer.start(last)
        await observer.until(61 - int(last.partition(":")[2]))
        await observer.stop()
        await client.close()
        assert observer.offsets == list(range(int(last.partition(":")[2]) + 1, 62))
        assert "reset" not in observer.names


async def test_sigterm_finishes_accepted_writes(
    laptop: RunningDaemon, desktop: RunningDaemon, here: DaemonClient, there: DaemonClient
) -> None:
    session_id = (await here.create(NewSession())).metadata.session_id
    writes = [
        asyncio.create_task(there.append(session_id, [message(str(number))], key=f"k{number}"))
        for number in range(200)
    ]
    await asyncio.sleep(0)
    done, _ = await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
    assert done
    await asyncio.to_thread(desktop.stop)
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    acknowledged = {
        str(number)
        for number, outcome in enumerate(outcomes)
        if not isinstance(outcome, BaseException)
    }
    stored = {each.content for each in (await here.load(session_id)).conversation.messages}
    assert acknowledged
    assert acknowledged <= stored
    assert desktop.process
    assert desktop.process.returncode == 0

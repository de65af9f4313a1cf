"""Event streams: resumed exactly, reset when the log changed, and gone when nobody reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from redis import Redis

from sessiond.model import Operation
from tests.api.client import Client
from tests.api.streams import EventStream, StreamEvent
from tests.api.watching import failures_in
from tests.api.wire import Closed, assert_problem, connected, exchange, request_bytes
from tests.daemons import RunningDaemon, running_daemon, wait_for

WORKSPACE = "/v1/workspaces/default/events"
MALFORMED = [
    "x", "-1", "1.5", "0x1", "1 1", "0:1", "1:1", ":1", "1:", "00000000000000:",
    "0000000000000:1", "000000000000000:1", "0000000000000G:1", "ABCDEF01234567:1",
    "00000000000000:-1", "00000000000000:1:1", "9" * 16, "9" * 5_000, "é", "\udcff", "*", "null",
]  # fmt: skip


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """A daemon with a quick heart."""
    with running_daemon(start=False) as daemon:
        daemon.environ["SESSIOND_SYNC_HEARTBEAT_SECONDS"] = "0.1"
        daemon.start()
        yield daemon
        assert failures_in(daemon.log) == []


@pytest.fixture
def log(client: Client, session: str) -> list[StreamEvent]:
    """All events of a session with twelve operations, each with its id."""
    for number in range(8):
        client.append(session, f"m{number}")
    client.call("PUT", f"{session}/messages/m1/parts/p", {"type": "text", "text": "x\ny"})
    client.call("PATCH", f"{session}/preferences", {"theme": "dark"})
    with EventStream(client.socket, f"{session}/events?after=0") as stream:
        return stream.take(12)


def subscribers(client: Client) -> int:
    return int(client.get("/v1/status")["subscribers"])


def test_the_whole_log_comes_in_order_and_as_operations(
    client: Client, session: str, log: list[StreamEvent]
) -> None:
    assert [event.offset for event in log] == list(range(1, 13))
    assert log[0].name == "session.create"
    assert [event.name for event in log[-2:]] == ["part.put", "document.change"]
    told = client.get(f"{session}/operations?after=0")["operations"]
    assert [event.json for event in log] == told
    for event in log:
        operation = msgspec.json.decode(event.data, type=Operation)
        assert (operation.op, operation.position) == (event.name, event.id)


def test_a_stream_is_declared_as_one_that_nobody_may_keep(client: Client, session: str) -> None:
    with EventStream(client.socket, f"{session}/events") as stream:
        assert stream.head.header("content-type") == "text/event-stream"
        assert stream.head.header("cache-control") == "no-store"


def test_last_event_id_resumes_exactly_behind_every_event(
    client: Client, session: str, log: list[StreamEvent]
) -> None:
    version = client.append(session, "later")
    for number, seen in enumerate(log):
        with EventStream(client.socket, f"{session}/events", seen.id) as stream:
            assert stream.take(11 - number) == log[number + 1 :]
            assert stream.next().id == version


def test_after_in_the_query_does_the_same_and_the_header_wins(
    client: Client, session: str, log: list[StreamEvent]
) -> None:
    with EventStream(client.socket, f"{session}/events?after={log[8].id}") as stream:
        assert stream.take(3) == log[9:]
    with EventStream(client.socket, f"{session}/events?after=0", log[8].id) as stream:
        assert stream.take(3) == log[9:]


@pytest.mark.parametrize("start", ["0", "0:0", "00000000000000:0"])
def test_position_zero_is_the_beginning(
    client: Client, session: str, log: list[StreamEvent], start: str
) -> None:
    with EventStream(client.socket, f"{session}/events", start) as stream:
        assert stream.take(12) == log


def test_an_offset_alone_is_not_checked_against_the_history(
    client: Client, session: str, log: list[StreamEvent]
) -> None:
    with EventStream(client.socket, f"{session}/events", "9") as stream:
        assert stream.take(3) == log[9:]


def test_without_a_position_only_what_happens_from_now_on_comes(
    client: Client, session: str, log: list[StreamEvent]
) -> None:
    with EventStream(client.socket, f"{session}/events") as stream:
        assert stream.head.status == 200
        version = client.append(session, "new")
        assert stream.next().id == version


@pytest.mark.parametrize(
    ("position", "reason"),
    [
        ("0123456789abcd:5", "history-changed"),
        ("0123456789abcd:12", "history-changed"),
        ("0123456789abcd:99", "missing"),
        ("99", "missing"),
    ],
)
def test_an_unknown_position_gets_a_reset_then_the_whole_log_then_goes_on(
    client: Client, session: str, log: list[StreamEvent], position: str, reason: str
) -> None:
    with EventStream(client.socket, f"{session}/events", position) as stream:
        reset = stream.next()
        assert reset.name == "reset"
        assert reset.json == {"session_id": session.rpartition("/")[2], "reason": reason}
        assert reset.id == "", "a reset is no place to resume from"
        assert stream.take(12) == log
        assert stream.next_after(lambda: client.append(session, "on")).name == "message.append"


@pytest.mark.parametrize("position", MALFORMED)
def test_a_malformed_position_is_refused(client: Client, session: str, position: str) -> None:
    headers = {"Last-Event-ID": position}
    answer = exchange(client.socket, request_bytes("GET", f"{session}/events", None, headers))
    assert_problem(answer, 400, "invalid-input")


def test_there_is_no_stream_of_a_session_that_never_was(client: Client) -> None:
    for query in ("", "?after=0", "?after=1"):
        assert_problem(client.call("GET", f"/v1/sessions/never/events{query}"), 404, "not-found")


def test_deletion_is_the_last_event_and_ends_the_stream(
    client: Client, session: str, log: list[StreamEvent]
) -> None:
    with EventStream(client.socket, f"{session}/events", log[-1].id) as stream:
        client.call("DELETE", session)
        deleted = stream.next()
        assert (deleted.name, deleted.offset) == ("session.delete", 13)
        with pytest.raises(Closed, match="the stream ended"):
            stream.next()
    with EventStream(client.socket, f"{session}/events", log[-1].id) as stream:
        assert stream.next() == deleted
        with pytest.raises(Closed, match="the stream ended"):
            stream.next()


def test_live_events_keep_their_place_among_the_others_and_have_no_id(
    client: Client, session: str
) -> None:
    with EventStream(client.socket, f"{session}/events") as stream:
        assert stream.head.status == 200
        for number in range(20):
            assert client.call("POST", f"{session}/live", {"typing": number}).status == 202
            client.append(session, f"l{number}")
        events = stream.take(40)
    assert [event.name for event in events] == ["live", "message.append"] * 20
    assert [event.json["body"] for event in events[::2]] == [{"typing": n} for n in range(20)]
    assert {event.id for event in events[::2]} == {""}


@pytest.mark.parametrize("path", ["/v1/sessions/{}/events", WORKSPACE])
def test_a_silent_stream_has_a_heartbeat(client: Client, session: str, path: str) -> None:
    with EventStream(client.socket, path.format(session.rpartition("/")[2])) as stream:
        while stream.comments < 3:
            stream.read_on()
        assert stream.comments >= 3


def test_every_reader_sees_the_same(client: Client, session: str) -> None:
    streams = [EventStream(client.socket, f"{session}/events") for _ in range(10)]
    for number in range(10):
        client.append(session, f"m{number}")
    seen = [stream.take(10) for stream in streams]
    for stream in streams:
        stream.close()
    assert seen == [seen[0]] * 10


def test_a_reader_that_leaves_frees_its_subscription(
    daemon: RunningDaemon, client: Client, session: str
) -> None:
    wait_for(lambda: subscribers(client) == 0)
    streams = [EventStream(client.socket, f"{session}/events") for _ in range(5)]
    streams += [EventStream(client.socket, WORKSPACE) for _ in range(3)]
    wait_for(lambda: subscribers(client) == 8)
    for stream in streams:
        stream.close()
    wait_for(lambda: subscribers(client) == 0)
    wait_for(lambda: channels(daemon, session) == [])
    assert subscribers(client) == 0


def test_readers_that_leave_at_once_leave_nothing_behind(
    daemon: RunningDaemon, client: Client, session: str
) -> None:
    data = request_bytes("GET", f"{session}/events?after=0")
    for number in range(200):
        with connected(client.socket) as wire:
            wire.send(data)
            if number % 3 == 0:
                wire.head()
    wait_for(lambda: subscribers(client) == 0)
    wait_for(lambda: channels(daemon, session) == [])
    with EventStream(client.socket, f"{session}/events?after=0") as stream:
        assert stream.take(2)[1].name == "message.append"
        client.append(session, "still")
        assert stream.next().offset == 3


def channels(daemon: RunningDaemon, session: str) -> Any:
    """The session's channels that the daemon still listens to."""
    with Redis(unix_socket_path=str(daemon.redis_socket)) as redis:
        name = session.rpartition("/")[2]
        return redis.execute_command("PUBSUB", "CHANNELS", f"sessiond:{{{name}}}:*")


def test_a_workspace_stream_begins_with_where_each_session_stands(
    client: Client,
) -> None:
    known = client.create("known-before", workspace="fresh")
    with EventStream(client.socket, "/v1/workspaces/fresh/events") as stream:
        first = stream.next()
        assert first.name == "positions"
        assert first.json == {"reason": None, "sessions": {"known-before": client.position(known)}}
        version = client.append(known, "next")
        event = stream.next()
        assert (event.name, event.json["position"]) == ("message.append", version)
        new = client.create("of-the-workspace", workspace="fresh")
        created = stream.next()
        client.create("of-another", workspace="another")
        client.append(new, "m")
        appended = stream.next()
        client.call("DELETE", new)
        told = [created, appended, stream.next()]
    assert [event.name for event in told] == ["session.create", "message.append", "session.delete"]
    assert {event.json["session_id"] for event in told} == {"of-the-workspace"}


def test_a_workspace_stream_resumes_exactly(client: Client, session: str) -> None:
    other = client.create(f"{session.rpartition('/')[2]}-other")
    with EventStream(client.socket, WORKSPACE) as stream:
        positions = stream.until("positions")
        for number in range(5):
            client.append(session, f"a{number}")
            client.append(other, f"b{number}")
        events = [stream.until("message.append") for _ in range(10)]
    for number, seen in enumerate([positions, *events[:-1]]):
        with EventStream(client.socket, WORKSPACE, seen.id) as stream:
            again = [stream.until("message.append") for _ in range(10 - number)]
            assert again == events[number:]
    with EventStream(client.socket, WORKSPACE, events[-1].id) as stream:
        client.append(session, "on")
        assert stream.next().json["id"] == "on"


@pytest.mark.parametrize(
    "last_id",
    ["x", "1", ":", "x:1", "x:-1", "x:٣", "x:" + "9" * 5_000, "0" * 14 + ":0", "é", "\udcff"],
)
def test_a_workspace_position_that_was_never_given_gets_a_reset_or_is_refused(
    client: Client, session: str, last_id: str
) -> None:
    with EventStream(client.socket, WORKSPACE, last_id) as stream:
        if stream.head.status != 200:
            assert_problem(stream.head, 400, "invalid-input")
            return
        reset = stream.next()
        assert (reset.name, reset.json["reason"]) == ("reset", "history-lost")
        assert session.rpartition("/")[2] in reset.json["sessions"]
        client.append(session, "on")
        while stream.until("message.append").json["id"] != "on":
            pass


def test_a_workspace_stream_is_reset_when_the_daemon_was_restarted() -> None:
    with running_daemon() as daemon:
        client = Client(daemon.socket)
        path = client.create("kept")
        with EventStream(daemon.socket, WORKSPACE) as stream:
            last = stream.until("positions")
            version = client.append(path, "m")
            last = stream.until("message.append")
            daemon.stop()
            with pytest.raises(Closed, match="the stream ended"):
                stream.until("anything")
        daemon.start()
        with EventStream(daemon.socket, WORKSPACE, last.id) as stream:
            reset = stream.next()
            assert (reset.name, reset.json["reason"]) == ("reset", "history-lost")
            assert reset.json["sessions"] == {"kept": version}
            client.append(path, "n")
            assert stream.until("message.append").json["id"] == "n"
        with EventStream(daemon.socket, f"{path}/events", version) as stream:
            assert stream.next().json["id"] == "n"
        assert failures_in(daemon.log) == []

"""Event streams while Redis goes away, comes back, and comes back with an older past."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.client import Client
from tests.api.servers import DurableServer, durable_server
from tests.api.streams import EventStream
from tests.api.watching import failures_in
from tests.api.wire import assert_problem
from tests.daemons import RunningDaemon, running_daemon, wait_for

WORKSPACE = "/v1/workspaces/default/events"


@pytest.fixture(scope="module")
def server() -> Iterator[DurableServer]:
    with durable_server() as server:
        yield server


@pytest.fixture(scope="module")
def daemon(server: DurableServer) -> Iterator[RunningDaemon]:
    with running_daemon("--redis-url", server.url, start=False) as daemon:
        daemon.environ["SESSIOND_SYNC_RETRY_SECONDS"] = "0.5"
        daemon.environ["SESSIOND_REDIS_TIMEOUT_SECONDS"] = "1"
        daemon.start()
        yield daemon
        assert failures_in(daemon.log) == []


@pytest.fixture(autouse=True)
def _ready(client: Client) -> None:
    wait_for(lambda: client.get("/v1/health")["ready"])


def test_streams_survive_a_crash_of_redis_without_a_reset(
    server: DurableServer, client: Client, session: str
) -> None:
    with (
        EventStream(client.socket, f"{session}/events") as events,
        EventStream(client.socket, WORKSPACE) as workspace,
    ):
        workspace.until("positions")
        client.append(session, "before")
        assert events.next().json["id"] == "before"
        server.kill()
        server.start()
        wait_for(lambda: client.get("/v1/health")["ready"])
        client.append(session, "after")
        assert events.next().json["id"] == "after"
        seen = [workspace.next() for _ in range(2)]
        assert [(event.name, event.json["id"]) for event in seen] == [
            ("message.append", "before"),
            ("message.append", "after"),
        ]


def test_without_redis_streams_and_what_was_never_seen_are_refused_for_now_and_health_says_so(
    server: DurableServer, client: Client, session: str
) -> None:
    server.kill()
    try:
        for method, path, body in (
            ("GET", f"{session}/events", None),
            ("GET", f"{session}/events?after=0", None),
            ("GET", "/v1/workspaces/never-asked-before/events", None),
            ("GET", "/v1/sessions/never-seen-before", None),
            ("GET", "/v1/redis?key=sessiond:sessions", None),
            ("POST", f"{session}/live", {}),
        ):
            answer = client.call(method, path, body)
            told = assert_problem(answer, 503, "store-unavailable")
            assert told.retryable
            assert answer.header("retry-after")
        health = client.get("/v1/health")
        assert (health["ready"], health["status"]) == (False, "store-unavailable")
        assert client.call("GET", "/v1/ready").status == 503
    finally:
        server.start()
    wait_for(lambda: client.call("GET", "/v1/ready").status == 200)
    with EventStream(client.socket, f"{session}/events?after=0") as stream:
        assert stream.take(2)[1].json["id"] == "first"


def test_a_stream_begun_while_redis_was_away_is_refused_or_begins_when_it_is_back(
    server: DurableServer, client: Client, session: str
) -> None:
    """Nobody waits for ever, and those who come later do not wait for those before them."""
    server.kill()
    try:
        for _ in range(5):
            with EventStream(client.socket, f"{session}/events?after=0") as stream:
                assert_problem(stream.head, 503)
    finally:
        server.start()
    wait_for(lambda: client.get("/v1/health")["ready"])
    with EventStream(client.socket, f"{session}/events?after=0") as stream:
        assert stream.take(2)[1].json["id"] == "first"
        client.append(session, "second")
        assert stream.next().json["id"] == "second"


def positions(client: Client) -> dict[str, str]:
    """Where the workspace's feed has each session now."""
    with EventStream(client.socket, WORKSPACE) as workspace:
        return dict(workspace.until("positions").json["sessions"])


def test_a_rollback_of_redis_resets_streams_and_they_go_on(
    server: DurableServer, client: Client, session: str
) -> None:
    name = session.rpartition("/")[2]
    client.append(session, "kept")
    server.copy(name)
    lost = client.append(session, "lost")
    wait_for(lambda: positions(client).get(name) == lost)
    with (
        EventStream(client.socket, f"{session}/events", lost) as events,
        EventStream(client.socket, WORKSPACE) as workspace,
    ):
        workspace.until("positions")
        server.kill()
        server.restore(name)
        server.start()
        wait_for(lambda: client.get("/v1/health")["ready"])
        new = client.append(session, "new")
        assert new != lost

        reset = events.next()
        assert (reset.name, reset.json["session_id"]) == ("reset", name)
        told = [event.json["id"] for event in events.take(5)]
        assert told[:3] == [name, "first", "kept"]
        assert set(told[3:]) == {"new", "lost"}, "what was lost is written again"
        client.append(session, "live")
        assert events.next().json["id"] == "live"

        assert workspace.until("reset", session_id=name)
        again = [
            workspace.until("session.create", "message.append", session_id=name) for _ in "123456"
        ]
        assert [event.json["id"] for event in again] == [*told, "live"]
    with EventStream(client.socket, f"{session}/events", lost) as stream:
        assert stream.next().json["reason"] == "history-changed"
        assert [event.offset for event in stream.take(6)] == [1, 2, 3, 4, 5, 6]
    with EventStream(client.socket, f"{session}/events", new) as stream:
        assert stream.until("message.append").json["id"] in ("lost", "live")


def test_a_rollback_that_is_not_followed_by_a_write_is_told_too(
    server: DurableServer, client: Client, session: str
) -> None:
    name = session.rpartition("/")[2]
    server.copy(name)
    lost = client.append(session, "lost")
    with (
        EventStream(client.socket, f"{session}/events", lost) as events,
        EventStream(client.socket, WORKSPACE) as workspace,
    ):
        assert events.head.status == workspace.head.status == 200
        workspace.until("positions")
        server.kill()
        server.restore(name)
        server.start()
        assert events.next().name == "reset"
        assert [event.json["id"] for event in events.take(2)] == [name, "first"]
        assert workspace.until("reset", session_id=name)


def test_an_emptied_redis_resets_streams_and_is_filled_again(
    server: DurableServer, client: Client, session: str
) -> None:
    name = session.rpartition("/")[2]
    with EventStream(client.socket, f"{session}/events?after=0") as events:
        assert events.take(2)[1].json["id"] == "first"
        server.kill()
        server.clear()
        server.start()
        reset = events.next()
        assert (reset.name, reset.json) == ("reset", {"session_id": name, "reason": "missing"})
        told = [event.json["id"] for event in events.take(2)]
    assert told == [name, "first"], "it is written again from the journal"
    assert [each["id"] for each in client.get(session)["conversation"]["messages"]] == ["first"]

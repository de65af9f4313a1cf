"""`sessiond journal`, and what `status` says of what waits; and a journal that is full."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from sessiond.client import DaemonClient
from sessiond.model import JOURNALED, NewMessage, NewSession
from tests.api.client import Client
from tests.api.servers import DurableServer, durable_server
from tests.api.wire import assert_problem
from tests.cli.commands import ask, sessiond
from tests.daemons import RunningDaemon, running_daemon, wait_for


@pytest.fixture(scope="module")
def server() -> Iterator[DurableServer]:
    with durable_server() as server:
        yield server


@pytest.fixture(scope="module")
def daemon(server: DurableServer) -> Iterator[RunningDaemon]:
    """A daemon with two writes that wait."""
    with running_daemon("--redis-url", server.url, start=False) as daemon:
        daemon.environ["SESSIOND_JOURNAL_WAIT_SECONDS"] = "0.2"
        daemon.environ["SESSIOND_JOURNAL_LIMIT_MIB"] = "1"
        daemon.start()

        async def fill(client: DaemonClient) -> None:
            await client.create(NewSession(session_id="s"))
            server.kill()
            for name in ("m1", "m2"):
                written = await client.append("s", [NewMessage(role="user", content="x", id=name)])
                assert written.durability == JOURNALED

        ask(daemon, fill)
        yield daemon


def test_status_and_journal_status_say_what_waits(daemon: RunningDaemon) -> None:
    assert "2 writes wait for Redis, of 1 session" in sessiond(daemon, "status").stdout
    told = sessiond(daemon, "journal", "status").stdout
    assert told.startswith("2 writes wait for Redis, of 1 session\n")
    assert "2 entries not confirmed" in told
    assert "1 kept in case Redis goes back" in told
    found = json.loads(sessiond(daemon, "journal", "status", "--json").stdout)
    assert (found["waiting"], found["journal"]["pending"], found["held"]) == (2, 2, {})


def test_verify_reads_all_of_it(daemon: RunningDaemon) -> None:
    done = sessiond(daemon, "journal", "verify")
    assert (done.returncode, done.stdout) == (0, "3 entries, every one as it was written\n")
    assert json.loads(sessiond(daemon, "journal", "verify", "--json").stdout)["faults"] == []


def test_export_gives_a_line_for_each_entry_and_can_be_piped(daemon: RunningDaemon) -> None:
    lines = [json.loads(line) for line in sessiond(daemon, "journal", "export").stdout.splitlines()]
    operations = [line["operations"][0]["op"] for line in lines]
    assert operations == ["session.create", "message.append", "message.append"]
    assert [line["position"] is None for line in lines] == [False, True, True]
    assert lines[1]["operations"][0]["messages"][0]["id"] == "m1"


def test_a_full_journal_says_507_and_takes_writes_again_when_redis_is_back(
    server: DurableServer, daemon: RunningDaemon
) -> None:
    client = Client(daemon.socket)
    path, body = "/v1/sessions/s/messages", {"role": "user", "content": "x" * 300_000}
    answers = [client.call("POST", path, body) for _ in range(5)]
    assert [answer.status for answer in answers[:3]] == [202] * 3
    told = assert_problem(answers[-1], 507, "journal-full")
    assert told.retryable
    assert "sessiond status" in (told.hint or "")
    server.start()
    wait_for(lambda: "nothing waits" in sessiond(daemon, "journal", "status").stdout)
    assert client.call("POST", path, body).status == 201
    assert len(client.get("/v1/sessions/s")["conversation"]["messages"]) == 6

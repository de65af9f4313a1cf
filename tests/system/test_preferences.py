"""Users' preferences are acknowledged, read and changed while Redis is away, and lost never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis import Redis

from sessiond.client import DaemonClient
from sessiond.errors import StoreDamaged, StoreUnavailable, TooLarge
from sessiond.model import NewSession
from sessiond.service.status import Status
from sessiond.store.keys import Keys
from tests.api.client import Client
from tests.api.servers import DurableServer
from tests.api.wire import Answer
from tests.cli.commands import sessiond
from tests.daemons import RunningDaemon, impatient_daemon, wait_for
from tests.system.observing import settled, until

ANN = "/v1/users/ann/preferences"


@pytest.fixture
def wire(daemon: RunningDaemon) -> Client:
    return Client(daemon.socket)


@pytest.fixture
def other(server: DurableServer) -> Iterator[RunningDaemon]:
    """A second daemon on the same server."""
    with impatient_daemon(server.url) as daemon:
        yield daemon


@pytest.fixture
async def neighbour(other: RunningDaemon) -> AsyncIterator[DaemonClient]:
    client = DaemonClient(socket=str(other.socket), name="ben")
    yield client
    await client.close()


def durability(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.header("sessiond-durability")


async def agreed(wanted: object, *clients: DaemonClient) -> None:
    """Return when all daemons tell these preferences of ann, from Redis."""

    async def are_there() -> bool:
        return all([await client.user_preferences("ann") == wanted for client in clients])

    for client in clients:
        await settled(client)
    await until(are_there)


async def test_a_change_is_journaled_and_read_as_it_will_be(
    server: DurableServer, client: DaemonClient, wire: Client
) -> None:
    first = wire.call("PATCH", ANN, {"theme": "dark", "editor": {"tab": 4}})
    assert durability(first) == (200, "committed")
    server.kill()
    changed = wire.call("PATCH", ANN, {"theme": None, "editor": {"wrap": True}})
    assert durability(changed) == (202, "journaled")
    assert changed.json == {"editor": {"tab": 4, "wrap": True}}
    found = wire.call("GET", ANN)
    assert (found.json, found.header("sessiond-waiting")) == (changed.json, "1")
    assert 0 <= float(found.header("sessiond-stale")) < 30
    await client.change_user_preferences("new", {"n": 1})
    with pytest.raises(StoreUnavailable, match="'new' were not seen here"):
        await client.user_preferences("new")
    assert (await client.list_sessions()).sessions == []
    server.start()
    await agreed(changed.json, client)
    assert not wire.call("GET", ANN).header("sessiond-stale")
    assert await client.user_preferences("new") == {"n": 1}


async def test_what_is_no_change_is_refused_offline_as_online(
    server: DurableServer, client: DaemonClient, wire: Client
) -> None:
    await client.change_user_preferences("ann", {"large": "x" * 40_000})
    for _ in range(2):
        assert wire.call("PATCH", ANN, [1]).status == 400
        assert wire.call("PATCH", ANN, {"_version": 1}).status == 400
        assert wire.call("PATCH", "/v1/users/a b/preferences", {"a": 1}).status == 400
        refused = wire.call("PATCH", ANN, {"a": 1}, If_Match='"0000000000000a:1"')
        assert (refused.status, refused.json["code"]) == (400, "invalid-input")
        with pytest.raises(TooLarge, match="64 KiB"):
            await client.change_user_preferences("ann", {"more": "x" * 40_000})
        server.kill()
    assert wire.get(ANN) == {"large": "x" * 40_000}


async def test_a_change_that_is_sent_again_is_made_once_online_and_offline(
    server: DurableServer, client: DaemonClient, wire: Client
) -> None:
    key = {"Idempotency_Key": "k1"}
    wire.call("PATCH", ANN, {"theme": "dark"}, **key)
    await client.change_user_preferences("ann", {"theme": "light"})
    again = wire.call("PATCH", ANN, {"theme": "dark"}, **key)
    assert (again.status, again.json) == (200, {"theme": "light"})
    assert wire.call("PATCH", ANN, {"theme": "blue"}, **key).status == 409
    server.kill()
    key = {"Idempotency_Key": "k2"}
    wire.call("PATCH", ANN, {"theme": "dark"}, **key)
    await client.change_user_preferences("ann", {"theme": "light"})
    wire.call("PATCH", ANN, {"theme": "dark"}, **key)
    assert wire.get(ANN) == {"theme": "light"}
    server.start()
    await agreed({"theme": "light"}, client)


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_journaled_change_outlives_the_daemon_which_starts_without_redis(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient, how: str
) -> None:
    await client.change_user_preferences("ann", {"theme": "dark"})
    server.kill()
    await client.change_user_preferences("ann", {"language": "de"})
    daemon.kill() if how == "kill" else daemon.stop()
    daemon.start()
    wanted = {"theme": "dark", "language": "de"}
    assert await client.user_preferences("ann") == wanted
    assert "theme = dark" in sessiond(daemon, "preferences", "get", "ann").stdout
    server.start()
    await agreed(wanted, client)


async def test_changes_on_two_daemons_merge_by_the_time_at_which_they_were_asked_for(
    server: DurableServer, client: DaemonClient, neighbour: DaemonClient
) -> None:
    await client.change_user_preferences("ann", {"theme": "dark", "n": 0})
    assert await neighbour.user_preferences("ann") == {"theme": "dark", "n": 0}
    server.kill()
    await client.change_user_preferences("ann", {"theme": "light", "mine": 1})
    await neighbour.change_user_preferences("ann", {"theme": "blue", "n": None, "yours": 2})
    await client.change_user_preferences("ann", {"mine": 3})
    server.start()
    await agreed({"theme": "blue", "mine": 3, "yours": 2}, client, neighbour)


async def test_at_once_on_two_daemons_every_field_stands(
    client: DaemonClient, neighbour: DaemonClient
) -> None:
    await asyncio.gather(
        *(
            each.change_user_preferences("ann", {f"{name}{number}": number})
            for each, name in ((client, "mine"), (neighbour, "yours"))
            for number in range(10)
        )
    )
    found = await client.user_preferences("ann")
    assert len(found) == 20
    assert await neighbour.user_preferences("ann") == found


async def test_what_redis_lost_is_written_again_and_nothing_later_is_undone(
    server: DurableServer, daemon: RunningDaemon, client: DaemonClient
) -> None:
    await client.change_user_preferences("ann", {"theme": "dark"})
    server.kill()
    server.copy("older")
    server.start()
    await settled(client)
    await client.change_user_preferences("ann", {"theme": "light"})
    await client.change_user_preferences("ann", {"n": 1})
    server.kill()
    server.restore("older")
    server.start()
    wait_for(lambda: "outbox.redis_lost_writes" in daemon.log)
    await agreed({"theme": "light", "n": 1}, client)
    server.kill()
    server.clear()
    server.start()
    await agreed({"theme": "light", "n": 1}, client)


async def test_a_session_created_offline_begins_with_preferences_changed_before_it(
    server: DurableServer, client: DaemonClient
) -> None:
    server.kill()
    for number in range(20):
        await client.change_user_preferences("ann", {f"p{number}": number})
    await client.create(NewSession(session_id="s", user_id="ann"))
    server.start()
    await settled(client)
    wanted = {f"p{number}": number for number in range(20)}
    assert (await client.load("s")).preferences == wanted


async def test_a_change_of_damaged_preferences_is_held_until_they_are_mended(
    server: DurableServer, client: DaemonClient
) -> None:
    await client.change_user_preferences("ann", {"theme": "dark"})
    key = Keys().user_changes("ann")
    with Redis(unix_socket_path=str(server.socket)) as redis:
        undamaged = redis.hget(key, "changes")
        redis.hset(key, "changes", "{")
    with pytest.raises(StoreDamaged):
        await client.change_user_preferences("ann", {"refused": True})
    server.kill()
    await client.change_user_preferences("ann", {"n": 1})
    server.start()

    async def is_held() -> bool:
        status: Status
        status, _ = await client.call("GET", "/v1/status", Status)
        return "store-damaged" in status.outbox.held.get("user:ann", "")

    await until(is_held)
    with Redis(unix_socket_path=str(server.socket)) as redis:
        redis.hset(key, "changes", undamaged)
    await agreed({"theme": "dark", "n": 1}, client)

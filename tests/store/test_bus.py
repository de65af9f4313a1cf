"""The bus: what is published arrives in order, and every possible loss is told as a gap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from sessiond.errors import StoreUnavailable
from sessiond.store import bus as bus_module
from sessiond.store.bus import Bus
from sessiond.store.connection import connect_subscriber
from tests.conftest import Servers
from tests.store.relay import Relay
from tests.store.servers import RunningServer
from tests.store.support import Services, heard, real_servers, until

Heard = list[bytes | None]


@pytest.fixture
async def bus_on() -> AsyncIterator[Callable[[str], Bus]]:
    """Makes a bus on the server at an address."""
    made: list[tuple[Bus, Redis]] = []

    def make(url: str) -> Bus:
        subscriber = connect_subscriber(url, timeout_seconds=0.5)
        bus = Bus(subscriber)
        made.append((bus, subscriber))
        return bus

    yield make
    for bus, subscriber in made:
        await bus.close()
        await subscriber.aclose()


async def subscribers(services: Services, channel: str) -> int:
    (pair,) = await services.redis.pubsub_numsub(channel)
    return int(pair[1])


async def eventually(question: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await question():  # noqa: ASYNC110 - of the server, which sets no Event
            await asyncio.sleep(0.001)


async def test_a_subscription_begins_with_a_gap(core: Services) -> None:
    got: Heard = []
    await core.bus.listen("channel", got.append)
    await until(lambda: got == [None])


async def test_messages_arrive_in_order_on_their_channel(core: Services, namespace: str) -> None:
    async with heard(core, namespace) as one, heard(core, f"{namespace}x") as other:
        for number in range(50):
            await core.redis.publish(namespace, f"{number}")
            await core.redis.publish(f"{namespace}x", f"x{number}")
        await until(lambda: len(other) == 50)
        assert one == [b"%d" % number for number in range(50)]
        assert other == [b"x%d" % number for number in range(50)]


async def test_once_listening_no_message_is_missed(core: Services, namespace: str) -> None:
    for round_ in range(20):
        got: Heard = []
        channel = f"{namespace}{round_}"
        await core.bus.listen(channel, got.append)
        await core.redis.publish(channel, "first")
        await until(lambda got=got: b"first" in got)  # type: ignore[misc]
        await core.bus.leave(channel, got.append)


async def test_all_listeners_of_a_channel_hear_the_same(core: Services, namespace: str) -> None:
    first: Heard = []
    second: Heard = []
    await core.bus.listen(namespace, first.append)
    await core.bus.listen(namespace, second.append)
    await core.redis.publish(namespace, "hello")
    await until(lambda: b"hello" in first and b"hello" in second)
    assert await subscribers(core, namespace) == 1


async def test_the_subscription_ends_with_its_last_listener(core: Services, namespace: str) -> None:
    first: Heard = []
    second: Heard = []
    await core.bus.listen(namespace, first.append)
    await core.bus.listen(namespace, second.append)
    await core.bus.leave(namespace, first.append)
    await core.redis.publish(namespace, "hello")
    await until(lambda: b"hello" in second)
    assert b"hello" not in first
    await core.bus.leave(namespace, second.append)
    await eventually(lambda: _is(subscribers(core, namespace), 0))
    await core.bus.leave(namespace, second.append)  # once more does no harm


async def test_a_channel_can_be_left_and_listened_to_again(core: Services, namespace: str) -> None:
    for number in range(5):
        async with heard(core, namespace) as got:
            await core.redis.publish(namespace, f"{number}")
            await until(lambda got=got: got != [])  # type: ignore[misc]
            assert got == [b"%d" % number]


async def test_leaving_and_listening_at_once_ends_listening(core: Services, namespace: str) -> None:
    first: Heard = []
    second: Heard = []
    await core.bus.listen(namespace, first.append)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(core.bus.leave(namespace, first.append))
        tasks.create_task(core.bus.listen(namespace, second.append))
    await eventually(lambda: _is(subscribers(core, namespace), 1))
    await core.redis.publish(namespace, "hello")
    await until(lambda: b"hello" in second)


@real_servers
async def test_a_cut_connection_is_a_gap_on_every_channel_and_then_messages_arrive(
    core: Services, namespace: str
) -> None:
    async with heard(core, namespace) as one, heard(core, f"{namespace}x") as other:
        for number in range(3):
            await core.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: None in one and None in other)
            await core.redis.publish(namespace, f"{number}")
            await until(lambda number=number: b"%d" % number in one)  # type: ignore[misc]
            assert one == [None, b"%d" % number]
            one.clear()
            other.clear()
        assert core.bus.connected


@real_servers
async def test_after_a_cut_only_the_channels_still_listened_to_come_back(
    core: Services, namespace: str
) -> None:
    async with heard(core, namespace) as got:
        async with heard(core, f"{namespace}x"):
            pass
        await core.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: None in got)
        assert await subscribers(core, f"{namespace}x") == 0


@real_servers
async def test_a_bus_hears_on_however_often_channels_change_while_it_reconnects(
    core: Services, namespace: str
) -> None:
    async with heard(core, namespace) as got, asyncio.timeout(20):
        for round_ in range(30):
            channel = f"{namespace}-{round_}"
            others: Heard = []
            await core.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            for _ in range(round_ % 10):  # meet another moment of the reconnecting each time
                await asyncio.sleep(0)
            with contextlib.suppress(StoreUnavailable):
                await core.bus.listen(channel, others.append)
            await core.bus.leave(channel, others.append)
            await until(lambda: None in got)
            got.clear()
            await core.redis.publish(namespace, f"{round_}")
            await until(lambda: got != [])
            assert b"%d" % round_ in got
            got.clear()


@real_servers
async def test_a_bus_outlives_its_server_and_tells_when_it_is_cut_off(
    own_server: RunningServer, bus_on: Callable[[str], Bus]
) -> None:
    bus = bus_on(own_server.url)
    got: Heard = []
    await bus.listen("channel", got.append)
    await until(lambda: got == [None])
    own_server.kill()
    await until(lambda: not bus.connected)
    own_server.start()
    await until(lambda: got == [None, None])
    assert bus.connected
    async with Redis.from_url(own_server.url) as client:
        await client.publish("channel", "back")
    await until(lambda: got[-1] == b"back")


@real_servers
async def test_a_connection_that_went_silent_is_found_and_replaced(
    kind: str,
    servers: Servers,
    namespace: str,
    bus_on: Callable[[str], Bus],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bus_module, "_PING_SECONDS", 0.05)
    server = servers.running(kind)
    async with Relay(server.socket).serving() as relay:
        bus = bus_on(f"unix://{relay.path}")
        got: Heard = []
        await bus.listen(namespace, got.append)
        await until(lambda: got == [None])
        async with Redis.from_url(server.url) as client:
            for number in range(5):
                relay.freeze()
                await client.publish(namespace, "lost")
                await until(lambda: None in got[1:])
                await client.publish(namespace, f"{number}")
                await until(lambda number=number: got[-1] == b"%d" % number)  # type: ignore[misc]
                assert b"lost" not in got
                got[:] = [None]


@real_servers
async def test_a_connection_that_goes_silent_while_it_is_made_is_replaced(
    kind: str, servers: Servers, namespace: str, bus_on: Callable[[str], Bus]
) -> None:
    async with Relay(servers.running(kind).socket).serving() as relay:
        relay.freeze(coming=1)
        bus = bus_on(f"unix://{relay.path}")
        got: Heard = []
        with pytest.raises(StoreUnavailable):
            await bus.listen(namespace, got.append)
        await bus.listen(namespace, got.append)
        await until(lambda: got == [None])
        assert relay.connections > 1


@real_servers
async def test_an_idle_connection_that_answers_pings_is_left_alone(
    kind: str,
    servers: Servers,
    namespace: str,
    bus_on: Callable[[str], Bus],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bus_module, "_PING_SECONDS", 0.02)
    server = servers.running(kind)
    async with Redis.from_url(server.url) as client:
        bus = bus_on(server.url)
        got: Heard = []
        await bus.listen(namespace, got.append)

        async def pings() -> int:
            return int((await client.info("commandstats"))["cmdstat_ping"]["calls"])

        before = await pings()
        await eventually(lambda: _at_least(pings(), before + 10))
        assert got == [None]


async def test_listening_without_a_server_is_unavailable_and_can_be_tried_again(
    bus_on: Callable[[str], Bus],
) -> None:
    bus = bus_on("unix:///tmp/sd-none/s")
    got: Heard = []
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await bus.listen("channel", got.append)
    assert bus._listeners == {}


@real_servers
async def test_listening_to_a_server_that_does_not_answer_is_unavailable(
    kind: str, servers: Servers, bus_on: Callable[[str], Bus]
) -> None:
    async with Relay(servers.running(kind).socket).serving() as relay:
        relay.freeze(coming=1)
        bus = bus_on(f"unix://{relay.path}")
        async with asyncio.timeout(3):  # a client of 0.5 seconds of patience
            with pytest.raises(StoreUnavailable):
                await bus.listen("channel", lambda _: None)


async def _is(value: Awaitable[int], expected: int) -> bool:
    return await value == expected


async def _at_least(value: Awaitable[int], expected: int) -> bool:
    return await value >= expected

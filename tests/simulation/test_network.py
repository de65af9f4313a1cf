from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sessiond.store.connection import connect
from tests.simulation.loop import VirtualLoop, run_virtually
from tests.simulation.network import Link, Network
from tests.simulation.server import RedisServer


class Place:
    """Two hosts and a server."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.executed: list[bytes] = []
        self.server = RedisServer(loop.time, Random(1), self._note)
        network = loop.hosts = Network(self.server, Random(2))
        self.link = network.links["one"] = Link()
        network.links["other"] = Link()
        self.redis = connect("redis://one:6379", timeout_seconds=1, max_connections=4)
        self.other = connect("redis://other:6379", timeout_seconds=1, max_connections=4)

    def _note(self, *what: object) -> None:
        self.executed.append(b" ".join(each for each in what if isinstance(each, bytes)))


def in_place(body: Callable[[Place], Awaitable[None]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        place = Place(loop)
        await body(place)

    run_virtually(main)


async def lasting(redis: Redis) -> None:
    """Have a connection."""
    await redis.ping()


def test_commands_reach_the_server_and_answers_come_back_in_order() -> None:
    async def body(place: Place) -> None:
        async with place.redis.pipeline(transaction=True) as pipeline:
            for number in range(50):
                pipeline.hset("h", "a", str(number))
                pipeline.hget("h", "a")
            answers = await pipeline.execute()
        assert answers[1::2] == [b"%d" % number for number in range(50)]

    in_place(body)


def test_what_is_published_is_heard_by_who_listens() -> None:
    async def body(place: Place) -> None:
        async with place.redis.pubsub() as listener:
            await listener.subscribe("news")
            await listener.get_message(timeout=1)
            await place.other.publish("news", "hello")
            heard = await listener.get_message(timeout=1)
        assert heard is not None
        assert heard["data"] == b"hello"

    in_place(body)


def test_nobody_answers_at_a_server_that_is_down() -> None:
    async def body(place: Place) -> None:
        place.server.kill()
        with pytest.raises(RedisConnectionError):
            await place.redis.ping()
        place.server.start()
        assert await place.redis.ping()

    in_place(body)


def test_with_a_lost_answer_the_command_was_executed_all_the_same() -> None:
    async def body(place: Place) -> None:
        await lasting(place.redis)
        place.link.loses_answers = True
        with pytest.raises(RedisConnectionError):
            await place.redis.hset("h", "a", "1")
        assert await place.other.hget("h", "a") == b"1"

    in_place(body)


def test_a_request_that_stalls_is_executed_when_its_sender_has_given_up() -> None:
    async def body(place: Place) -> None:
        await lasting(place.redis)
        place.link.holds_requests = True
        with pytest.raises(RedisTimeoutError):
            await place.redis.hset("h", "a", "1")
        assert await place.other.hget("h", "a") is None
        place.link.calm()
        assert await place.other.hget("h", "a") == b"1"

    in_place(body)


def test_what_a_process_had_under_way_arrives_after_its_end() -> None:
    async def body(place: Place) -> None:
        await lasting(place.redis)
        asked = asyncio.ensure_future(place.redis.hset("h", "a", "1"))
        await asyncio.sleep(0)
        place.link.lose_host()
        await asyncio.sleep(0.1)
        assert await place.other.hget("h", "a") == b"1"
        assert not asked.done(), "a dead process heard an answer"
        asked.cancel()

    in_place(body)


def test_a_killed_server_has_lost_what_it_is_to_lose() -> None:
    async def body(place: Place) -> None:
        for number in range(5):
            await place.redis.hset("h", "a", str(number))
        life = (await place.redis.info("server"))["run_id"]
        place.server.kill(lost=2)
        place.server.start()
        assert await place.other.hget("h", "a") == b"2"
        assert (await place.other.info("server"))["run_id"] != life

    in_place(body)


def test_a_machine_set_back_keeps_its_names() -> None:
    async def body(place: Place) -> None:
        await place.redis.hset("h", "a", "1")
        life = (await place.redis.info("server"))["run_id"]
        place.server.kill(lost=1)
        place.server.start(same_life=True)
        assert await place.other.hget("h", "a") is None
        assert (await place.other.info("server"))["run_id"] == life

    in_place(body)


def test_a_server_that_pauses_answers_afterwards() -> None:
    async def body(place: Place) -> None:
        await lasting(place.redis)
        place.server.pause()
        asked = asyncio.ensure_future(place.redis.ping())
        await asyncio.sleep(0.5)
        assert not asked.done()
        place.server.resume()
        assert await asked

    in_place(body)

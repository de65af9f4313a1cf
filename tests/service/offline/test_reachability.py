"""What needs Redis is given up once Redis is known to be away, and only then."""

from __future__ import annotations

import asyncio
import time

import pytest

from sessiond.errors import StoreUnavailable
from sessiond.service.offline.reachability import Reachability


class Server:
    """Answers unless it stalls."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.running.set()

    async def ping(self) -> None:
        await self.running.wait()


async def test_what_a_stalled_server_holds_up_is_given_up_and_nothing_is_begun_after() -> None:
    server = Server()
    redis = Reachability(server.ping)
    server.running.clear()
    began = time.monotonic()

    async def read() -> None:
        async with redis.needed():
            await server.ping()

    outcomes = await asyncio.gather(*(read() for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert time.monotonic() - began < 3
    with pytest.raises(StoreUnavailable):
        async with redis.needed():
            pytest.fail("it is known to be away")
    server.running.set()
    await asyncio.wait_for(redis.wait_until_back(), 5)
    await read()
    redis.note_failure()  # nobody waits any more whom that would end
    await redis.close()


async def test_what_takes_long_at_a_server_that_answers_is_waited_for() -> None:
    redis = Reachability(Server().ping)
    async with redis.needed():
        await asyncio.sleep(0.8)
    assert not redis.is_away
    await redis.close()


async def test_somebody_elses_failure_ends_what_waits_at_once() -> None:
    redis = Reachability(Server().ping)

    async def wait() -> None:
        async with redis.needed():
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    redis.note_failure()
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(waiting, 0.2)
    await redis.close()


async def test_a_time_limit_of_what_is_done_stays_its_own() -> None:
    redis = Reachability(Server().ping)
    with pytest.raises(TimeoutError):
        async with redis.needed(), asyncio.timeout(0.01):
            await asyncio.Event().wait()
    assert not redis.is_away
    await redis.close()


async def test_a_failure_of_any_kind_while_asking_does_not_end_the_asking() -> None:
    """Else it would be away for ever: the client fails in ways of its own when a server dies."""
    failures: list[Exception] = [RuntimeError("the transport is closed"), OSError("gone")]

    async def ping() -> None:
        if failures:
            raise failures.pop()

    redis = Reachability(ping)
    redis.note_failure()
    await asyncio.wait_for(redis.wait_until_back(), 5)
    assert not redis.is_away
    await redis.close()

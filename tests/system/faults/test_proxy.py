"""The way between a daemon and Redis does to what passes just what it is told to."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.system.faults.proxy import ChaosProxy, Way

_SOON = 2.0
_A_WHILE = 0.05


class Echo:
    """Stands for Redis: remembers what it got, and answers the same in capitals."""

    def __init__(self) -> None:
        self.got = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(100):
            self.got += chunk
            writer.write(chunk.upper())
        writer.close()

    async def until_it_got(self, wanted: bytes) -> None:
        async with asyncio.timeout(_SOON):
            while self.got != wanted:
                await asyncio.sleep(0.005)


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[ChaosProxy]:
    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp") as name:
        folder = Path(name)
        server = await asyncio.start_unix_server(echo.serve, str(folder / "redis"))
        proxy = ChaosProxy(folder / "proxy", folder / "redis")
        await proxy.start()
        yield proxy
        await proxy.stop()
        server.close()


async def connected(proxy: ChaosProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(proxy.listen))


async def exchanged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"ping")
    async with asyncio.timeout(_SOON):
        return await reader.read(100)


async def nothing_comes(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(_A_WHILE):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def is_refused(proxy: ChaosProxy) -> bool:
    try:
        reader, _ = await connected(proxy)
        return await reader.read() == b""
    except ConnectionError:
        return True


async def test_what_is_calm_passes_everything(proxy: ChaosProxy) -> None:
    assert await exchanged(*await connected(proxy)) == b"PING"


async def test_what_is_slow_is_late(proxy: ChaosProxy) -> None:
    connection = await connected(proxy)
    proxy.slow(0.1)
    began = time.monotonic()
    assert await exchanged(*connection) == b"PING"
    assert time.monotonic() - began >= 0.2  # there and back


async def test_what_is_blocked_on_its_way_there_arrives_when_it_is_calm(
    proxy: ChaosProxy, echo: Echo
) -> None:
    reader, writer = await connected(proxy)
    proxy.block(Way.TO_REDIS)
    writer.write(b"ping")
    assert await nothing_comes(reader)
    assert not echo.got
    proxy.calm()
    assert await reader.read(100) == b"PING"


async def test_an_answer_that_is_blocked_was_given_all_the_same(
    proxy: ChaosProxy, echo: Echo
) -> None:
    reader, writer = await connected(proxy)
    proxy.block(Way.TO_DAEMON)
    writer.write(b"ping")
    await echo.until_it_got(b"ping")
    assert await nothing_comes(reader)
    proxy.calm()
    assert await reader.read(100) == b"PING"


async def test_an_answer_breaks_off_where_it_is_cut_and_the_next_connection_is_whole(
    proxy: ChaosProxy,
) -> None:
    reader, writer = await connected(proxy)
    proxy.cut_answers(after_bytes=2)
    writer.write(b"ping")
    async with asyncio.timeout(_SOON):
        assert await reader.read() == b"PI"
    assert await exchanged(*await connected(proxy)) == b"PING"


async def test_a_proxy_that_refuses_breaks_all_and_takes_none_until_it_is_calm(
    proxy: ChaosProxy,
) -> None:
    reader, writer = await connected(proxy)
    assert await exchanged(reader, writer) == b"PING"
    await proxy.refuse()
    assert await reader.read() == b""
    assert await is_refused(proxy)
    proxy.calm()
    assert await exchanged(*await connected(proxy)) == b"PING"


async def test_what_is_held_arrives_after_its_sender_is_gone_and_behind_what_others_sent(
    proxy: ChaosProxy, echo: Echo
) -> None:
    reader, writer = await connected(proxy)
    assert await exchanged(reader, writer) == b"PING"
    proxy.hold()
    writer.write(b" from one who died")
    await asyncio.sleep(_A_WHILE)
    writer.transport.abort()
    _, successor = await connected(proxy)
    successor.write(b" from its successor")
    await echo.until_it_got(b"ping from its successor")
    proxy.release()
    await echo.until_it_got(b"ping from its successor from one who died")

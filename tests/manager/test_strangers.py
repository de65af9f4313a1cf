"""Servers that are none of ours where a daemon is looked for: errors of sessiond, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sessiond import SessionManager
from sessiond.errors import DaemonUnreachable, InvalidInput, SessiondError
from sessiond.model import NewSession

Call = Callable[[SessionManager], Awaitable[object]]


async def watch(manager: SessionManager) -> object:
    async with manager._backend.events("s", "1") as events:
        return await anext(events)


CALLS: dict[str, Call] = {
    "read": lambda manager: manager._backend.load("s"),
    "write": lambda manager: manager._backend.create(NewSession(), key="k"),
    "watch": watch,
}


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[SessionManager]:
    """Connect to a server that answers every request with these bytes, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    with TemporaryDirectory(prefix="s-") as folder:
        socket = Path(folder) / "s"
        async with (
            await asyncio.start_unix_server(serve, socket),
            SessionManager.connect(socket=str(socket)) as manager,
        ):
            yield manager


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nSessiond-Conflicts: " + b"1, " * 4_000 + b"\r\n\r\n",
        b"220 mail.example ready\r\n\r\n",
    ],
    ids=["header too large", "another protocol"],
)
async def test_an_answer_that_is_not_understood_is_an_error_that_says_so(
    answer: bytes, call: str
) -> None:
    async with answering(answer) as manager:
        with pytest.raises(SessiondError, match="cannot be understood") as refused:
            await asyncio.wait_for(CALLS[call](manager), 10)
    assert not refused.value.temporary, "it would be the same again"
    assert refused.value.hint


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"],
    ids=["nothing", "a part of an answer"],
)
async def test_an_answer_that_breaks_off_is_that_of_a_daemon_out_of_reach(
    answer: bytes, call: str
) -> None:
    async with answering(answer) as manager:
        with pytest.raises(DaemonUnreachable):
            await asyncio.wait_for(CALLS[call](manager), 10)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("address", ["localhost", "ftp://127.0.0.1:1", "http://:1"])
async def test_an_address_that_is_none_is_refused(address: str, call: str) -> None:
    async with SessionManager.connect(address=address) as manager:
        with pytest.raises(InvalidInput, match="no address"):
            await asyncio.wait_for(CALLS[call](manager), 10)

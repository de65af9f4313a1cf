"""Clients of a sidecar in the same process; what its API does for a request is done here."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import msgspec

from sessiond.errors import DaemonUnreachable, SessiondError
from sessiond.model import (
    Document,
    DocumentName,
    NewMessage,
    NewSession,
    Part,
    PositionReply,
    Session,
    Written,
    WrittenRecord,
)
from sessiond.service.content.sessions import Created
from sessiond.service.durable.provisional import provisional
from sessiond.service.durable.waiting import Journaled
from sessiond.service.live.feed import RESET
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    Create,
    Delete,
    Edit,
    PutPart,
    Remove,
    Write,
)
from sessiond.service.writing import Request
from sessiond.sync.position import START, Position, parse_position
from tests.simulation.sidecar import Life, Sidecar
from tests.system.faults.history import Seen
from tests.system.faults.workload import seen_in

_LOST_ANSWERS = 0.02
_LATE_REQUESTS = 0.02
"""Of how many writes the answer gets lost, or the client gives up before the sidecar begins."""
_LATE_SECONDS = 0.5
_AGAIN_SECONDS = 0.05


class LocalClient:
    """A `DaemonClient` without HTTP, over a way that loses answers and delivers requests late.

    Args:
        name: under which it writes.
        sidecar: where.
        random: what gets lost.
    """

    def __init__(self, name: str, sidecar: Sidecar, random: Random) -> None:
        self.name = name
        self._sidecar, self._random = sidecar, random
        self._late: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Nothing is to be closed: late requests still arrive."""

    async def create(self, new: NewSession, *, key: str = "") -> Session:
        """Create a session; see DaemonClient."""
        request = self._request(key)
        created = await self._write(
            Create(session_id=str(new.session_id), new=new, request=request)
        )
        if isinstance(created, Created):
            return msgspec.json.decode(created.json, type=Session)
        return created  # type: ignore[no-any-return]

    async def delete(self, session_id: str, *, key: str = "") -> str:
        """Delete a session; see DaemonClient."""
        done = await self._write(Delete(session_id=session_id, request=self._request(key)))
        return done.position if isinstance(done, PositionReply) else str(done)

    async def append(
        self, session_id: str, messages: list[NewMessage], *, key: str = ""
    ) -> Written:
        """Append messages; see DaemonClient."""
        request = self._request(key)
        write = Append(session_id=session_id, messages=messages, request=request)
        return await self._write(write)  # type: ignore[no-any-return]

    async def edit(
        self, session_id: str, message_id: str, patch: Any, *, base: str = "", key: str = ""
    ) -> WrittenRecord:
        """Edit a message; see DaemonClient."""
        request = self._request(key, base)
        write = Edit(session_id=session_id, message_id=message_id, patch=patch, request=request)
        return await self._write(write)  # type: ignore[no-any-return]

    async def remove(self, session_id: str, message_id: str, *, key: str = "") -> WrittenRecord:
        """Remove a message; see DaemonClient."""
        write = Remove(session_id=session_id, message_id=message_id, request=self._request(key))
        return await self._write(write)  # type: ignore[no-any-return]

    async def put_part(
        self, session_id: str, message_id: str, part_id: str, part: Part, *, key: str = ""
    ) -> WrittenRecord:
        """Write a part; see DaemonClient."""
        whole = msgspec.convert({**msgspec.to_builtins(part), "id": part_id}, Part)
        write = PutPart(
            session_id=session_id,
            message_id=message_id,
            part_id=part_id,
            part=whole,
            request=self._request(key),
        )
        return await self._write(write)  # type: ignore[no-any-return]

    async def document(self, session_id: str, name: DocumentName) -> Document:
        """Return a document; see DaemonClient."""
        found = await self._sidecar.ask(
            lambda life: life.reading.reading.document(session_id, name)
        )
        return msgspec.structs.replace(found.value, value=msgspec.to_builtins(found.value.value))

    async def change_document(
        self, session_id: str, name: DocumentName, patch: Any, *, base: str = "", key: str = ""
    ) -> Document:
        """Change a document; see DaemonClient."""
        request = self._request(key, base)
        write = ChangeDocument(session_id=session_id, name=name, patch=patch, request=request)
        return await self._write(write)  # type: ignore[no-any-return]

    def _request(self, key: str, base: str = "") -> Request:
        return Request(key=key, base=base, client=self.name)

    async def _write(self, write: Write) -> Any:
        chance = self._random.random()
        if chance < _LATE_REQUESTS:
            late = asyncio.create_task(self._write_late(write))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            raise DaemonUnreachable("no answer in time", hint="try again")
        outcome = await self._sidecar.ask(lambda life: life.durable.outbox.submit(write))
        if chance > 1 - _LOST_ANSWERS:
            raise DaemonUnreachable("the answer got lost", hint="try again")
        if isinstance(outcome, Journaled):
            return provisional(outcome.write, outcome.version)
        return outcome.result

    async def _write_late(self, write: Write) -> None:
        await asyncio.sleep(self._random.uniform(0, _LATE_SECONDS))
        try:
            await self._sidecar.ask(lambda life: life.durable.outbox.submit(write))
        except SessiondError:
            return  # nobody is told


class LocalWatcher:
    """Follows a session through one sidecar, from position to position."""

    def __init__(self, sidecar: Sidecar, session_id: str) -> None:
        self.seen: list[Seen] = []
        self._life = 0
        self._after: Position = START
        self._sidecar, self._session_id = sidecar, session_id
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Follow it no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                await self._sidecar.ask(self._follow)
            except SessiondError:
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _follow(self, life: Life) -> None:
        async with life.core.feeds.session(self._session_id, self._after) as events:
            async for some in events:
                for event in some:
                    if event.name == RESET:
                        self._life += 1
                        self._after = START
                    elif event.id:
                        self.seen.append(seen_in(event.data, self._life))
                        self._after = parse_position(event.id)

"""Clients that write like careful users, and remember what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from sessiond.client import DaemonClient
from sessiond.errors import NotFound, SessionDeleted, SessiondError
from sessiond.model import (
    Context,
    Document,
    DocumentName,
    NewMessage,
    NewSession,
    Operation,
    Part,
    Reset,
    Session,
    Written,
    WrittenRecord,
)
from tests.system.faults.history import History, Seen, Told

_PATIENCE_SECONDS = 20.0
_IMPATIENT = 0.05
"""So often a client asks once more before it has its answer."""
_SOON_SECONDS = 0.003
_ACTIONS = {
    "append": 60,
    "edit": 10,
    "part": 8,
    "count": 12,
    "file": 10,
    "remove": 3,
    "create": 2,
    "delete": 1,
}


class Habits(Struct, frozen=True):
    """How clients write.

    Attributes:
        sizes: bytes of a message → of how many in a hundred.
        pause_seconds: the longest time between two writes.
    """

    sizes: dict[int, float]
    pause_seconds: float


USUAL = Habits({10: 97.0, 200_000: 2.0, 900_000: 0.9, 15_000_000: 0.02}, 0.01)


class Client(Protocol):
    """What a writer needs of a daemon's client; see DaemonClient."""

    async def create(self, new: NewSession, *, key: str = "") -> Session: ...
    async def delete(self, session_id: str, *, key: str = "") -> str: ...
    async def append(
        self, session_id: str, messages: list[NewMessage], *, key: str = ""
    ) -> Written: ...
    async def edit(
        self, session_id: str, message_id: str, patch: Any, *, base: str = "", key: str = ""
    ) -> WrittenRecord: ...
    async def remove(self, session_id: str, message_id: str, *, key: str = "") -> WrittenRecord: ...
    async def put_part(
        self, session_id: str, message_id: str, part_id: str, part: Part, *, key: str = ""
    ) -> WrittenRecord: ...
    async def document(self, session_id: str, name: DocumentName) -> Document: ...
    async def change_document(
        self, session_id: str, name: DocumentName, patch: Any, *, base: str = "", key: str = ""
    ) -> Document: ...
    async def close(self) -> None: ...


class Writer:
    """One client at one daemon: one write after the other, each repeated until it is answered.

    Args:
        name: its own; what it writes carries it.
        client: leads to the daemon; closed at the end.
        sessions: where it writes.
        history: where it notes what it was told.
        seed: what it does.
        habits: how it does it.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        sessions: list[str],
        history: History,
        *,
        seed: int,
        habits: Habits = USUAL,
    ) -> None:
        self.name = name
        self._client = client
        self._habits = habits
        self._sessions = list(sessions)
        self._own_sessions: list[str] = []
        self._history = history
        self._random = Random(f"{seed} {name}")
        self._number = 0
        self._own: dict[str, list[str]] = {}
        self._versions: dict[str, str] = {}
        self._stopping = False

    async def run(self) -> None:
        """Write until `stop`."""
        try:
            while not self._stopping:
                self._number += 1
                (action,) = self._random.choices(list(_ACTIONS), list(_ACTIONS.values()))
                session_id = self._random.choice(self._sessions)
                with suppress(NotFound, SessionDeleted):  # somebody removed it: this was told so
                    await getattr(self, f"_{action}")(session_id)
                await asyncio.sleep(self._random.uniform(0, self._habits.pause_seconds))
        finally:
            await self._client.close()

    def stop(self) -> None:
        """End after the write that is under way."""
        self._stopping = True

    async def _append(self, session_id: str) -> None:
        name = f"{self.name}-{self._number}"
        sizes = self._habits.sizes
        (size,) = self._random.choices(list(sizes), list(sizes.values()))
        message = NewMessage(role="user", content=f"{name} " + "x" * size, id=name)
        self._history.attempted.add((session_id, name))
        written = await self._surely(
            lambda key: self._client.append(session_id, [message], key=key)
        )
        self._versions[name] = written.records[0].version
        self._own.setdefault(session_id, []).append(name)
        self._tell("append", session_id, name, name, written.durability)

    async def _edit(self, session_id: str) -> None:
        name, value = self._one_of(session_id), f"edit-{self.name}-{self._number}."
        if name:
            patch, base = {"content": value}, self._versions[name]
            with self._unanswered(session_id, "edit", name, value):
                written = await self._surely(
                    lambda key: self._client.edit(session_id, name, patch, base=base, key=key)
                )
            self._versions[name] = written.version
            self._tell("edit", session_id, name, value, written.durability)

    async def _part(self, session_id: str) -> None:
        name, value = self._one_of(session_id), f"part-{self.name}-{self._number}."
        if name:
            part = {"type": "text", "text": value}
            part_id = f"p{self._number}"
            written = await self._surely(
                lambda key: self._client.put_part(session_id, name, part_id, part, key=key)
            )
            self._versions.pop(name)  # a part changed it: it is not edited any more
            self._own[session_id].remove(name)
            self._tell("part", session_id, name, value, written.durability)

    async def _remove(self, session_id: str) -> None:
        name = self._one_of(session_id)
        if name:
            self._own[session_id].remove(name)
            with self._unanswered(session_id, "remove", name, name):
                written = await self._surely(
                    lambda key: self._client.remove(session_id, name, key=key)
                )
            self._tell("remove", session_id, name, name, written.durability)

    async def _count(self, session_id: str) -> None:
        patch = {"state": {self.name: self._number}}
        changed = await self._surely(
            lambda key: self._client.change_document(session_id, "context", patch, key=key)
        )
        self._tell("count", session_id, self.name, self._number, changed.durability)

    async def _file(self, session_id: str) -> None:
        known = await self._surely(lambda _: self._client.document(session_id, "context"))
        name = f"{self.name}-{self._number}.py"
        self._history.attempted.add((session_id, name))
        patch = {"active_files": [*known.value["active_files"], name]}
        changed = await self._surely(
            lambda key: self._client.change_document(
                session_id, "context", patch, base=known.version, key=key
            )
        )
        self._tell("file", session_id, name, name, changed.durability)

    async def _create(self, _: str) -> None:
        session_id = f"{self._sessions[0]}-{self.name}-{self._number}"
        new = NewSession(session_id=session_id, context=Context(state={"made": self.name}))
        session = await self._surely(lambda key: self._client.create(new, key=key))
        self._sessions.append(session_id)
        self._own_sessions.append(session_id)
        self._tell("create", session_id, session_id, self.name, session.durability)

    async def _delete(self, _: str) -> None:
        if self._own_sessions:
            session_id = self._own_sessions.pop()
            self._sessions.remove(session_id)
            position = await self._surely(lambda key: self._client.delete(session_id, key=key))
            durability = "committed" if position else "journaled"
            self._tell("delete", session_id, session_id, "", durability)

    def _one_of(self, session_id: str) -> str:
        own = self._own.get(session_id, [])
        return self._random.choice(own) if own else ""

    async def _surely(self, write: Any) -> Any:
        """Repeat a call until it is answered, always with the same key."""
        key = f"key-{self.name}-{self._number}"
        is_impatient = self._random.random() < _IMPATIENT
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                try:
                    return await (_first_of_two(write, key) if is_impatient else write(key))
                except SessiondError as error:
                    if not error.temporary:
                        raise
                await asyncio.sleep(0.05)

    @contextmanager
    def _unanswered(self, session_id: str, kind: str, name: str, value: str) -> Iterator[None]:
        """Note what is under way; a client that is killed meanwhile leaves that note behind."""
        place = session_id, kind, name
        self._history.unanswered[place] = value
        try:
            yield
        except SessiondError:  # refused
            del self._history.unanswered[place]
            raise
        del self._history.unanswered[place]

    def _tell(self, kind: str, session_id: str, name: str, value: Any, durability: Any) -> None:
        told = durability or "committed"
        self._history.told.append(
            Told(self.name, self._number, kind, session_id, name, value, told)
        )


async def _first_of_two(write: Any, key: str) -> Any:
    """Make a call twice, almost at once; return the first answer, and leave the other call."""
    first = asyncio.create_task(write(key))
    await asyncio.wait([first], timeout=_SOON_SECONDS)
    calls = [first, asyncio.create_task(write(key))]
    try:
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


class Watcher:
    """Follows a session through one daemon, from position to position."""

    def __init__(self, socket: str, session_id: str) -> None:
        self.seen: list[Seen] = []
        self._life = 0
        self._client = DaemonClient(socket=socket)
        self._session_id = session_id
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Follow it no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._client.close()

    async def _watch(self) -> None:
        after = "0"
        while True:
            try:
                async for event in self._client.stream(
                    f"/v1/sessions/{self._session_id}/events", after
                ):
                    if event.name == "reset":
                        msgspec.json.decode(event.data, type=Reset)
                        self._life += 1
                    elif event.id:
                        self.seen.append(seen_in(event.data, self._life))
                        after = event.id
            except SessiondError:
                await asyncio.sleep(0.05)


def seen_in(data: bytes, life: int) -> Seen:
    """Return an operation as an observer notes it."""
    operation = msgspec.json.decode(data, type=Operation)
    epoch, _, offset = operation.position.partition(":")
    return Seen(life, int(offset), epoch, operation.op, operation.id)

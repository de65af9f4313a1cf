"""The debug mode's trace: what happened to each operation of a session, from daemon to daemon.

A tracer hangs itself into the lists of those who tell what they do, and takes itself out again:
while `debug.sessions` is off nothing of it runs. Bodies are never part of a trace. Events go to
Redis a moment later, beside the writes; while Redis is away they are kept here, as many as fit.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from sessiond.codec import json
from sessiond.errors import SessiondError
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.service.durable.tries import Refused
from sessiond.service.live.feed import RESET, Event
from sessiond.service.writes import Append, ChangePreferences, Create, Delete, Write, op_of
from sessiond.store.draft import Draft
from sessiond.store.outcome import Committed
from sessiond.store.traces import TraceStore

Stage: TypeAlias = Literal[
    "received", "journaled", "not journaled", "sent", "committed", "refused", "seen", "applied"
]

_REMEMBERED = 10_000
_TOGETHER_SECONDS = 0.2


class TraceEvent(Struct, kw_only=True, omit_defaults=True):
    """One stage of one operation at one daemon.

    Attributes:
        at_ms: by that daemon's clock, in ms since 1970; clocks of several machines may differ.
        stage: `received` by the API, `journaled` on its disk, `sent` to Redis, `committed` there
            (and announced: one script does both) or `refused`, at once or when it was tried later,
            `seen` by a daemon that follows the session, and `applied` to an opencode.
        id: of the record: a message, `<message>/<part>`, a document, the session.
        position: in the log; empty before it has one.
        detail: how many readers it was passed on to, for instance, or why it is refused.
    """

    at_ms: float
    daemon: str
    stage: Stage
    op: str
    id: str
    position: str = ""
    detail: str = ""


class SessionTrace(Struct, kw_only=True):
    """What is known of a session's operations, in the order of their times.

    `tracing`: whether this daemon adds to it now. `complete`: false while Redis is away: then it
    is only what happened here.
    """

    session_id: str
    tracing: bool
    complete: bool
    events: list[TraceEvent]


class _Head(Struct):
    id: str = ""


_EVENT = msgspec.json.Decoder(TraceEvent)
_HEAD = msgspec.json.Decoder(_Head)


class Hooks(Struct, frozen=True):
    """The lists of those who tell what they do.

    They tell of writes taken in, sent, done and refused, of what was seen in a log, and of what
    opencodes were given.
    """

    on_write: list[Callable[[Write, asyncio.Future[Any]], None]]
    on_refused: list[Callable[[Refused], None]]
    on_send: list[Callable[[str, list[Draft]], None]]
    on_commit: list[Callable[[str, list[Draft], Committed], None]]
    on_seen: list[Callable[[str, Event, int], None]]
    on_applied: list[Callable[[str, Sequence[OpencodeEvent], str], None]]


class Tracer:
    """Traces the operations of all sessions while it is switched on.

    Args:
        store: where all daemons put their events.
        daemon: the name of this one.
        hooks: where it listens.
        now_ms: milliseconds since 1970, as fine as the clock tells.
        sleep: how to pause.
    """

    def __init__(
        self,
        store: TraceStore,
        daemon: str,
        hooks: Hooks,
        *,
        now_ms: Callable[[], float] = lambda: time.time() * 1000,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._daemon = daemon
        self._now_ms = now_ms
        self._sleep = sleep
        self._ring: deque[tuple[str, TraceEvent]] = deque(maxlen=_REMEMBERED)
        self._unsent: deque[tuple[str, TraceEvent]] = deque(maxlen=_REMEMBERED)
        self._wanted = asyncio.Event()
        self._listeners: list[tuple[list[Any], Any]] = [
            (hooks.on_write, self._written),
            (hooks.on_refused, self._refused),
            (hooks.on_send, self._sent),
            (hooks.on_commit, self._committed),
            (hooks.on_seen, self._seen),
            (hooks.on_applied, self._applied),
        ]
        self.is_on = False

    def switch(self, *, on: bool) -> None:
        """Begin or stop to trace."""
        if on != self.is_on:
            self.is_on = on
            for hook, listener in self._listeners:
                hook.append(listener) if on else hook.remove(listener)

    async def read(self, session_id: str, record_id: str = "", limit: int = 1000) -> SessionTrace:
        """Return the newest events of a session, of all daemons or, without Redis, of this one.

        Args:
            session_id: which.
            record_id: only what is about this record, and a message's parts; empty for all.
            limit: so many of the session's events at most are looked at.
        """
        complete = True
        try:
            await self._send()
            found = [_EVENT.decode(text) for text in await self._store.read(session_id, limit)]
        except (SessiondError, msgspec.MsgspecError):
            complete = False
            found = [event for name, event in self._ring if name == session_id][-limit:]
        wanted = [event for event in found if _is_about(event, record_id)]
        wanted.sort(key=lambda event: event.at_ms)
        return SessionTrace(
            session_id=session_id, tracing=self.is_on, complete=complete, events=wanted
        )

    async def run(self) -> None:
        """Take what is traced to Redis, for ever."""
        while True:
            await self._wanted.wait()
            await self._sleep(_TOGETHER_SECONDS)
            try:
                await self._send()
            except SessiondError:  # away: the newest events stay here until it is back
                await self._sleep(_TOGETHER_SECONDS)

    async def _send(self) -> None:
        batch = list(self._unsent)
        by_session: dict[str, list[bytes]] = {}
        for session_id, event in batch:
            by_session.setdefault(session_id, []).append(json.encode(event))
        self._wanted.clear()
        self._unsent.clear()
        try:
            if by_session:
                await self._store.add(by_session)
        except SessiondError:
            self._unsent.extendleft(reversed(batch))
            self._wanted.set()
            raise

    def _note(self, session_id: str, stage: Stage, op: str, record_id: str, **more: str) -> None:
        event = TraceEvent(
            at_ms=round(self._now_ms(), 3),
            daemon=self._daemon,
            stage=stage,
            op=op,
            id=record_id,
            **more,
        )
        self._ring.append((session_id, event))
        self._unsent.append((session_id, event))
        self._wanted.set()

    def _written(self, write: Write, begun: asyncio.Future[Any]) -> None:
        if isinstance(write, ChangePreferences):  # of no session
            return

        def note(stage: Stage) -> None:
            for record_id in _record_ids(write):
                self._note(write.session_id, stage, op_of(write), record_id)

        def durable(done: asyncio.Future[Any]) -> None:
            failed = done.cancelled() or done.exception() is not None
            note("not journaled" if failed else "journaled")

        note("received")
        begun.add_done_callback(durable)

    def _refused(self, refused: Refused) -> None:
        write, error = refused.write, refused.error
        if isinstance(write, ChangePreferences):
            return
        kept = "; kept as a conflict" if refused.is_kept else ""
        detail = f"{error.code}: {error.detail}{kept}"
        for record_id in _record_ids(write):
            self._note(write.session_id, "refused", op_of(write), record_id, detail=detail)

    def _sent(self, session_id: str, group: list[Draft]) -> None:
        for draft in group:
            self._note(session_id, "sent", draft.op, draft.id)

    def _committed(self, session_id: str, group: list[Draft], committed: Committed) -> None:
        detail = "it was there already" if committed.duplicate else ""
        for draft, position in zip(group, committed.positions, strict=True):
            self._note(
                session_id, "committed", draft.op, draft.id, position=str(position), detail=detail
            )

    def _seen(self, session_id: str, event: Event, readers: int) -> None:
        record_id = "" if event.name == RESET else _HEAD.decode(event.data).id
        detail = f"passed to {readers} reader{'' if readers == 1 else 's'}"
        position = "" if event.name == RESET else str(event.position)
        self._note(session_id, "seen", event.name, record_id, position=position, detail=detail)

    def _applied(self, session_id: str, events: Sequence[OpencodeEvent], outcome: str) -> None:
        for event in events:
            record_id = _record_of(session_id, event.properties)
            self._note(session_id, "applied", event.type, record_id, detail=outcome)


def _record_ids(write: Write) -> Iterable[str]:
    match write:
        case Append():
            return [str(message.id) for message in write.messages]
        case Create() | Delete():
            return [write.session_id]
        case _:
            return [write.record_id]


def _record_of(session_id: str, properties: dict[str, Any]) -> str:
    """Return which of our records an event of opencode is about."""
    part, info = properties.get("part"), properties.get("info")
    if isinstance(part, dict):
        return f"{part.get('messageID')}/{part.get('id')}"
    if "messageID" in properties:
        part_id = properties.get("partID")
        return f"{properties['messageID']}/{part_id}" if part_id else str(properties["messageID"])
    return str(info.get("id", session_id)) if isinstance(info, dict) else session_id


def _is_about(event: TraceEvent, record_id: str) -> bool:
    return not record_id or event.id == record_id or event.id.startswith(f"{record_id}/")

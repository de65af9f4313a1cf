"""Events for subscribers: one reader per log and process, any number of subscribers.

A publication only wakes; what subscribers get is read from the log, by position. Durable events
and live ones go through one queue in the order they were announced, so that typing never
overtakes the message it belongs to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from sessiond.codec import json
from sessiond.errors import InvalidInput, SessiondError, SlowSubscriberCut
from sessiond.store.log import LogReader, Reset
from sessiond.sync.entry import Entry, operation_json
from sessiond.sync.position import START, Position, parse_position

RESET = "reset"
LIVE = "live"


class Event(Struct, eq=False):
    """Something a subscriber is told.

    `name` is an operation's name, `live`, `journaled`, `reset` or `positions`; `id` is where a
    subscriber resumes who has seen it; `frame` is room for a transport's encoding, made once for
    all.
    """

    name: str
    data: bytes
    id: str = ""
    position: Position | None = None
    frame: bytes = b""


class Notice(Struct):
    """A message on the bus: operations were added up to a position, or something live."""

    session_id: str = ""
    position: str | UnsetType = UNSET
    live: Raw | UnsetType = UNSET


class LiveHead(Struct):
    """The part of a live message that decides where it goes."""

    session_id: str


_NOTICE = msgspec.json.Decoder(Notice)
_LIVE_HEAD = msgspec.json.Decoder(LiveHead)


def announced_offset(notice: Notice | None, position: Position) -> int | None:
    """Return how far a notice asks a reader at a position to read; None for to the end.

    A notice that names an offset the reader has passed already belongs to another history.
    """
    if notice is None or not isinstance(notice.position, str):
        return None
    offset = parse_position(notice.position).offset
    return offset if offset > position.offset else None


def read_notice(message: bytes) -> Notice | None:
    """Return what was published; None when it is nothing of ours."""
    try:
        notice = _NOTICE.decode(message)
        if isinstance(notice.position, str):
            parse_position(notice.position)
        if isinstance(notice.live, Raw):
            if b"\n" in message or b"\r" in message:  # it would end a line of an event stream
                return None
            notice.session_id = _LIVE_HEAD.decode(notice.live).session_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InvalidInput):
        return None
    return notice


def operation_event(session_id: str, entry: Entry) -> Event:
    """Return the event that announces a log entry."""
    position = entry.position
    data = operation_json(session_id, entry)
    return Event(entry.op, data, id=str(position), position=position)


def reset_event(session_id: str, reason: Reset) -> Event:
    """Return the event that makes a subscriber drop what it holds of a session."""
    return Event(RESET, json.encode({"session_id": session_id, "reason": reason}))


class Subscription:
    """A bounded queue of events for one subscriber.

    Args:
        limit_bytes: how much may wait before the subscriber is cut.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._ready = asyncio.Event()
        self._cut = False
        self._failure: SessiondError | None = None

    def fail(self, error: SessiondError) -> None:
        """End the subscription with an error, after what waits already."""
        self._failure = error
        self._ready.set()

    def offer(self, event: Event) -> None:
        """Queue an event, or cut the subscriber when too much waits already.

        One that is longer than all that may wait is no reason: who waits for it takes it.
        """
        if self._cut:
            return
        if self._events and self._bytes + len(event.data) > self._limit_bytes:
            self._cut = True
            self._events.clear()
        else:
            self._events.append(event)
            self._bytes += len(event.data)
        self._ready.set()

    async def take(self) -> list[Event]:
        """Return all events that wait, as soon as there is one.

        Raises:
            SlowSubscriberCut: too much waited.
        """
        while not self._events:
            if self._cut:
                raise SlowSubscriberCut(
                    f"more than {self._limit_bytes} bytes of events waited to be taken",
                    hint="connect again with the last position received",
                )
            if self._failure:
                raise self._failure
            self._ready.clear()
            await self._ready.wait()
        taken = list(self._events)
        self._events.clear()
        self._bytes = 0
        return taken


class Follower:
    """Follows one session's log from a position.

    `read` returns what was added since. When the log has another history by now, a reset event
    comes first and the whole log after it.
    """

    def __init__(self, log: LogReader, session_id: str, position: Position) -> None:
        self._log = log
        self.session_id = session_id
        self.position = position

    def has_seen(self, position: Position) -> bool:
        """Tell whether a position lies in what was read; another history at its end does not."""
        mine = self.position
        if position.offset == mine.offset:
            return mine.epoch in ("", position.epoch)
        return position.offset < mine.offset

    async def read(self, until: int | None = None) -> AsyncIterator[list[Event]]:
        """Yield the new events, page by page, and move on with them.

        Args:
            until: read up to this offset only, so that what was announced between operations
                keeps its place between them.
        """
        restarted = False
        while True:
            async for page in self._log.pages(
                self.session_id, self.position, until, oldest=restarted
            ):
                if page.reset:
                    break
                self.position = page.position
                yield [operation_event(self.session_id, entry) for entry in page.entries]
            else:
                return
            yield [reset_event(self.session_id, page.reset)]
            self.position, until = START, None
            if restarted:
                return
            restarted = True

"""The feeds of a process: one for each session and workspace that somebody watches."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from msgspec import Raw

from sessiond.codec import json
from sessiond.errors import NotFound, SessionDeleted, SessiondError, StoreDamaged, StoreUnavailable
from sessiond.service.live.feed import (
    LIVE,
    RESET,
    Event,
    Follower,
    Notice,
    Subscription,
    announced_offset,
    read_notice,
)
from sessiond.store.bus import Bus
from sessiond.store.keys import Keys
from sessiond.store.sessions import SessionStore
from sessiond.sync.position import START, Position

Events = AsyncIterator[list[Event]]

POSITIONS = "positions"
DELETED = "session.delete"

_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_RECENT = 512
_RING_EVENTS = 4096
_RING_BYTES = 4 * 1024 * 1024
_CATCH_UP_AT_ONCE = 8
_LARGE_BYTES = 1024 * 1024
_LINGER_SECONDS = 60.0
_RETRY_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0


OnSeen = Callable[[str, Event, int], None]
"""Told of every event that a feed passes on, and to how many, for the trace."""


class _Feed:
    """What the bus says of one channel, worked off one by one, in its order."""

    def __init__(self) -> None:
        self.subscriptions: set[Subscription] = set()
        self.users = 0
        self._notices: deque[Notice | None] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._recent: deque[str] = deque(maxlen=_RECENT)

    def _remember(self, event: Event) -> None:
        """Note a position that was told, so that a late notice of it costs nothing."""
        if event.name == RESET:
            self._recent.clear()
        else:
            self._recent.append(event.id)

    def hear(self, message: bytes | None) -> None:
        """Take a message of the bus, or None for a gap."""
        notice = None if message is None else read_notice(message)
        if message is not None and notice is None:
            return  # somebody else's words on our channel
        self._notices.append(notice)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def settle(self) -> None:
        """Look into the log, and return when everything heard so far is worked off."""
        self.hear(None)
        if self._worker:
            await asyncio.wait([self._worker])

    def stop(self) -> None:
        """Stop working."""
        if self._worker:
            self._worker.cancel()

    def lag(self) -> int:
        """Return how many notices wait to be worked off."""
        return len(self._notices)

    async def _work(self) -> None:
        pause = 0.05
        while self._notices:
            notice = self._notices[0]
            try:
                if notice and isinstance(notice.live, Raw):
                    self.tell(Event(LIVE, bytes(notice.live)))
                else:
                    await self._follow(notice)
            except SessiondError:  # Redis is away: nothing is forgotten, try again
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                continue
            self._notices.popleft()
            pause = 0.05

    async def _follow(self, notice: Notice | None) -> None:
        """Read what a notice announces, or what a gap may have hidden, and tell it."""
        raise NotImplementedError

    def tell(self, event: Event) -> None:
        """Tell something to all who listen now."""
        for subscription in self.subscriptions:
            subscription.offer(event)


class _SessionFeed(_Feed):
    """The events of one session."""

    def __init__(self, follower: Follower, on_seen: list[OnSeen]) -> None:
        super().__init__()
        self._follower = follower
        self._on_seen = on_seen

    def join(self, subscription: Subscription, position: Position) -> bool:
        """Add a subscriber who has read up to here; False when it must read on first."""
        if position.offset < self._follower.position.offset:
            return False
        self.subscriptions.add(subscription)
        return True

    async def _follow(self, notice: Notice | None) -> None:
        if notice and notice.position in self._recent:
            return
        until = announced_offset(notice, self._follower.position)
        try:
            async for events in self._follower.read(until):
                for event in events:
                    self._remember(event)
                    self.tell(event)
                    for note in self._on_seen:
                        note(self._follower.session_id, event, len(self.subscriptions))
        except StoreDamaged as error:
            for subscription in self.subscriptions:
                subscription.fail(error)


class _WorkspaceFeed(_Feed):
    """The events of all sessions of a workspace, numbered by this feed.

    An event's id is `<the feed's own epoch>:<number>`. A subscriber who comes back finds what
    it missed in the ring; when that is not enough it is told where each session stands.
    """

    def __init__(self, store: SessionStore, workspace: str, on_seen: list[OnSeen]) -> None:
        super().__init__()
        self._on_seen = on_seen
        self.linger: asyncio.TimerHandle | None = None
        self._store = store
        self._workspace = workspace
        self._followers: dict[str, Follower] = {}
        self._epoch = secrets.token_hex(7)
        self._number = 0
        self._ring: deque[Event] = deque()
        self._ring_bytes = 0

    async def start(self) -> None:
        """Take every session of the workspace as it stands now."""
        positions = await self._store.positions(self._workspace)
        for session_id, position in positions.items():
            self._followers[session_id] = Follower(self._store.log, session_id, position)

    def join(self, subscription: Subscription, last_id: str) -> None:
        """Add a subscriber, beginning after the event it saw last."""
        epoch, _, number = last_id.partition(":")
        missed = self._number - int(number) if _NUMBER.fullmatch(number) else -1
        if epoch == self._epoch and 0 <= missed <= len(self._ring):
            for event in list(self._ring)[len(self._ring) - missed :]:
                subscription.offer(event)
        else:
            subscription.offer(self._positions("history-lost" if last_id else None))
        self.subscriptions.add(subscription)

    async def _follow(self, notice: Notice | None) -> None:
        if notice is None:
            known = await self._store.positions(self._workspace)
            for session_id in {*known, *self._followers}:
                await self._read(session_id, None)
        elif notice.position not in self._recent:
            await self._read(notice.session_id, notice)

    async def _read(self, session_id: str, notice: Notice | None) -> None:
        # One session that is damaged, or is none, must not silence the others.
        with contextlib.suppress(StoreDamaged, NotFound, SessionDeleted):
            await self._read_whole(session_id, notice)

    async def _read_whole(self, session_id: str, notice: Notice | None) -> None:
        follower = self._followers.get(session_id)
        if follower is None:
            if await self._store.workspace_of(session_id) != self._workspace:
                return  # a stranger's words on our channel
            follower = Follower(self._store.log, session_id, START)
            self._followers[session_id] = follower
        until = announced_offset(notice, follower.position)
        async for events in follower.read(until):
            for event in events:
                self._remember(event)
                self.tell(self._numbered(event))
                for note in self._on_seen:
                    note(session_id, event, len(self.subscriptions))
                if event.name == DELETED:
                    del self._followers[session_id]

    def _numbered(self, event: Event) -> Event:
        self._number += 1
        numbered = Event(event.name, event.data, id=f"{self._epoch}:{self._number}")
        self._ring.append(numbered)
        self._ring_bytes += len(numbered.data)
        while len(self._ring) > _RING_EVENTS or self._ring_bytes > _RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft().data)
        return numbered

    def _positions(self, reason: str | None) -> Event:
        sessions = {name: str(follower.position) for name, follower in self._followers.items()}
        data = json.encode({"reason": reason, "sessions": sessions})
        name = RESET if reason else POSITIONS
        return Event(name, data, id=f"{self._epoch}:{self._number}")


class Feeds:
    """All feeds of this process.

    Args:
        store: where the logs are.
        bus: what wakes.
        keys: names of the channels.
        buffer_bytes: how much may wait for one subscriber before it is cut.
    """

    def __init__(self, store: SessionStore, bus: Bus, keys: Keys, *, buffer_bytes: int) -> None:
        self._store = store
        self._bus = bus
        self._keys = keys
        self._buffer_bytes = buffer_bytes
        self._sessions: dict[str, _SessionFeed] = {}
        self._workspaces: dict[str, _WorkspaceFeed] = {}
        self._opening = asyncio.Lock()
        self.on_seen: list[OnSeen] = []
        self._leaving: asyncio.Task[None] | None = None
        self._catching_up = asyncio.Semaphore(_CATCH_UP_AT_ONCE)

    @property
    def subscribers(self) -> int:
        """How many subscribers listen now."""
        return sum(len(feed.subscriptions) for feed in self._all())

    @property
    def watched(self) -> list[str]:
        """The sessions that somebody watches."""
        return list(self._sessions)

    @property
    def lag(self) -> int:
        """How many announcements were heard but not yet handed on."""
        return sum(feed.lag() for feed in self._all())

    @asynccontextmanager
    async def session(self, session_id: str, after: Position) -> AsyncIterator[Events]:
        """Watch a session: yields what happened after a position, then what happens, as it does.

        A position that is not part of the log gets a `reset` event, then the whole log. The
        iteration ends with the event of the session's deletion. Iterating may raise
        SlowSubscriberCut when the caller does not take the events in time, and StoreUnavailable.

        Raises:
            NotFound: there is no such session.
            StoreUnavailable: Redis does not answer.
        """
        follower = Follower(self._store.log, session_id, after)
        try:
            feed = await self._open_session(session_id)
        except SessionDeleted:  # all that is left of its log says so
            yield follower.read()
            return
        try:
            yield _session_events(feed, follower, self._buffer_bytes, self._catching_up)
        finally:
            await self._close_session(session_id, feed)

    @asynccontextmanager
    async def workspace(self, workspace: str, last_id: str) -> AsyncIterator[Events]:
        """Watch all sessions of a workspace.

        The first event is `positions`: where each session stands. A subscriber who comes back
        with the id of the last event it saw gets what it missed instead, or, when that is gone,
        a `reset` event with the positions. Iterating may raise SlowSubscriberCut.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        feed = await self._open_workspace(workspace)
        try:
            yield _workspace_events(feed, last_id, self._buffer_bytes)
        finally:
            self._leave_workspace(workspace, feed)

    def look(self, workspace: str) -> None:
        """Have a watched workspace read again: a Redis that lost everything does not say so."""
        feed = self._workspaces.get(workspace)
        if feed:
            feed.hear(None)

    def tell(self, session_id: str, event: Event) -> None:
        """Tell something passing to those who watch a session here; Redis is not asked."""
        feed = self._sessions.get(session_id)
        if feed:
            feed.tell(event)

    def close(self) -> None:
        """Stop all feeds."""
        for feed in self._all():
            feed.stop()

    def _all(self) -> list[_Feed]:
        return [*self._sessions.values(), *self._workspaces.values()]

    async def _open_session(self, session_id: str) -> _SessionFeed:
        async with self._opening:
            feed = self._sessions.get(session_id)
            if feed is None:
                end = await self._store.end(session_id)
                feed = _SessionFeed(
                    Follower(self._store.log, session_id, end.position), self.on_seen
                )
                await self._bus.listen(self._keys.events(session_id), feed.hear)
                self._sessions[session_id] = feed
            feed.users += 1
            return feed

    async def _close_session(self, session_id: str, feed: _SessionFeed) -> None:
        feed.users -= 1
        if feed.users == 0 and self._sessions.get(session_id) is feed:
            del self._sessions[session_id]
            feed.stop()
            await self._bus.leave(self._keys.events(session_id), feed.hear)

    async def _open_workspace(self, workspace: str) -> _WorkspaceFeed:
        async with self._opening:
            feed = self._workspaces.get(workspace)
            if feed is None:
                feed = _WorkspaceFeed(self._store, workspace, self.on_seen)
                await feed.start()
                await self._bus.listen(self._keys.workspace_events(workspace), feed.hear)
                self._workspaces[workspace] = feed
            if feed.linger:
                feed.linger.cancel()
            feed.users += 1
            return feed

    def _leave_workspace(self, workspace: str, feed: _WorkspaceFeed) -> None:
        feed.users -= 1
        if feed.users == 0:
            loop = asyncio.get_running_loop()
            feed.linger = loop.call_later(_LINGER_SECONDS, self._drop_workspace, workspace, feed)

    def _drop_workspace(self, workspace: str, feed: _WorkspaceFeed) -> None:
        if self._workspaces.get(workspace) is feed and feed.users == 0:
            del self._workspaces[workspace]
            feed.stop()
            channel = self._keys.workspace_events(workspace)
            self._leaving = asyncio.create_task(self._bus.leave(channel, feed.hear))


async def _session_events(
    feed: _SessionFeed, follower: Follower, buffer_bytes: int, catching_up: asyncio.Semaphore
) -> Events:
    while True:
        try:
            async for events in _in_turn(follower.read(), catching_up):
                yield events
                if events[-1].name == DELETED:
                    return
        except StoreUnavailable:  # a stream that is open stays open
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        subscription = Subscription(buffer_bytes)
        if not feed.join(subscription, follower.position):
            await feed.settle()  # it is ahead of this reader, or behind a rollback
            continue
        try:
            async for events in _unseen(subscription, follower):
                yield events
                if events[-1].name == DELETED:
                    return
        finally:
            feed.subscriptions.discard(subscription)


async def _in_turn(pages: Events, turns: asyncio.Semaphore) -> Events:
    """Yield what is read of a log by one reader alone; only some do so at a time.

    A large page keeps its turn until it is taken: readers that take nothing do not fill the memory.
    """
    is_over = False
    while not is_over:
        async with turns:
            events = await anext(pages, None)
            is_over = events is None
            is_large = events is not None and sum(len(each.data) for each in events) > _LARGE_BYTES
            if events and is_large:
                yield events
        if events and not is_large:
            yield events


async def _workspace_events(feed: _WorkspaceFeed, last_id: str, buffer_bytes: int) -> Events:
    subscription = Subscription(buffer_bytes)
    feed.join(subscription, last_id)
    try:
        while True:
            yield await subscription.take()
    finally:
        feed.subscriptions.discard(subscription)


async def _unseen(subscription: Subscription, follower: Follower) -> Events:
    """Yield live events after the follower's position.

    Ends when they do not continue what the follower has read: the log must be read again.
    """
    while True:
        fresh: list[Event] = []
        for event in await subscription.take():
            if event.name == RESET:
                follower.position = START
            elif event.position:
                if follower.has_seen(event.position):
                    continue
                if event.position.offset != follower.position.offset + 1 and event.name != DELETED:
                    break
                follower.position = event.position
            fresh.append(event)
        else:
            if fresh:
                yield fresh
            continue
        if fresh:
            yield fresh
        return

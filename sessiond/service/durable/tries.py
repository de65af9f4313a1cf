"""Trying writes on Redis: whoever tries, what that says of Redis is noted in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from msgspec import Struct, field, structs

from sessiond.errors import (
    AlreadyExists,
    NotFound,
    SessiondError,
    StoreFull,
    StoreUnavailable,
    StoreWentBack,
)
from sessiond.journal import Entry, Journal, Span
from sessiond.model import NewSession
from sessiond.service.clock import Clock
from sessiond.service.durable.bases import Bases
from sessiond.service.durable.confirmed import Confirmed, Lookup
from sessiond.service.durable.performing import Performed
from sessiond.service.durable.waiting import Journaled
from sessiond.service.identity import Entropy
from sessiond.service.offline.reachability import Reachability
from sessiond.service.writes import Create, Delete, Write
from sessiond.sync.position import Position


class Refused(Struct, frozen=True):
    """A write that is refused for good; `is_kept`: as a conflict, for it was acknowledged."""

    write: Write
    error: SessiondError
    is_kept: bool


class Surroundings(Struct, frozen=True):
    """What an outbox stands on.

    Args:
        journal: where writes are durable.
        perform: performs a write on Redis.
        keep_refused: keeps a write as a conflict that was acknowledged, and is refused now;
            returns where the session's log has that, None where it does not; raises SessionMissing
            where there is no such session.
        lookup: how Redis is asked for what it confirmed.
        redis: whether it answers.
        clock: milliseconds since 1970.
        entropy: returns that many random bytes.
        sleep: how to pause.
        told: hears of every write that is acknowledged as journaled.
    """

    journal: Journal
    perform: Callable[[Write], Awaitable[Performed]]
    keep_refused: Callable[[Write, SessiondError], Awaitable[Position | None]]
    lookup: Lookup
    redis: Reachability
    clock: Clock
    entropy: Entropy
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)
    told: Callable[[Journaled], None] = field(default=lambda _: None)


class Tries:
    """Performs writes on Redis, and remembers what came of them.

    Args:
        around: what an outbox stands on.
        write_again: see `Confirmed`.
    """

    def __init__(
        self, around: Surroundings, write_again: Callable[[str, list[Entry]], int]
    ) -> None:
        self._around = around
        self._is_redis_full = False
        self.bases = Bases()
        self.confirmed = Confirmed(around.journal, around.lookup, write_again)
        """What Redis is known to have."""
        self.on_refused: list[Callable[[Refused], None]] = []

    @property
    def takes_writes(self) -> bool:
        """Whether Redis is there and has room, as far as is known."""
        return not (self._around.redis.is_away or self._is_redis_full)

    async def perform(self, write: Write, *, is_promised: bool = False) -> Performed:
        """Perform a write; a session that is missing although it was there is no refusal.

        Args:
            write: what is to be done.
            is_promised: whether its writer was told that it will be, and is gone.
        """
        try:
            return await self._around.perform(write)
        except NotFound as error:
            if await self.confirmed.is_missing(write.session_id):
                raise StoreWentBack(error.detail, hint=error.hint) from error
            if not (is_promised and isinstance(write, Delete)):
                raise
        return await self._bury(write)

    async def _bury(self, write: Delete) -> Performed:
        """Delete a session that is missing: whoever has yet to write to it must learn that."""
        request = structs.replace(write.request, key="", base="", expected="")
        new = Create(session_id=write.session_id, new=NewSession(), request=request)
        with suppress(AlreadyExists):  # by now it was written, or what this wrote before is there
            await self._around.perform(new)
        return await self._around.perform(write)

    async def in_time(self, write: Write, seconds: float) -> Performed | SessiondError | None:
        """Perform a write within some seconds.

        Returns:
            What came of it, or why it is refused; None if it was not done in time, or Redis failed.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self.perform(write)
        except TimeoutError:
            self._around.redis.suspect()
            return None
        except SessiondError as error:
            if not error.temporary:
                return error
            self.note_obstacle(error, write.session_id)
            return None

    def note_done(self, session_id: str, span: Span, performed: Performed) -> None:
        """Note that a write is done: in the journal, and as a base of later changes."""
        self._is_redis_full = False
        self._around.journal.confirm(span, performed.position)
        self.confirmed.note(session_id, performed.position)
        self.bases.note_done(session_id, performed)

    def note_refused(self, write: Write, error: SessiondError, *, is_kept: bool) -> None:
        """Tell that a write is refused; see `Refused`."""
        for told in self.on_refused:
            told(Refused(write, error, is_kept))

    def note_obstacle(self, obstacle: SessiondError, session_id: str) -> bool:
        """Note what keeps a write from being done, and may pass.

        A Redis that is full answers: what is read comes from there, and not from copies.

        Returns:
            Whether it concerns all writes: Redis is away, or went back.
        """
        self._is_redis_full = isinstance(obstacle, StoreFull)
        if isinstance(obstacle, StoreWentBack):
            self.confirmed.doubt(session_id)
        elif isinstance(obstacle, StoreUnavailable) and not self._is_redis_full:
            self._around.redis.note_failure()
        else:
            return False
        return True

"""What Redis confirmed, and whether it still has it.

Between two looks that find Redis unchanged nothing got lost: so of each session the highest
position from before a look stands for all before it. What was confirmed since may be of either
side of a rollback, and is looked for one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import structlog
from msgspec import Struct

from sessiond.errors import JournalUnavailable
from sessiond.journal import Entry, Journal
from sessiond.service.durable.reviving import Revive, leave_alone
from sessiond.sync.position import Position

Answer = TypeVar("Answer")

_CHECKED_AT_ONCE = 16
_REVIVALS = 3
_REMEMBERED_SESSIONS = 10_000
"""With so many, those are forgotten that the journal has dropped."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Lookup(Struct, frozen=True):
    """How Redis is asked.

    Args:
        are_there: tells which of these positions a session's log has.
        forgive: has a session written to again that Redis does not have as it was.
    """

    are_there: Callable[[str, list[Position]], Awaitable[list[bool]]]
    forgive: Callable[[str], Awaitable[None]]


class Confirmed:
    """Follows what is confirmed, and finds what of it is lost.

    While that is in doubt, at the start and where Redis turned out to have gone back, nothing else
    is to be written: what was lost comes first.

    Args:
        journal: has all that was confirmed of late.
        lookup: how Redis is asked.
        write_again: takes entries of a session that are lost, in their order; returns how many are
            not under way already.
    """

    def __init__(
        self,
        journal: Journal,
        lookup: Lookup,
        write_again: Callable[[str, list[Entry]], int],
    ) -> None:
        self._journal = journal
        self._lookup = lookup
        self._write_again = write_again
        self._known: dict[str, Position] = {}
        self._too_many = _REMEMBERED_SESSIONS
        self._since: list[tuple[str, Position]] = []
        self._last: dict[str, Position] = {}
        self._looked_at: list[tuple[str, Position]] = []
        self._doubted: set[str] = set()
        self._examined: set[str] = set()
        self._is_trusted = asyncio.Event()
        self._in_doubt: Callable[[], None] = lambda: None
        self.revive: Revive = leave_alone
        """Puts back what this machine has copied of a session."""
        self.lives = 0
        """How often Redis turned out to be another one, or an older one: an answer to what was
        asked in one life of it says nothing about the next."""

    async def start(self) -> None:
        """Take up what an earlier life of this process knew."""
        self._known = await self._journal.newest_confirmed()

    @property
    def is_in_doubt(self) -> bool:
        """Whether Redis may lack something that it confirmed."""
        return not self._is_trusted.is_set()

    async def wait_until_sure(self) -> None:
        """Return when that is not in doubt."""
        await self._is_trusted.wait()

    def call_in_doubt(self, callback: Callable[[], None]) -> None:
        """Have something called when a look is wanted at once."""
        self._in_doubt = callback

    def note(self, session_id: str, position: Position) -> None:
        """Note what Redis confirmed."""
        self._since.append((session_id, position))
        self._last[session_id] = position

    def doubt(self, session_id: str) -> None:
        """Note that Redis does not have a session as it was."""
        self._doubted.add(session_id)
        self._is_trusted.clear()
        self._in_doubt()

    def known(self, session_id: str) -> Position | None:
        """Return what Redis confirmed last of a session, as far as it is not known to be lost."""
        return self._last.get(session_id) or self._known.get(session_id)

    async def is_missing(self, session_id: str) -> bool:
        """Tell whether Redis does not have of a session what it had."""
        recent = [*self._looked_at, *self._since]
        positions = [position for name, position in recent if name == session_id]
        if known := self._known.get(session_id):
            positions.append(known)
        if not positions:
            return False
        return not all(await self._lookup.are_there(session_id, positions))

    def begin_look(self) -> None:
        """To be called before Redis is asked whether it is still the one that it was."""
        self._looked_at += self._since
        self._since = []
        self._examined = set(self._doubted)

    async def has_newest(self) -> bool:
        """Tell whether Redis has the newest of what it confirmed lately, of each session.

        What it confirmed before that it has as well: the newest was written behind it.
        """
        newest: dict[str, Position] = {}
        for session_id, position in self._looked_at:
            if session_id not in newest or position.offset > newest[session_id].offset:
                newest[session_id] = position
        there = await _gathered(
            self._lookup.are_there(session_id, [position])
            for session_id, position in newest.items()
        )
        return all(is_there for (is_there,) in there)

    def end_look(self) -> None:
        """To be called when it is."""
        for session_id, position in self._looked_at:
            known = self._known.get(session_id)
            if known is None or position.offset > known.offset:
                self._known[session_id] = position
            if self._last.get(session_id) == position:
                del self._last[session_id]
        self._looked_at = []
        self._doubted -= self._examined
        if self._doubted:  # it went back once more meanwhile
            self._in_doubt()
        else:
            self._is_trusted.set()

    async def forget_dropped(self) -> None:
        """Forget sessions of which the journal has nothing: nothing could be written again.

        Only now and then, when there are twice as many as the last time.
        """
        if len(self._known) < self._too_many:
            return
        kept = await self._journal.sessions()
        self._known = {name: known for name, known in self._known.items() if name in kept}
        self._too_many = max(_REMEMBERED_SESSIONS, 2 * len(self._known))

    async def recheck(self) -> int:
        """Look for what Redis confirmed, and see to it that it has that again.

        What this machine has copied is put back as it was; what is lost then still is written again
        from the journal. Until that is known nothing else is to be written: it would come before
        what was lost. To be called instead of `end_look` when Redis may be another one, or an
        older one.

        Returns:
            How many writes are done again.

        Raises:
            StoreUnavailable, JournalUnavailable: it is to be called again.
        """
        self.lives += 1
        self._is_trusted.clear()
        return await self._check({name: [known] for name, known in self._known.items()})

    async def recheck_recent(self) -> int:
        """The same, but only for what was confirmed since the look before.

        To be called instead of `end_look` for a while after Redis had become another one: an
        answer of the former one may have been on its way for long.
        """
        return await self._check({})

    async def _check(self, positions: dict[str, list[Position]]) -> int:
        for session_id, position in self._looked_at:
            positions.setdefault(session_id, []).append(position)

        async def check(session_id: str, confirmed: list[Position]) -> int:
            for _ in range(_REVIVALS):  # it may go back once more meanwhile
                if all(await self._lookup.are_there(session_id, confirmed)):
                    return 0
                if not await self.revive(session_id):
                    break
            return await self._find_lost(session_id)

        lost = sum(await _gathered(check(*each) for each in positions.items()))
        for session_id in sorted(self._examined):
            await self._lookup.forgive(session_id)
        self.end_look()
        if lost:
            _log.warning("outbox.redis_lost_writes", count=lost)
        return lost

    async def _find_lost(self, session_id: str) -> int:
        """Look for every entry of a session; what is lost is written again."""
        lost: list[Entry] = []
        kept: list[tuple[str, Position]] = []
        async for page in self._journal.of_session(session_id):
            entries = [(entry, entry.position) for entry in page if entry.position]
            there = await self._lookup.are_there(session_id, [at for _, at in entries])
            for (entry, position), is_there in zip(entries, there, strict=True):
                if is_there:
                    kept.append((session_id, position))
                else:
                    lost.append(entry)
        self._known.pop(session_id, None)
        self._last.pop(session_id, None)
        others = [each for each in self._looked_at if each[0] != session_id]
        self._looked_at = others + kept  # should Redis go back again meanwhile, that is missed
        self._examined.add(session_id)
        with suppress(JournalUnavailable):  # then only this life knows
            await self._journal.take_back([entry.span for entry in lost])
        return self._write_again(session_id, lost)


async def _gathered(lookups: Iterable[Awaitable[Answer]]) -> list[Answer]:
    """Return what came of lookups, some at a time; raises the first error once all are done."""
    limit = asyncio.Semaphore(_CHECKED_AT_ONCE)

    async def limited(lookup: Awaitable[Answer]) -> Answer:
        async with limit:
            return await lookup

    outcomes = await asyncio.gather(*map(limited, lookups), return_exceptions=True)
    answers = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        answers.append(outcome)
    return answers

"""Compressing what is old: the beginning of long logs goes into blocks, and the stream stays short.

Any daemon may do it, several at once too: each block is checked and put by one script. A daemon
looks after the sessions that it writes to. Only what was there a while ago is compressed: a call
that may still be repeated finds its entries in the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from msgspec import Struct

from sessiond.errors import NotFound, SessionDeleted, SessiondError, StoreDamaged
from sessiond.policy.compression import RULES, BlockRules, block_length
from sessiond.store.blocks import BlockStore, pack
from sessiond.store.draft import Draft
from sessiond.store.outcome import Committed
from sessiond.store.sessions import SessionStore

_BODY = 11

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class _Seen(Struct, frozen=True):
    """Where a log ended at a time, in seconds of the monotonic clock."""

    offset: int
    at: float


class Compression:
    """Compresses the sessions that this process writes to.

    Args:
        store: the logs.
        blocks: where old entries go.
        settled_seconds: how long an entry must have been there.
        now: a monotonic clock, in seconds.
        rules: how much stays, and how large a block is.
    """

    def __init__(
        self,
        store: SessionStore,
        blocks: BlockStore,
        *,
        settled_seconds: float,
        now: Callable[[], float],
        rules: BlockRules = RULES,
    ) -> None:
        self._store = store
        self._blocks = blocks
        self._settled_seconds = settled_seconds
        self._now = now
        self._rules = rules
        self._grown: dict[str, _Seen | None] = {}

    def note(self, session_id: str, _group: list[Draft], committed: Committed) -> None:
        """Take note of a write: a log that is long enough is looked at from now on."""
        if committed.positions[-1].offset >= self._rules.kept + self._rules.entries:
            self._grown.setdefault(session_id, None)

    async def run(self) -> None:
        """Compress for ever what has settled."""
        while True:
            await asyncio.sleep(self._settled_seconds)
            await self.look()

    async def look(self) -> None:
        """Compress what has settled since it was first seen; what is damaged is passed over."""
        for session_id, seen in list(self._grown.items()):
            try:
                await self._look_at(session_id, seen)
            except (NotFound, SessionDeleted, StoreDamaged) as error:
                self._grown.pop(session_id, None)
                _log.info("compression.skipped", session_id=session_id, reason=error.detail)
            except SessiondError as error:  # Redis is away, or full: the next time
                _log.info("compression.failed", session_id=session_id, reason=error.detail)
                return

    async def _look_at(self, session_id: str, seen: _Seen | None) -> None:
        now = self._now()
        if seen and now - seen.at < self._settled_seconds:
            return
        end = (await self._store.end(session_id)).position.offset
        if seen:
            await self.compress(session_id, seen.offset)
        if seen and seen.offset == end:
            self._grown.pop(session_id, None)  # until somebody writes again
        else:
            self._grown[session_id] = _Seen(end, now)

    async def compress(self, session_id: str, end: int) -> int:
        """Put the old entries of a log into blocks; return how many blocks that made.

        Args:
            session_id: which.
            end: the offset up to which the log has settled.

        Raises:
            StoreUnavailable, StoreDamaged: Redis does not answer, or has something foreign.
        """
        made = 0
        while True:
            oldest = await self._blocks.oldest(session_id, self._rules.entries)
            if not oldest:
                return made
            sizes = [len(fields[_BODY]) for _, fields in oldest]
            length = block_length(sizes, int(oldest[0][0][:-2]), end, self._rules)
            if not length or not await self._blocks.put(session_id, pack(oldest[:length])):
                return made
            made += 1

"""Noticing that Redis went back: it is another server than it was, or an older state of it.

A server that was restarted, promoted or replaced has another run or replication id. One that was
flushed or restored under the same ids has lost what this process noted there a moment ago: the
sequence of the journal's last write; or, where it went back by less than that, the newest writes.
Either way what was confirmed is looked for once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from sessiond.errors import SessiondError, StoreFull, StoreUnavailable
from sessiond.journal import Journal
from sessiond.service.durable.confirmed import Confirmed
from sessiond.service.offline.reachability import Reachability
from sessiond.store.watermarks import Watermark, WatermarkStore

_PERIOD_SECONDS = 1.0
_LATE_ANSWER_SECONDS = 15.0
"""Longer than anybody waits for an answer of Redis: `redis.timeout_seconds` and the retries."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class RollbackWatch:
    """Looks at Redis every second, and whenever it was away.

    Args:
        journal: whose writes are in Redis.
        watermarks: where Redis keeps how far it is written.
        confirmed: looks for what Redis should have.
        redis: is told whether it answered.
        now: a monotonic clock, in seconds; None for the event loop's.
    """

    def __init__(
        self,
        journal: Journal,
        watermarks: WatermarkStore,
        confirmed: Confirmed,
        redis: Reachability,
        *,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._journal = journal
        self._watermarks = watermarks
        self._confirmed = confirmed
        self._redis = redis
        self._now = now or asyncio.get_running_loop().time
        self._late_until = self._now()
        self._noted: Watermark | None = None
        self._life = ""
        self._wanted = asyncio.Event()
        self._rechecks: list[Callable[[], None]] = []

    def call_in_doubt(self, recheck: Callable[[], None]) -> None:
        """Call something whenever Redis may have lost what it had; it must not take long."""
        self._rechecks.append(recheck)

    def look_now(self) -> None:
        """Have `run` look at once: Redis may have changed."""
        self._wanted.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
                self._redis.note_answer()
            except StoreFull:
                self._redis.note_answer()
                self._life = ""
            except StoreUnavailable:
                self._redis.note_failure()
                self._life = ""
            except SessiondError:  # the disk is away, or Redis refuses: the next time
                self._life = ""
            except Exception:  # noqa: BLE001 - whatever it is, the watch goes on, and says so
                self._life = ""
                _log.exception("rollbacks.look_failed")
            try:
                async with asyncio.timeout(_PERIOD_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                continue
            self._wanted.clear()

    async def look(self) -> None:
        """Compare Redis with what it was, and note how far the journal is."""
        status = await self._journal.status()
        (journal, *_) = await self._journal.incarnations()
        now = Watermark(status.incarnation, status.last_sequence)
        self._confirmed.begin_look()
        life, before = await self._watermarks.exchange(journal, now)
        noted, self._noted = self._noted, now
        if not self._life and before:
            await self._journal.seen(before.incarnation, before.sequence)
        is_same = life == self._life and before == noted and not self._confirmed.is_in_doubt
        if not (is_same and await self._confirmed.has_newest()):
            self._life = ""  # until it is known what became of what was there
            if noted:  # at the first look, nothing was asked yet
                self._late_until = self._now() + _LATE_ANSWER_SECONDS
            await self._confirmed.recheck()
            for recheck in self._rechecks:
                recheck()
            self._life = life
        elif self._now() < self._late_until:  # answers of the former one may still come in
            await self._confirmed.recheck_recent()
        else:
            self._confirmed.end_look()
            await self._confirmed.forget_dropped()

"""Reading a session's log: pages after a position, with the position proven first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

from msgspec import Struct
from redis.asyncio import Redis

from sessiond.errors import StoreDamaged
from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.sync.entry import Entry
from sessiond.sync.position import START, Position

Reset = Literal["history-changed", "trimmed", "missing"]
"""Why a position is no longer part of the log: Redis has another history, the beginning was
archived, or there is no such log at all."""

_FIELDS = [b"op", b"at", b"origin", b"id", b"epoch", b"json"]
_FIRST_PAGE = 64
_PAGE_BYTES = 4 * 1024 * 1024
PAGE = 500


class LogPage(Struct, frozen=True):
    """Entries after a position. With `reset`, the position was refused and entries are empty."""

    entries: list[Entry]
    position: Position
    reset: Reset | None = None


def parse_entry(raw: Any) -> Entry:
    """Read one stream entry.

    Raises:
        StoreDamaged: the entry is not one that the commit script writes.
    """
    stream_id, fields = raw
    if fields is None or fields[::2] != _FIELDS or not stream_id.endswith(b"-0"):
        raise StoreDamaged(
            f"log entry {stream_id!r} has fields {fields[::2] if fields else None}",
            hint="something other than sessiond wrote into this stream",
        )
    _, op, _, at, _, origin, _, record_id, _, epoch, _, json = fields
    return Entry(
        int(stream_id[:-2]),
        op.decode(),
        at.decode(),
        origin.decode(),
        record_id.decode(),
        epoch.decode(),
        json,
    )


class LogReader:
    """Reads logs by offset. Never waits: what wakes a reader is the bus."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def page(self, session_id: str, after: Position, limit: int = PAGE) -> LogPage:
        """Return up to `limit` entries after a position, if the log still contains it.

        The entry at the position is read again with those after it, in one command: the page
        and the proof that it continues what the reader has are of the same moment.

        Raises:
            StoreUnavailable, StoreDamaged: Redis does not answer, or has something foreign.
        """
        known = 1 if after.offset else 0
        first = f"{after.offset}-0" if known else "-"
        raw = await answered(
            self._redis.execute_command(
                "XRANGE", self._keys.conversation(session_id), first, "+", "COUNT", limit + known
            )
        )
        entries = [parse_entry(item) for item in raw]
        if entries and entries[0].op == "session.delete" and entries[0].offset > after.offset:
            return LogPage(entries, entries[-1].position)
        reset = _refusal(after, entries)
        if reset:
            return LogPage([], START, reset)
        return LogPage(entries[known:], entries[-1].position if entries else after)

    async def pages(
        self, session_id: str, after: Position = START, until: int | None = None
    ) -> AsyncIterator[LogPage]:
        """Yield page after page, to the end of the log or to offset `until`.

        The last page may be a refusal: the log changed under the reader. Pages are kept near
        4 MiB, whatever the size of the messages.
        """
        count = _FIRST_PAGE
        while until is None or after.offset < until:
            limit = count if until is None else min(count, until - after.offset)
            page = await self.page(session_id, after, limit)
            if page.entries or page.reset:
                yield page
            if page.reset or len(page.entries) < limit:
                return
            after = page.position
            size = sum(len(entry.json) for entry in page.entries)
            count = max(1, min(PAGE, 4 * count, _PAGE_BYTES * count // max(size, 1)))

    async def entries_at(self, session_id: str, offsets: list[int]) -> list[Entry | None]:
        """Return the entries at these offsets; None where the log has none."""
        if not offsets:
            return []
        key = self._keys.conversation(session_id)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for offset in offsets:
                pipeline.execute_command("XRANGE", key, f"{offset}-0", f"{offset}-0")
            replies = await answered(pipeline.execute())
        return [parse_entry(reply[0]) if reply else None for reply in replies]


def _refusal(after: Position, entries: list[Entry]) -> Reset | None:
    """Say why `after` is not a position of the log whose entries from there on these are."""
    if after.offset == 0:
        return "trimmed" if entries and entries[0].offset != 1 else None
    if not entries:
        return "missing"
    if entries[0].offset != after.offset:
        return "trimmed"
    if after.epoch not in ("", entries[0].epoch):
        return "history-changed"
    return None

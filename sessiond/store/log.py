"""Reading a session's log: pages after a position, with the position proven first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any, Literal

from redis.asyncio import Redis

from sessiond.errors import StoreDamaged
from sessiond.store.connection import answered
from sessiond.store.keys import Keys
from sessiond.sync.chain import broken_link, has_shape
from sessiond.sync.entry import Entry
from sessiond.sync.paging import PAGE_BYTES, fitting
from sessiond.sync.position import START, Position

Reset = Literal["history-changed", "trimmed", "missing"]
"""Why a position is not part of the log: Redis has another history there, the log's beginning was
archived, or the log ends before it (it was rolled back, or flushed)."""

_OP, _JSON = 1, 11
_FIRST_PAGE = 4
_PAGE_BYTES = 4 * 1024 * 1024
PAGE = 500


class LogPage:
    """Entries after a position. With `reset`, the position was refused and there are none.

    `more`: whether others follow; of a `stretch` only.

    Entries stay as Redis sent them until somebody asks: loading a conversation needs only the
    bodies of most.
    """

    def __init__(
        self,
        raw: list[Any],
        position: Position,
        reset: Reset | None = None,
        *,
        more: bool = False,
    ) -> None:
        self.raw = raw
        self.position = position
        self.reset = reset
        self.more = more

    @cached_property
    def entries(self) -> list[Entry]:
        """The entries, parsed."""
        return [parse_entry(item) for item in self.raw]

    @property
    def size(self) -> int:
        """How many bytes of JSON the page holds."""
        return sum(map(_size, self.raw))

    def appended(self) -> list[tuple[int, bytes]]:
        """Return offset and JSON of the messages that these entries append."""
        return [
            (int(stream_id[:-2]), fields[_JSON])
            for stream_id, fields in self.raw
            if fields[_OP] == b"message.append"
        ]


def parse_entry(raw: Any) -> Entry:
    """Read one stream entry that was checked.

    Raises:
        StoreDamaged: it holds bytes that are no text.
    """
    stream_id, fields = raw
    _, op, _, at, _, origin, _, record_id, _, epoch, _, json = fields
    try:
        return Entry(
            int(stream_id[:-2]),
            op.decode(),
            at.decode(),
            origin.decode(),
            record_id.decode(),
            epoch.decode(),
            json,
        )
    except UnicodeDecodeError as error:
        raise _foreign(stream_id) from error


def _checked(raw: list[Any]) -> list[Any]:
    """Return stream entries as Redis sent them, each `[id, [name, value, …]]`.

    Raises:
        StoreDamaged: an entry is not one that the commit script writes, entries are missing, or
            one does not follow from those before it.
    """
    for item in raw:
        if not has_shape(item):
            raise _foreign(item[0])
    if raw and int(raw[-1][0][:-2]) - int(raw[0][0][:-2]) != len(raw) - 1:
        raise StoreDamaged(
            f"entries are missing from the log between {raw[0][0]!r} and {raw[-1][0]!r}",
        )
    broken = broken_link(raw)
    if broken:
        raise StoreDamaged(
            f"log entry {broken!r}, or the one before it, is not what was written there",
        )
    return raw


def _foreign(stream_id: bytes) -> StoreDamaged:
    return StoreDamaged(
        f"log entry {stream_id!r} is not one of sessiond's",
    )


def log_is_damaged(session_id: str, end: Position) -> StoreDamaged:
    """Return the error of a session whose log does not hold what its metadata says."""
    return StoreDamaged(
        f"the log of session {session_id!r} does not hold the {end.offset} operations that its "
        f"metadata counts",
        hint="something other than sessiond removed them; `sessiond doctor` looks at the server",
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
        return _page(after, await self._fetch(session_id, after, limit))

    async def stretch(self, session_id: str, after: Position, limit: int = PAGE) -> LogPage:
        """Return up to `limit` entries after a position, fewer where they are long.

        There are `PAGE_BYTES` of JSON in it at most, or one entry; `more` says that others follow.

        Raises:
            StoreUnavailable, StoreDamaged: Redis does not answer, or has something foreign.
        """
        count = min(_FIRST_PAGE, limit + 1)
        page = await self.page(session_id, after, count)
        if page.reset:
            return page
        raw, size, end = page.raw, page.size, page.position
        while len(page.raw) == count and len(raw) <= limit:
            if size > PAGE_BYTES and len(raw) > 1:
                break
            count = min(_next_count(page), limit + 1 - len(raw))
            page = await self.page(session_id, page.position, count)
            raw, size = raw + page.raw, size + page.size  # a refusal is for the next call to tell
        found = raw[: min(limit, fitting(map(_size, raw)))]
        end = parse_entry(found[-1]).position if found else end
        return LogPage(found, end, more=len(raw) > len(found))

    async def pages(
        self,
        session_id: str,
        after: Position = START,
        until: int | None = None,
        *,
        oldest: bool = False,
    ) -> AsyncIterator[LogPage]:
        """Yield page after page, to the end of the log or to offset `until`.

        The last page may be a refusal: the log changed under the reader. Pages are kept near
        4 MiB, whatever the size of the messages. While the caller works on one page, Redis
        works on the next. With `oldest`, a log whose beginning is gone is read from what is left.
        """
        limit = _limit(_FIRST_PAGE, after, until)
        if not limit:
            return
        fetching = asyncio.ensure_future(self._fetch(session_id, after, limit))
        try:
            while limit:
                page = _page(after, await fetching, oldest=oldest)
                ended = bool(page.reset) or len(page.raw) < limit
                after = page.position
                limit = 0 if ended else _limit(_next_count(page), after, until)
                if limit:
                    fetching = asyncio.ensure_future(self._fetch(session_id, after, limit))
                    await asyncio.sleep(0)  # so that it is under way
                if page.raw or page.reset:
                    yield page
        finally:
            fetching.cancel()

    async def _fetch(self, session_id: str, after: Position, limit: int) -> list[Any]:
        known = 1 if after.offset else 0
        first = f"{after.offset}-0" if known else "-"
        key = self._keys.conversation(session_id)
        return _checked(
            await answered(
                self._redis.execute_command("XRANGE", key, first, "+", "COUNT", limit + known)
            )
        )

    async def back_from(self, session_id: str, offset: int) -> AsyncIterator[list[Entry]]:
        """Yield entries from an offset backwards, the newest first, page after page."""
        key = self._keys.conversation(session_id)
        count = _FIRST_PAGE
        while offset > 0:
            raw = await answered(
                self._redis.execute_command("XREVRANGE", key, f"{offset}-0", "-", "COUNT", count)
            )
            if not raw:
                return
            entries = [parse_entry(item) for item in _checked(raw[::-1])]
            yield entries[::-1]
            offset = entries[0].offset - 1
            count = min(PAGE, 4 * count)

    async def entries_at(self, session_id: str, offsets: list[int]) -> list[Entry | None]:
        """Return the entries at these offsets; None where the log has none."""
        if not offsets:
            return []
        key = self._keys.conversation(session_id)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for offset in offsets:
                pipeline.execute_command("XRANGE", key, f"{max(offset - 1, 0)}-0", f"{offset}-0")
            replies = await answered(pipeline.execute())
        return [_entry_at(offset, reply) for offset, reply in zip(offsets, replies, strict=True)]


def _entry_at(offset: int, raw: list[Any]) -> Entry | None:
    """Return the entry at an offset, proven by the one before it, where that is there."""
    if not raw or raw[-1][0] != b"%d-0" % offset:
        return None
    return parse_entry(_checked(raw)[-1])


def _size(item: Any) -> int:
    return len(item[1][_JSON])


def _limit(count: int, after: Position, until: int | None) -> int:
    return count if until is None else max(0, min(count, until - after.offset))


def _next_count(page: LogPage) -> int:
    """Return how many entries to ask for after a full page."""
    count = len(page.raw)
    return max(1, min(PAGE, 4 * count, _PAGE_BYTES * count // max(page.size, 1)))


def _page(after: Position, entries: list[Any], *, oldest: bool = False) -> LogPage:
    """Return what was fetched from a position on, if the log still contains that position."""
    head = parse_entry(entries[0]) if entries else None
    end = parse_entry(entries[-1]).position if entries else after
    if head and head.op == "session.delete" and head.offset > after.offset:
        return LogPage(entries, end)
    reset = None if oldest and after == START else _refusal(after, head)
    known = 1 if after.offset else 0
    return LogPage([], START, reset) if reset else LogPage(entries[known:], end)


def _refusal(after: Position, first: Entry | None) -> Reset | None:
    """Say why `after` is not a position of a log that begins with `first` from there on."""
    if after.offset == 0:
        return "trimmed" if first and first.offset != 1 else None
    if first is None:
        return "missing"
    if first.offset != after.offset:
        return "trimmed"
    if after.epoch not in ("", first.epoch):
        return "history-changed"
    return None

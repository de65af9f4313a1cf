"""Reading a session's log: pages after a position, with the position proven first.

The beginning of a log may be compressed in blocks. This is the one place that puts both together:
who reads does not notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cached_property, partial
from typing import Any, Literal

from redis.asyncio import Redis

from sessiond.errors import ArchiveUnavailable, StoreDamaged
from sessiond.store.blocks import parse_block, unpack
from sessiond.store.connection import answered
from sessiond.store.entries import checked, checked_behind, offset_of, parse_entry
from sessiond.store.keys import Keys
from sessiond.store.recall import Recall
from sessiond.store.scripts import LOG_PAGE
from sessiond.sync.entry import Entry
from sessiond.sync.paging import PAGE_BYTES, fitting
from sessiond.sync.position import START, Position

Reset = Literal["history-changed", "trimmed", "missing"]
"""Why a position is not part of the log: Redis has another history there, the log's beginning was
lost, or the log ends before it (it was rolled back, or flushed)."""

_OP, _EPOCH, _JSON = 1, 9, 11
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

    def has(self, position: Position) -> bool:
        """Tell whether the entry of a position is on this page."""
        if not self.raw:
            return False
        place = position.offset - int(self.raw[0][0][:-2])
        is_here = 0 <= place < len(self.raw)
        return is_here and bool(self.raw[place][1][_EPOCH] == position.epoch.encode())

    def appended(self) -> list[tuple[int, bytes]]:
        """Return offset and JSON of the messages that these entries append."""
        return [
            (int(stream_id[:-2]), fields[_JSON])
            for stream_id, fields in self.raw
            if fields[_OP] == b"message.append"
        ]


def log_is_damaged(session_id: str, end: Position) -> StoreDamaged:
    """Return the error of a session whose log does not hold what its metadata says."""
    return StoreDamaged(
        f"the log of session {session_id!r} does not hold the {end.offset} operations that its "
        f"metadata counts",
    )


class LogReader:
    """Reads logs by offset. Never waits: what wakes a reader is the bus."""

    def __init__(self, redis: Redis, keys: Keys, recall: Recall) -> None:
        self._redis = redis
        self._keys = keys
        self._recall = recall

    async def page(self, session_id: str, after: Position, limit: int = PAGE) -> LogPage:
        """Return up to `limit` entries after a position, if the log still contains it.

        The entry at the position is read again with those after it, in one command: the page
        and the proof that it continues what the reader has are of the same moment.

        Raises:
            StoreUnavailable, StoreDamaged: Redis does not answer, or has something foreign.
        """
        return await self._read(session_id, after, limit)

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
        recall: bool = True,
    ) -> AsyncIterator[LogPage]:
        """Yield page after page, to the end of the log or to offset `until`.

        The last page may be a refusal: the log changed under the reader. Pages are kept near
        4 MiB, whatever the size of the messages. While the caller works on one page, Redis
        works on the next. With `oldest`, a log whose beginning is gone is read from what is left.
        Without `recall`, an archived session stays where it is.

        Raises:
            ArchiveUnavailable: it is archived, and is not to be brought back or cannot be.
            StoreUnavailable, StoreDamaged.
        """
        limit = _limit(_FIRST_PAGE, after, until)
        if not limit:
            return
        read = partial(self._read, session_id, oldest=oldest, recall=recall)
        fetching = asyncio.ensure_future(read(after=after, limit=limit))
        try:
            while limit:
                page = await fetching
                ended = bool(page.reset) or len(page.raw) < limit
                after = page.position
                limit = 0 if ended else _limit(_next_count(page), after, until)
                if limit:
                    fetching = asyncio.ensure_future(read(after=after, limit=limit))
                    await asyncio.sleep(0)  # so that it is under way
                if page.raw or page.reset:
                    yield page
        finally:
            fetching.cancel()

    async def _read(
        self,
        session_id: str,
        after: Position,
        limit: int,
        *,
        oldest: bool = False,
        recall: bool = True,
    ) -> LogPage:
        """Return a page; where nothing is there, an archived session comes back first."""
        raw = await self._fetch(session_id, after, limit)
        while not raw and (archived := await self._recall.position(session_id)):
            if after == archived:  # who has all of it does not need it
                return LogPage([], after)
            if not recall:
                raise ArchiveUnavailable(f"session {session_id!r} is archived, and stays so")
            await self._recall(session_id)
            raw = await self._fetch(session_id, after, limit)
        return _page(after, raw, oldest=oldest)

    async def _fetch(self, session_id: str, after: Position, limit: int) -> list[Any]:
        known = 1 if after.offset else 0
        first = f"{after.offset}-0" if known else "-"
        key = self._keys.conversation(session_id)
        raw = await answered(
            self._redis.execute_command("XRANGE", key, first, "+", "COUNT", limit + known)
        )
        wanted = after.offset or 1
        if raw and offset_of(raw[0]) > wanted:
            return await self._stitched(session_id, wanted, limit + known)
        return checked(raw)

    async def _stitched(self, session_id: str, offset: int, count: int) -> list[Any]:
        """Return entries from an offset on, out of blocks and then out of the stream.

        What a block holds is proven by its checksum; that it follows the one before, by the chain.
        """
        keys = [self._keys.conversation(session_id), self._keys.blocks(session_id)]
        blocks, live = await answered(
            LOG_PAGE.run(self._redis.execute_command, keys, [offset, count])
        )
        compressed: list[Any] = []
        for raw in blocks:
            first, *others = unpack(parse_block(raw))
            compressed += [*checked_behind(compressed, [first]), *others]
        wanted = [entry for entry in compressed if offset_of(entry) >= offset]
        return [*wanted[:count], *checked_behind(compressed, live)]

    async def _block_of(self, session_id: str, offset: int) -> list[Any]:
        """Return the entries of the block that an offset lies in; none where there is no such."""
        key = self._keys.blocks(session_id)
        found = await answered(
            self._redis.execute_command("XRANGE", key, f"{offset}-0", "+", "COUNT", 1)
        )
        entries = unpack(parse_block(found[0])) if found else []
        return entries if entries and offset_of(entries[0]) <= offset else []

    async def back_from(self, session_id: str, offset: int) -> AsyncIterator[list[Entry]]:
        """Yield entries from an offset backwards, the newest first, page after page."""
        count = _FIRST_PAGE
        while offset > 0:
            raw = await self._back(session_id, offset, count)
            entries = [parse_entry(item) for item in raw if offset_of(item) <= offset]
            if not entries and await self._recall(session_id):
                continue
            if not entries:
                return
            yield entries[::-1]
            offset = entries[0].offset - 1
            count = min(PAGE, 4 * count)

    async def _back(self, session_id: str, offset: int, count: int) -> list[Any]:
        """Return entries up to an offset, each proven by the one before it, where there is one."""
        key = self._keys.conversation(session_id)
        newest_first = await answered(
            self._redis.execute_command("XREVRANGE", key, f"{offset}-0", "-", "COUNT", count + 1)
        )
        raw = checked(newest_first[::-1])
        if len(raw) > 1:
            return raw if offset_of(raw[0]) == 1 else raw[1:]
        block = await self._block_of(session_id, offset_of(raw[0]) - 1 if raw else offset)
        return [*block, *checked_behind(block, raw)]

    async def entries_at(self, session_id: str, offsets: list[int]) -> list[Entry | None]:
        """Return the entries at these offsets; None where the log has none."""
        found = await self.present_at(session_id, offsets)
        if None in found and await self._recall(session_id):
            found = await self.present_at(session_id, offsets)
        return found

    async def present_at(self, session_id: str, offsets: list[int]) -> list[Entry | None]:
        """Return the entries at these offsets that Redis has now: none of an archived session."""
        if not offsets:
            return []
        key = self._keys.conversation(session_id)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for offset in offsets:
                pipeline.execute_command("XRANGE", key, f"{max(offset - 1, 0)}-0", f"{offset}-0")
            replies = await answered(pipeline.execute())
        found: dict[int, Entry] = {}
        for offset, reply in zip(offsets, replies, strict=True):
            if not reply or offset_of(reply[-1]) != offset:
                continue
            is_first = len(reply) == 1 and offset > 1  # of the stream: the one before is compressed
            before = await self._block_of(session_id, offset - 1) if is_first else []
            found[offset] = parse_entry(checked_behind(before, reply)[-1])
        found |= await self._compressed_at(session_id, set(offsets) - found.keys())
        return [found.get(offset) for offset in offsets]

    async def _compressed_at(self, session_id: str, offsets: set[int]) -> dict[int, Entry]:
        """Return those of these entries that lie in blocks, by offset; a block is read once."""
        found: dict[int, Entry] = {}
        for offset in sorted(offsets):
            if offset in found or offset < 1:
                continue
            block = await self._block_of(session_id, offset)
            if not block:  # nor has any other the later ones
                break
            found |= {at: parse_entry(item) for item in block if (at := offset_of(item)) in offsets}
        return found


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

"""Answers loaded into memory before they are asked for: those that were asked for together.

What is here is given only for the digest that it was cached with, like everything in the cache: it
may be lost at any time, and cannot be wrong. It saves the way to Redis, and the reading of files
whose digest is not known yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from sessiond.errors import SessiondError
from sessiond.policy.caching import subjects_of_change
from sessiond.policy.prediction import CoReads
from sessiond.service.cached.fingerprints import Watcher
from sessiond.store.cache import CacheStore, Entry

_LIFE_SECONDS = 60.0
_LIMIT_BYTES = 32 * 1024 * 1024
_MOST_SESSIONS = 64
AHEAD = 8
_LEARNED = 512

ActiveFiles = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the files that a session's context names, relative to the project's folder."""


class NearAnswers:
    """Answers in this process's memory, each for a minute; the least recently used go first.

    Args:
        limit_bytes: of all of them, as they lie in Redis.
        now: seconds, of whatever beginning.
    """

    def __init__(
        self, limit_bytes: int = _LIMIT_BYTES, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_bytes = limit_bytes
        self._now = now
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, str], tuple[Entry, float]] = OrderedDict()

    def get(self, session_id: str, key: str, digest: str) -> Entry | None:
        """Return an answer that was cached with this digest."""
        found = self._entries.get((session_id, key))
        if found is None or found[0].digest != digest or found[1] <= self._now():
            return None
        self._entries.move_to_end((session_id, key))
        return found[0]

    def keys(self, session_id: str) -> set[str]:
        """Return the keys of a session's answers that are here."""
        now = self._now()
        return {
            key
            for (owner, key), (_, until) in self._entries.items()
            if owner == session_id and until > now
        }

    def put(self, session_id: str, entry: Entry) -> None:
        """Keep an answer for a while, in place of another of its call."""
        self._remove((session_id, entry.key))
        self._entries[session_id, entry.key] = (entry, self._now() + _LIFE_SECONDS)
        self._bytes += entry.bytes
        while self._bytes > self._limit_bytes:
            self._remove(next(iter(self._entries)))

    def drop(self, session_id: str) -> None:
        """Drop all answers of a session."""
        for where in [where for where in self._entries if where[0] == session_id]:
            self._remove(where)

    def _remove(self, where: tuple[str, str]) -> None:
        found = self._entries.pop(where, None)
        if found:
            self._bytes -= found[0].bytes


class Prefetcher:
    """Loads what will be asked for next, in the background. One load per session at a time.

    Args:
        store: the caches in Redis.
        near: where answers are loaded to.
        watcher: learns the state of the files that the loaded answers depend on.
        active_files: what a session's context says is worked on.
        ahead: answers that are loaded after each lookup, at most.
    """

    def __init__(
        self,
        store: CacheStore,
        near: NearAnswers,
        watcher: Watcher,
        *,
        active_files: ActiveFiles,
        ahead: int = AHEAD,
    ) -> None:
        self._store = store
        self._near = near
        self._watcher = watcher
        self._active_files = active_files
        self._ahead = ahead
        self._learned: OrderedDict[str, CoReads] = OrderedDict()
        self._active: dict[str, list[str]] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}

    async def learn(self, session_id: str) -> None:
        """Begin, once, with the order in which others used the session's answers last.

        To be called before something is asked for: that changes the order.

        Raises:
            NotFound, SessionDeleted, StoreUnavailable, StoreDamaged.
        """
        if not self._ahead or session_id in self._learned:
            return
        order = await self._store.order(session_id, _LEARNED)
        subjects = set(subjects_of_change(await self._active_files(session_id)))
        reads = CoReads()
        for key in order:
            reads.note(key)
        reads.begin_again()
        self._active[session_id] = [key for key in order if key.partition(".")[0] in subjects]
        self._learned[session_id] = reads
        while len(self._learned) > _MOST_SESSIONS:
            forgotten, _ = self._learned.popitem(last=False)
            self._active.pop(forgotten, None)

    def note(self, session_id: str, root: str, keys: Sequence[str]) -> None:
        """Take note of what was asked for, and begin to load what may be next."""
        reads = self._learned.get(session_id)
        if reads is None:
            return
        for key in keys:
            reads.note(key)
        if session_id not in self._loading:
            task = asyncio.create_task(self._load(session_id, root, reads))
            self._loading[session_id] = task
            task.add_done_callback(lambda _: self._loading.pop(session_id, None))

    async def settled(self) -> None:
        """Return when nothing is being loaded."""
        await asyncio.gather(*self._loading.values(), return_exceptions=True)

    async def close(self) -> None:
        """Stop loading."""
        for task in list(self._loading.values()):
            task.cancel()
        await self.settled()

    async def _load(self, session_id: str, root: str, reads: CoReads) -> None:
        known, active = self._near.keys(session_id), self._active.get(session_id, ())
        wanted = reads.likely(self._ahead, active=active, known=known)
        if not wanted:
            return
        with contextlib.suppress(SessiondError):  # it is asked for when it is needed
            _, entries = await self._store.look(session_id, *wanted)
            for entry in entries:
                self._near.put(session_id, entry)
            calls = [entry.answer.call for entry in entries]
            calls = [call for call in calls if call.scope == "file"]  # a folder is a lot to read
            await self._watcher.look(root, calls)

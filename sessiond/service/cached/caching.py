"""The cache of what tools answered: shared by a session's instances, right on each machine.

An answer is given only where the files that it depends on are, at this moment and on this machine,
what they were when the tool ran. So it does not matter who changed them, or how. To cache an
answer takes two steps: a lookup before the tool runs, whose stamp says what state the files are
in, and a put after it, which is refused where that state is not the same any more.

A cache may lose things: where Redis does not answer, a lookup finds nothing and a put does nothing.
"""

from __future__ import annotations

import asyncio
import posixpath
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Literal, TypeVar

import msgspec
from msgspec import UNSET

from sessiond.codec import json
from sessiond.errors import InvalidInput, NotFound, StoreUnavailable
from sessiond.model import (
    CacheAnswer,
    CacheAnswers,
    CacheCall,
    CacheContents,
    CachedCall,
    CacheDropped,
    CacheLookup,
    CacheOutcome,
    CacheStored,
    Live,
    NewCacheValue,
)
from sessiond.opencode.mapping import Machine
from sessiond.policy.caching import key_of, relative_path, subjects_of_change
from sessiond.service.cached.fingerprints import Fingerprint, Fingerprints, Unknown, Watcher
from sessiond.service.cached.prefetching import AHEAD, ActiveFiles, NearAnswers, Prefetcher
from sessiond.service.status import CacheUse
from sessiond.store.cache import Answer, CacheStore, Entry, Found
from sessiond.store.sessions import SessionStore

_PATIENCE_SECONDS = 0.5
_REST_SECONDS = 2.0
_FRESH = "a file changed less than 2 s ago: whether it changes again could not be told"
_CHANGED = "the files are not what they were before the tool ran"
_NOT_TAKEN = "it is larger than 1 MiB, or than half of the cache"
_AWAY = "Redis does not answer"
_MISS = Found("miss")
_SHOWN_BYTES = 1024
_AT_ONCE = 8
"""Answers that are decoded without letting others do anything meanwhile."""

Reply = TypeVar("Reply")


class Caches:
    """The caches of the sessions of one Redis.

    Args:
        store: the caches in Redis.
        sessions: the sessions.
        fingerprints: the state of files on this machine.
        machine: this machine's name among the others.
        active_files: what a session's context says is worked on.
        ahead: answers that are loaded before they are asked for, after each lookup; 0 for none.
        now: seconds, of whatever beginning.

    Attributes:
        on_change: each is called with a session's id when this process changed what it has cached.
    """

    def __init__(
        self,
        store: CacheStore,
        sessions: SessionStore,
        fingerprints: Fingerprints,
        *,
        machine: str,
        active_files: ActiveFiles,
        ahead: int = AHEAD,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_change: list[Callable[[str], None]] = []
        self._store = store
        self._sessions = sessions
        self._watcher = watcher = Watcher(fingerprints)
        self._machine = machine
        self._now = now
        self._rests_until = float("-inf")
        self._near = NearAnswers()
        self._prefetcher = Prefetcher(
            store, self._near, watcher, active_files=active_files, ahead=ahead
        )
        self._unreported: Counter[str] = Counter()  # hits that Redis knows nothing of, by session
        self._uses: Counter[CacheOutcome | Literal["near"]] = Counter()

    async def lookup(self, session_id: str, lookup: CacheLookup) -> CacheAnswers:
        """Return what is cached of calls and right now, and the stamps for what is not.

        Raises:
            InvalidInput: a path leads out of the project's folder, or that is not absolute.
            NotFound, SessionDeleted: there is no such session, or no more.
            StoreDamaged: a key of the session is none of ours.
        """
        here = Project(lookup.root)
        keys = [key_of(here.neutral(call)) for call in lookup.calls]
        states = await self._watcher.look(lookup.root, lookup.calls)
        asked = [
            (key, state.digest)
            for key, state in zip(keys, states, strict=True)
            if isinstance(state, Fingerprint)
        ]
        found = await self._found(session_id, asked)
        away = "" if found is not None else _AWAY
        answers = [
            CacheAnswer(key=key, outcome="unknown", reason=str(state))
            if isinstance(state, Unknown)
            else _answer(key, state, (found or {}).get(key, _MISS), here, away)
            for key, state in zip(keys, states, strict=True)
        ]
        self._uses.update(each.outcome for each in answers)
        self._prefetcher.note(session_id, lookup.root, [key for key, _ in asked])
        return CacheAnswers(answers=answers)

    async def _found(
        self, session_id: str, asked: Sequence[tuple[str, str]]
    ) -> dict[str, Found] | None:
        """Return what is cached under keys, from memory where it is there; None without Redis."""
        entries = [self._near.get(session_id, *pair) for pair in asked]
        found = {entry.key: Found("hit", entry) for entry in entries if entry}
        if found:
            self._uses["near"] += len(found)
            self._unreported[session_id] += len(found)
        rest = [pair for pair in asked if pair[0] not in found]
        if not rest:
            return found
        before = self._unreported.pop(session_id, 0)

        async def ask() -> list[Found]:
            await self._prefetcher.learn(session_id)
            return await self._store.get(session_id, rest, hits_before=before)

        replies = await self._in_time(ask)
        if replies is None:
            return found or None
        for (key, _), reply in zip(rest, replies, strict=True):
            if reply.entry:
                self._near.put(session_id, reply.entry)
            found[key] = reply
        return found

    async def put(self, session_id: str, key: str, new: NewCacheValue) -> CacheStored:
        """Cache what a tool answered, if the files are still as before it ran.

        Raises:
            InvalidInput: the key is not the call's, or the path leads out of the project's folder.
            NotFound, SessionDeleted, StoreDamaged.
        """
        here = Project(new.root)
        call = here.neutral(new.call)
        if key != key_of(call):
            raise InvalidInput("the key is not the call's", hint="use it as the lookup answered it")
        reason = ""
        (state,) = await self._watcher.look(new.root, [new.call])
        if isinstance(state, Unknown):
            reason = str(state)
        elif not state.stamp or not new.stamp:
            reason = _FRESH
        elif state.stamp != new.stamp:
            reason = _CHANGED
        else:
            answer = Answer(call, self._machine, here.machine.neutral(new.value))
            put = partial(self._store.put, session_id, key, state.digest, answer)
            stored = await self._in_time(put)
            reason = _AWAY if stored is None else "" if stored else _NOT_TAKEN
        if not reason:
            self._tell(session_id)
        return CacheStored(key=key, stored=not reason, reason=reason)

    async def read(self, session_id: str, key: str, root: str) -> CacheAnswer:
        """Return what is cached under a key, if it is right now.

        Raises:
            NotFound: nothing is cached under it.
            InvalidInput: the project's folder is not absolute.
            SessionDeleted, StoreDamaged.
            StoreUnavailable: Redis does not answer.
        """
        _, entries = await self._store.look(session_id, key)
        if not entries:
            raise NotFound("nothing is cached under this key", hint="look its call up instead")
        call = Project(root).local(entries[0].answer.call)
        (answer,) = (await self.lookup(session_id, CacheLookup(root=root, calls=[call]))).answers
        return answer

    async def drop(self, session_id: str, key: str) -> CacheDropped:
        """Drop the answer under a key.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
            StoreUnavailable: Redis does not answer.
        """
        self._near.drop(session_id)
        dropped = await self._store.drop(session_id, [key])
        self._tell(session_id)
        return CacheDropped(dropped=dropped)

    async def invalidate(self, session_id: str, paths: Sequence[str]) -> CacheDropped:
        """Drop what depends on files that changed, and tell those who listen to the session.

        Args:
            session_id: whose cache.
            paths: the files, relative to the project's folder.

        Raises:
            InvalidInput: a path leads out of the project's folder.
            StoreUnavailable: Redis does not answer.
        """
        self._near.drop(session_id)
        dropped = await self._store.drop(session_id, subjects_of_change(paths))
        if dropped:
            self._tell(session_id)
            changed = sorted({relative_path(path) for path in paths})
            body = {"cache": {"changed": changed, "machine": self._machine}}
            live = Live(session_id=session_id, origin=self._sessions.writer, body=body)
            workspace = await self._sessions.workspace_of(session_id)
            await self._sessions.publish(session_id, workspace, json.encode({"live": live}))
        return CacheDropped(dropped=dropped)

    async def clear(self, session_id: str) -> CacheDropped:
        """Drop all that a session has cached, and its counts.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        self._near.drop(session_id)
        dropped = await self._store.clear(session_id)
        self._tell(session_id)
        return CacheDropped(dropped=dropped)

    def _tell(self, session_id: str) -> None:
        for callback in self.on_change:
            callback(session_id)

    def forget(self, session_id: str) -> None:
        """Drop what is in this process's memory of a session that was deleted."""
        self._near.drop(session_id)
        self._unreported.pop(session_id, None)

    async def settled(self) -> None:
        """Return when nothing is being loaded before it is asked for."""
        await self._prefetcher.settled()

    async def close(self) -> None:
        """Stop loading what may be asked for, and looking at files."""
        await self._prefetcher.close()
        self._watcher.close()

    def use(self) -> CacheUse:
        """Return what became of the lookups here."""
        uses = self._uses
        return CacheUse(
            hits=uses["hit"],
            near=uses["near"],
            misses=uses["miss"],
            stale=uses["stale"],
            unknown=uses["unknown"],
        )

    async def contents(self, session_id: str) -> CacheContents:
        """Return what a session has cached, without the answers themselves.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
            StoreUnavailable, StoreDamaged.
        """
        counts, entries = await self._store.look(session_id)
        counts.hits += self._unreported[session_id]
        return CacheContents(counts=counts, entries=[_summary(entry) for entry in entries])

    async def newest(
        self, session_id: str, most: int, seen: str | None = None
    ) -> tuple[str, list[CachedCall]] | None:
        """Return the answers used last, the latest first, and a mark of this state of the cache.

        Args:
            session_id: whose cache.
            most: how many at most.
            seen: the mark of an earlier call: None is returned where nothing changed since.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
            StoreUnavailable, StoreDamaged.
        """
        mark = await self._store.mark(session_id)
        if mark == seen:
            return None
        found: list[CachedCall] = []
        keys = (await self._store.order(session_id, most))[::-1] if mark else []
        for start in range(0, len(keys), _AT_ONCE):
            _, entries = await self._store.look(session_id, *keys[start : start + _AT_ONCE])
            found += map(_summary, entries)
        return mark, found

    async def _in_time(self, ask: Callable[[], Awaitable[Reply]]) -> Reply | None:
        """Return what Redis answers; None where it does not, soon: asking must cost little.

        It is left alone then for a while.
        """
        if self._now() < self._rests_until:
            return None
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await ask()
        except (StoreUnavailable, TimeoutError):
            self._rests_until = self._now() + _REST_SECONDS
            return None


class Project:
    """The project's folder on this machine, and calls as other machines know them.

    Args:
        root: the folder, absolute.

    Raises:
        InvalidInput: it is not absolute, or the root of all.
    """

    def __init__(self, root: str) -> None:
        normal = posixpath.normpath(root)
        if not posixpath.isabs(normal) or normal.strip("/") == "" or "\0" in normal:
            raise InvalidInput(
                f"root is {root[:200]!r}, expected the project's folder",
                hint="name it absolutely, and not the root of all",
            )
        self.machine = Machine("", normal)

    def neutral(self, call: CacheCall) -> CacheCall:
        """Return a call without what is this machine's alone."""
        arguments, path = self.machine.neutral(call.arguments), relative_path(call.path)
        return msgspec.structs.replace(call, arguments=arguments, path=path)

    def local(self, call: CacheCall) -> CacheCall:
        """Return a neutral call as this machine makes it."""
        return msgspec.structs.replace(call, arguments=self.machine.local(call.arguments))


def _answer(key: str, state: Fingerprint, found: Found, here: Project, away: str) -> CacheAnswer:
    if found.entry:
        answer = found.entry.answer
        value = here.machine.local(answer.value)
        return CacheAnswer(key=key, outcome="hit", value=value, machine=answer.machine)
    reason = away or ("" if state.stamp else _FRESH)
    return CacheAnswer(key=key, outcome=found.outcome, stamp=state.stamp, reason=reason)


def _summary(entry: Entry) -> CachedCall:
    call, value = entry.answer.call, entry.answer.value
    is_shown = len(json.encode([call.arguments, value])) <= _SHOWN_BYTES
    return CachedCall(
        key=entry.key,
        tool=call.tool,
        path=call.path,
        scope=call.scope,
        machine=entry.answer.machine,
        bytes=entry.bytes,
        stored_at=datetime.fromtimestamp(entry.stored_ms / 1000, UTC),
        expires_at=datetime.fromtimestamp(entry.expires_ms / 1000, UTC),
        arguments=call.arguments if is_shown else UNSET,
        value=value if is_shown else UNSET,
    )

"""What every write shares: how a retry is recognised, and how a race is tried again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from random import uniform
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from msgspec import UNSET, Struct, field

from sessiond.errors import AlreadyExists, Contended, VersionMismatch
from sessiond.service.clock import Clock, system_clock, timestamp
from sessiond.service.identity import Entropy, content_digest
from sessiond.store.conflicts import ConflictStore
from sessiond.store.draft import Draft, IdempotencyKey
from sessiond.store.outcome import Committed, KeyUsed
from sessiond.store.sessions import SessionStore
from sessiond.sync.documents import merge_patch
from sessiond.sync.position import Position
from sessiond.sync.recent import is_version
from sessiond.sync.rules import Rules
from sessiond.sync.unlogged import KEY

Outcome = TypeVar("Outcome")

_ATTEMPTS = 32
_LONGEST_PAUSE_SECONDS = 0.05


class Made(Struct, frozen=True):
    """A change that its maker took for done: a merge patch, or the whole anew."""

    change: Any
    replace: bool = False


class Request(Struct, frozen=True, omit_defaults=True):
    """What a caller says beside the content of a write.

    Args:
        key: an idempotency key: the same key with the same content is the same write.
        expected: the only version that the change may be applied to; empty for whatever is current.
        base: the version that the change was made on: what others wrote since is merged with it.
        client: who asks, when the daemon writes for somebody else.
        made: what the caller itself had changed since the base, where that was only journaled:
            what it saw is the base with these changes.
        at_ms: when it was asked for, in ms since 1970; 0 for just now. A write that had to wait
            keeps its time.
    """

    key: str = ""
    expected: str = ""
    base: str = ""
    client: str = ""
    made: list[Made] = []
    at_ms: int = 0


PLAIN = Request()


class Queues:
    """Who changes the same thing in this process does so one after the other.

    Only writers of other processes are met as races then, which cost a try each.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def of(self, session_id: str, what: str) -> asyncio.Lock:
        """Return the queue for a document or a record of a session."""
        return self._locks.setdefault((session_id, what), asyncio.Lock())


class Surroundings(Struct, frozen=True):
    """What the services stand on: the stores, the rules of merging, time and randomness."""

    store: SessionStore
    conflicts: ConflictStore
    rules: Rules = field(default_factory=Rules)
    queues: Queues = field(default_factory=Queues)
    clock: Clock = system_clock
    entropy: Entropy = secrets.token_bytes
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)


async def commit(around: Surroundings, session_id: str, group: list[Draft]) -> Committed:
    """Write a group of operations."""
    return await around.store.commit(session_id, group, around.clock())


def now(around: Surroundings, request: Request) -> str:
    """Return the time of a write as the log has it: when it was asked for."""
    return timestamp(asked_at(around, request))


def asked_at(around: Surroundings, request: Request) -> int:
    """Return when a write was asked for, in ms since 1970."""
    return request.at_ms or around.clock()


def seen(base: Any, request: Request) -> Any:
    """Return what a caller had before it when it made a change; `base`: of the log, or UNSET."""
    for made in request.made:
        if made.replace:
            base = made.change
        elif base is not UNSET and base is not None:
            base = merge_patch(base, made.change)
    return base


def idempotency_key(request: Request, content: bytes) -> IdempotencyKey | None:
    """Return what makes a write that has no id of its own recognisable."""
    if not request.key:
        return None
    return IdempotencyKey(f"{KEY}{request.key}", content_digest(content))


async def written_before(
    around: Surroundings, session_id: str, key: IdempotencyKey | None
) -> Position | None:
    """Return where the write of this key went, if it was made before.

    Raises:
        AlreadyExists: the key was used for another content.
    """
    used = await around.store.used_key(session_id, key.name) if key else None
    if key is None or used is None:
        return None
    digest, offset = used
    if digest != key.digest:
        raise AlreadyExists(
            "this Idempotency-Key was used for a different request",
            hint="use a new key for every new write",
        )
    (entry,) = await around.store.log.entries_at(session_id, [offset])
    return entry.position if entry else Position("", offset)


async def attempt(
    around: Surroundings,
    session_id: str,
    what: str,
    request: Request,
    change: Callable[[], Awaitable[Outcome]],
) -> Outcome:
    """Run a read-change-write until it meets no other writer, a bounded number of times.

    Args:
        around: where the writers of this process queue, and how to pause.
        session_id: the session.
        what: the document or the record that changes.
        request: what the caller said.
        change: reads, and writes what was read changed, or raises VersionMismatch.

    Raises:
        VersionMismatch: the caller wanted one version changed, and it is not the current one.
        Contended: other writers kept being faster.
    """
    async with around.queues.of(session_id, what):
        return await _attempt(around, request, change)


async def _attempt(
    around: Surroundings, request: Request, change: Callable[[], Awaitable[Outcome]]
) -> Outcome:
    for tries in range(_ATTEMPTS):
        try:
            return await change()
        except KeyUsed:
            continue  # a twin of this request was faster: the next try finds what it wrote
        except VersionMismatch:
            if request.expected:
                raise
            longest = min(_LONGEST_PAUSE_SECONDS, 0.001 * 2**tries)
            await around.sleep(uniform(0, longest))  # noqa: S311 - spreads retries, hides nothing
    raise Contended(
        f"{_ATTEMPTS} tries met other writers each time",
        hint="try again in a moment",
    )


def check_expected(expected: str, current: str) -> None:
    """Compare a version that a caller named, `epoch:offset` or an offset alone.

    Raises:
        VersionMismatch: it is not the current one.
    """
    if expected and not is_version(expected, current):
        raise VersionMismatch(
            f"the current version is {current}, not {expected}",
            hint="read it again, apply the change to what you find, and send the new version",
        )

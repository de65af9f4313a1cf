"""A daemon with one bug in it, chosen by PLANTED_BUG: the laboratory must find each."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import structs

from sessiond.cli.main import main
from sessiond.codec import json
from sessiond.journal import Journal, Span, journal
from sessiond.journal.connection import LOG, PAGE_BYTES
from sessiond.journal.opening import CURRENT, Opened, open_journal
from sessiond.journal.thread import JournalThread
from sessiond.model import Message, NewMessage
from sessiond.service.clock import system_clock, timestamp
from sessiond.service.content.messages import Messages
from sessiond.service.durable.outbox import Outbox
from sessiond.service.live.feeds import _SessionFeed
from sessiond.service.writing import commit
from sessiond.store.committer import Committer
from sessiond.store.draft import Draft
from sessiond.store.outcome import Committed
from sessiond.store.sessions import SessionStore
from sessiond.sync.position import Position
from sessiond.sync.unlogged import Unlogged

_SLOW_DISK_SECONDS = 0.3
_LOG_HEADER_BYTES = 32
_FRAME_BYTES = PAGE_BYTES + 24


def _plant(owner: type | ModuleType, name: str, bug: Callable[..., Any]) -> None:
    setattr(owner, name, bug)


def no_fsync() -> None:
    """A write is acknowledged before it is on the disk; the disk gets it a moment later."""
    begin, confirm = Journal.begin, Journal.confirm
    written: dict[Span, asyncio.Future[Span]] = {}

    def at_once(self: Journal, *given: Any, **more: Any) -> asyncio.Future[Span]:
        loop = asyncio.get_running_loop()
        promised = Span(f"{len(written):012x}", 1, 1)
        outcome = written[promised] = loop.create_future()

        def write() -> None:
            begin(self, *given, **more).add_done_callback(
                lambda done: None if done.exception() else outcome.set_result(done.result())
            )

        loop.call_later(_SLOW_DISK_SECONDS, write)
        done: asyncio.Future[Span] = loop.create_future()
        done.set_result(promised)
        return done

    def confirm_later(self: Journal, span: Span, position: Position) -> None:
        if span in written:
            written[span].add_done_callback(lambda done: confirm(self, done.result(), position))
        else:
            confirm(self, span, position)

    _plant(Journal, "begin", at_once)
    _plant(Journal, "confirm", confirm_later)


def no_dedupe() -> None:
    """A message that comes once more is written once more, under another name."""
    count = itertools.count(1)

    async def written_again(
        self: Messages, session_id: str, _: list[NewMessage], messages: list[Message]
    ) -> Committed:
        again = f"again{next(count)}"
        group = [
            Draft(
                "message.append",
                f"{message.id}.{again}",
                timestamp(system_clock()),
                json.encode(structs.replace(message, id=f"{message.id}.{again}")),
            )
            for message in messages
        ]
        return await commit(self._around, session_id, group)

    _plant(Messages, "_appended_before", written_again)


def counter_epoch() -> None:
    """Positions are compared by their offsets alone, and Redis is believed to be what it was."""

    async def have(self: SessionStore, _: str, positions: list[Any]) -> list[bool]:
        return [True] * len(positions)

    _plant(SessionStore, "have", have)
    _plant(Committer, "_note_applied", lambda *_: None)


def trust_the_ack() -> None:
    """What Redis confirmed is dropped from the journal."""
    _plant(Journal, "confirm", lambda self, span, _: self.discard(span))


def forget_what_waits() -> None:
    """The next life of a daemon does not look into its journal."""

    async def start(self: Outbox) -> None:
        await self.confirmed.start()

    _plant(Outbox, "start", start)


def keep_torn_tail() -> None:
    """A journal is written on behind a torn tail: what stands there, the next life cannot read."""

    def opened(folder: Path, *given: Any) -> Opened:
        log, kept = folder / CURRENT / LOG, folder / "torn"
        if kept.exists():
            kept.replace(log)
        elif log.exists() and (log.stat().st_size - _LOG_HEADER_BYTES) % _FRAME_BYTES:
            shutil.copy(log, kept)
        return open_journal(folder, *given)

    _plant(journal, "open_journal", opened)


def retry_without_waiting() -> None:
    """On a slow disk, a retry is answered while its first try is still being written."""
    begin = Journal.begin
    under_way: set[str] = set()
    tasks: set[asyncio.Task[None]] = set()

    def impatient(
        self: Journal, session_id: str, group: Any, *, key: str = ""
    ) -> asyncio.Future[Span]:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Span] = loop.create_future()
        if key and key in under_way:
            outcome.set_result(Span("0" * 12, 1, 1))
            return outcome

        async def write() -> None:
            await asyncio.sleep(_SLOW_DISK_SECONDS)
            span = await begin(self, session_id, group, key=key)
            under_way.discard(key)
            if not outcome.done():
                outcome.set_result(span)

        under_way.add(key)
        task = loop.create_task(write())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return outcome

    _plant(Journal, "begin", impatient)


def retry_overtakes() -> None:
    """A write goes straight to Redis although others of its session still wait."""

    def must_wait(self: Outbox, _: str) -> bool:
        return self._around.redis.is_away or self.confirmed.is_in_doubt

    _plant(Outbox, "_must_wait", must_wait)


def skipped_gap() -> None:
    """What was announced while a subscription was down is not looked for."""
    hear = _SessionFeed.hear

    def deaf(self: _SessionFeed, message: bytes | None) -> None:
        if message is not None:
            hear(self, message)

    _plant(_SessionFeed, "hear", deaf)


def silent_failure() -> None:
    """A full disk is not told to those who write."""
    append = JournalThread.append

    def unheard(self: JournalThread, draft: Any) -> asyncio.Future[Span]:
        outcome = append(self, draft)
        done: asyncio.Future[Span] = asyncio.get_running_loop().create_future()

        def settle(found: asyncio.Future[Span]) -> None:
            failed = found.exception()
            if not done.done():
                done.set_result(Span("0" * 12, 1, 1) if failed else found.result())

        outcome.add_done_callback(settle)
        return done

    _plant(JournalThread, "append", unheard)


def forgotten_keys() -> None:
    """What is put back from a copy comes without Idempotency-Keys: nobody knows it again."""
    _plant_in_copies(lambda found: structs.replace(found, lines={}))


def forgotten_conflicts() -> None:
    """What is put back from a copy comes without what its conflicts kept."""
    _plant_in_copies(lambda found: structs.replace(found, conflicts={}))


def _plant_in_copies(bug: Callable[[Unlogged], Unlogged]) -> None:
    between = Unlogged.between
    _plant(Unlogged, "between", lambda self, *given: bug(between(self, *given)))


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        no_fsync,
        no_dedupe,
        counter_epoch,
        trust_the_ack,
        forget_what_waits,
        keep_torn_tail,
        retry_without_waiting,
        retry_overtakes,
        skipped_gap,
        silent_failure,
    )
}
COPY_BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug for bug in (forgotten_keys, forgotten_conflicts)
}
"""Bugs of what is put back from copies: rare, and so for the simulation alone."""
VARIABLE = "PLANTED_BUG"

if __name__ == "__main__":
    BUGS[os.environ.pop(VARIABLE)]()
    sys.exit(main())

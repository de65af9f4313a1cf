"""A daemon with one bug in it, chosen by SESSIOND_TEST_PLANTED: the laboratory must find each."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

from msgspec import structs

from sessiond.cli.main import main
from sessiond.journal import Journal, Span
from sessiond.journal.thread import JournalThread
from sessiond.service.feeds import _SessionFeed
from sessiond.service.messages import Messages
from sessiond.service.outbox import Outbox
from sessiond.service.writes import Append
from sessiond.store.committer import Committer
from sessiond.store.sessions import SessionStore


def _plant(owner: type, name: str, bug: Callable[..., Any]) -> None:
    setattr(owner, name, bug)


def no_fsync() -> None:
    """A write is acknowledged before it is on the disk; the disk gets it a second later."""
    begin = Journal.begin

    def at_once(self: Journal, *given: Any, **more: Any) -> asyncio.Future[Span]:
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, lambda: begin(self, *given, **more))
        done: asyncio.Future[Span] = loop.create_future()
        done.set_result(Span("0" * 12, 1, 1))
        return done

    _plant(Journal, "begin", at_once)


def no_dedupe() -> None:
    """A message that is sent again gets another name, as if ids meant nothing."""
    append = Messages.append
    count = iter(range(10**9))

    async def renamed(self: Messages, session_id: str, given: Any, *more: Any) -> Any:
        again = [structs.replace(new, id=f"{new.id}.{next(count)}") for new in given]
        return await append(self, session_id, again, *more)

    _plant(Messages, "append", renamed)


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
        self._known = {}

    _plant(Outbox, "start", start)


def retry_overtakes() -> None:
    """Writes of a session do not wait for those before them."""
    submit = Outbox.submit

    async def never_waits(self: Outbox, write: Any, wait_seconds: float | None = None) -> Any:
        if isinstance(write, Append):
            lanes, self._lanes = self._lanes, {}
            try:
                return await submit(self, write, wait_seconds)
            finally:
                self._lanes |= lanes
        return await submit(self, write, wait_seconds)

    _plant(Outbox, "submit", never_waits)


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


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        no_fsync,
        no_dedupe,
        counter_epoch,
        trust_the_ack,
        forget_what_waits,
        retry_overtakes,
        skipped_gap,
        silent_failure,
    )
}
VARIABLE = "SESSIOND_TEST_PLANTED"

if __name__ == "__main__":
    BUGS[os.environ.pop(VARIABLE)]()
    sys.exit(main())

"""The journal's thread: all work on the file, in order; groups that wait leave together.

What comes in one turn of the event loop is handed over together, once it is under way to Redis.
While a transaction is being synced, later groups gather, and share the next one: one sync for all
of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from msgspec import Struct

from sessiond.errors import JournalUnavailable, SessiondError
from sessiond.journal.executor import Executor
from sessiond.journal.ledger import Damaged, Ledger
from sessiond.journal.opening import Broken
from sessiond.journal.options import MIB
from sessiond.journal.record import Span
from sessiond.journal.transaction import Confirmation, Draft

Answer = TypeVar("Answer")

_BATCH_GROUPS = 512
_BATCH_BYTES = 4 * MIB
_UNWRITTEN_CONFIRMATIONS = 1000


class _Append(Struct):
    draft: Draft
    outcome: asyncio.Future[Span]


class _Question(Struct):
    """Something to do with the ledger between two transactions."""

    ask: Callable[[Ledger], Any]
    answer: asyncio.Future[Any]


_Job = list[_Append] | _Question


class JournalThread:
    """Owns a ledger, in a thread of its own. Used by one event loop.

    Args:
        open_ledger: opens it, in the thread; called again when the file turns out to be damaged.
        executor: runs what is done in the thread.
    """

    def __init__(self, open_ledger: Callable[[Broken | None], Ledger], executor: Executor) -> None:
        self._open_ledger = open_ledger
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._gathered: list[_Append] = []
        self._confirmations: deque[Confirmation] = deque()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ledger: Ledger
        self._closed = False

    async def start(self) -> None:
        """Open the ledger.

        Raises:
            JournalUnavailable: the disk is full, or fails.
        """
        self._executor.submit(self._open)
        try:
            await self._opened
        except BaseException:
            await self._executor.close()
            raise

    def append(self, draft: Draft) -> asyncio.Future[Span]:
        """Return what gives a group's sequences when it is durable."""
        self._check_open()
        job = _Append(draft, self._loop.create_future())
        self._gathered.append(job)
        if len(self._gathered) == 1:  # soon: after what this turn of the loop sends to Redis
            self._loop.call_soon(self._loop.call_soon, self._hand_over)
        return job.outcome

    def confirm(self, confirmation: Confirmation) -> None:
        """Have it written with one of the next transactions."""
        self._confirmations.append(confirmation)
        if len(self._confirmations) % _UNWRITTEN_CONFIRMATIONS == 0 and not self._closed:
            self._put(lambda ledger: ledger.write([])).add_done_callback(_pass_over)

    async def ask(self, question: Callable[[Ledger], Answer]) -> Answer:
        """Put a question to the ledger."""
        self._check_open()
        answer: Answer = await self._put(question)
        return answer

    async def close(self) -> None:
        """Write what was handed over, and end the thread."""
        if not self._closed:
            answer = self._put(Ledger.close)
            self._closed = True
            await answer
            await self._executor.close()

    def _hand_over(self) -> None:
        """Hand over what was gathered: what comes in one turn of the loop goes together."""
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._jobs.put(gathered)
            self._executor.submit(self._work_off)

    def _put(self, question: Callable[[Ledger], Any]) -> asyncio.Future[Any]:
        self._hand_over()
        job = _Question(question, self._loop.create_future())
        self._jobs.put(job)
        self._executor.submit(self._work_off)
        return job.answer

    def _check_open(self) -> None:
        if self._closed:
            raise JournalUnavailable("the journal is closed", hint="start the daemon again")

    # In the thread

    def _open(self) -> None:
        try:
            self._ledger = self._open_ledger(None)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever starts us must hear of it
            self._settle([(self._opened, error)])
            return
        self._settle([(self._opened, None)])

    def _work_off(self) -> None:
        """Do the next job, and what is gathered with it: that one's own turn finds nothing."""
        job: _Job | None = None
        with suppress(Empty):
            job = self._jobs.get_nowait()
        while job is not None:
            following: _Job | None = None
            if isinstance(job, list):
                batch, following = self._gather(job)
                self._write(batch)
            else:
                self._answer(job)
            job = following

    def _gather(self, first: list[_Append]) -> tuple[list[_Append], _Job | None]:
        """Return what may be written together, and the job that comes next, if one is there."""
        waiting, batch, size = deque(first), list[_Append](), 0
        while waiting and len(batch) < _BATCH_GROUPS:
            size += len(waiting[0].draft.body)
            if batch and size > _BATCH_BYTES:
                break
            batch.append(waiting.popleft())
            if not waiting:
                with suppress(Empty):
                    job = self._jobs.get_nowait()
                    if not isinstance(job, list):
                        return batch, job
                    waiting.extend(job)
        return batch, list(waiting) or None

    def _write(self, batch: list[_Append]) -> None:
        outcomes = self._try(lambda ledger: ledger.write([job.draft for job in batch]))
        if isinstance(outcomes, Exception):
            outcomes = [outcomes] * len(batch)
        self._settle(list(zip((job.outcome for job in batch), outcomes, strict=True)))
        self._try(Ledger.tidy)

    def _answer(self, job: _Question) -> None:
        self._settle([(job.answer, self._try(job.ask))])

    def _try(self, work: Callable[[Ledger], Any]) -> Any:
        """Do something with the ledger; returns its outcome or the error."""
        self._ledger.confirm(
            [self._confirmations.popleft() for _ in range(len(self._confirmations))]
        )
        try:
            return work(self._ledger)
        except Damaged as damage:
            return self._repair(damage)
        except Exception as error:  # noqa: BLE001 - whatever happens, the callers must hear of it
            return error

    def _repair(self, damage: Damaged) -> SessiondError:
        """Open the ledger anew, which saves what can be read; returns what callers are told."""
        try:
            self._ledger = self._open_ledger(Broken(self._ledger.connection, str(damage)))
        except SessiondError as error:
            return error
        return JournalUnavailable(
            f"the journal was damaged: {damage}",
            hint="it was made anew of what could be read; try again",
        )

    def _settle(self, outcomes: list[tuple[asyncio.Future[Any], Any]]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_settle_all, outcomes)


def _settle_all(outcomes: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in outcomes:
        if future.done():  # its caller went away
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _pass_over(outcome: asyncio.Future[Any]) -> None:
    """Nobody waits for this: what could not be written now is written with the next transaction."""
    if not outcome.cancelled():
        outcome.exception()

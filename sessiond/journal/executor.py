"""Where the journal's work is done: beside the event loop, one piece after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

Work = Callable[[], None]


class Executor(Protocol):
    """Does pieces of work in the order they came, each to its end."""

    def submit(self, work: Work) -> None:
        """Have something done; from the event loop's thread only. It must not raise."""

    async def close(self) -> None:
        """Return when everything is done that was submitted; nothing may come after it."""


class OwnThread:
    """Does it in a thread of its own, which ends with the process at the latest."""

    def __init__(self) -> None:
        self._submitted: SimpleQueue[Work | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Have something done; see Executor."""
        self._submitted.put(work)

    async def close(self) -> None:
        """Return when everything is done; see Executor."""
        self._submitted.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while work := self._submitted.get():
            work()

"""Reading opencode's database away from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from sessiond.opencode.database import Database

Outcome = TypeVar("Outcome")


class Read(Protocol):
    """Puts a question to opencode's database.

    Raises:
        DatabaseUnreadable: it cannot be read now.
    """

    async def __call__(self, question: Callable[[Database], Outcome]) -> Outcome:
        """Return the answer."""


class DatabaseReader:
    """One database, read by a thread of its own: a slow disk must not hold up anything else."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="opencode-database")

    async def read(self, question: Callable[[Database], Outcome]) -> Outcome:
        """Put a question to the database.

        Raises:
            DatabaseUnreadable: it cannot be read now.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, question, self._database)

    def close(self) -> None:
        """Let go of the database."""
        self._thread.submit(self._database.close)
        self._thread.shutdown(wait=False)

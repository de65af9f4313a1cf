"""A sidecar of the simulation: the daemon's real parts, without its API, from life to life."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from sessiond.config import options
from sessiond.config.options import Configuration, RedisOptions, SyncOptions
from sessiond.core import Core
from sessiond.daemon.durable import DurableWrites
from sessiond.daemon.offline import OfflineReading
from sessiond.errors import DaemonUnreachable
from sessiond.journal import Journal, JournalOptions
from sessiond.replica import Replica
from tests.simulation.disk import Disk
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Link

Answer = TypeVar("Answer")

BEGAN_MS = 1_768_300_200_000
"""When every simulation begins, by a clock that is right."""
WAIT_SECONDS = 0.3
"""How long an answer waits for Redis."""

_COPIES_BYTES = 2**28
_WAITING = options.JournalOptions(wait_seconds=WAIT_SECONDS)
_CONFIGURATION = Configuration(
    redis=RedisOptions(timeout_seconds=1.0), sync=SyncOptions(retry_seconds=0.5)
)


class Life:
    """One process: its parts, and every task that works for it."""

    def __init__(self) -> None:
        self.is_over = False
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.core: Core
        self.durable: DurableWrites
        self.reading: OfflineReading

    def start_task(self, work: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        """Start something that ends with this life."""
        context = contextvars.copy_context()
        context.run(_life.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)


_life: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


def count_tasks(loop: VirtualLoop) -> None:
    """Have a loop note for which life each of its tasks works."""

    def start(
        running: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=running, **options)
        context = options.get("context") or contextvars.copy_context()
        life = context.get(_life)
        if life:
            life.tasks[task] = None
            task.add_done_callback(lambda done: life.tasks.pop(done, None))
            if life.is_over:
                task.cancel()
        return task

    loop.set_task_factory(start)  # type: ignore[arg-type]  # its type knows no options


class Sidecar:
    """One machine.

    Args:
        name: its instance, and the name of its host.
        link: its way to Redis.
        folder: of its disk.
        random: all that is random in it.
        keeps_copies: whether it keeps copies of sessions.
    """

    def __init__(
        self, name: str, link: Link, folder: Path, random: Random, *, keeps_copies: bool
    ) -> None:
        self.name = name
        self.link = link
        self.disk = Disk(folder, random)
        self.ahead_ms = 0
        self.lock = asyncio.Lock()
        """Held by whoever ends or starts it."""
        self._random = random
        self._keeps_copies = keeps_copies
        self._loop = asyncio.get_running_loop()
        self._life: Life | None = None

    @property
    def life(self) -> Life:
        """The process that runs.

        Raises:
            DaemonUnreachable: none does.
        """
        if self._life is None:
            raise DaemonUnreachable(f"{self.name} is down", hint="wait")
        return self._life

    @property
    def is_running(self) -> bool:
        """Whether it can be asked."""
        return self._life is not None

    def clock(self) -> int:
        """Return this machine's time, in milliseconds since 1970."""
        return BEGAN_MS + self.ahead_ms + round(self._loop.time() * 1000)

    async def start(self) -> None:
        """Begin a life, as a supervisor does: again, until the disk takes it."""
        life = Life()
        await life.start_task(self._open(life))
        self._life = life

    async def crash(self) -> None:
        """End this life at once; what it sent is still under way."""
        life, self._life = self._life, None
        if life is None:
            return
        life.is_over = True
        self.disk.crash()
        self.link.lose_host()
        tasks = list(life.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, question: Callable[[Life], Coroutine[Any, Any, Answer]]) -> Answer:
        """Have this life do something; the asker that is cancelled takes it back.

        Raises:
            DaemonUnreachable: there is none, or it ended meanwhile.
            SessiondError: as it raises it.
        """
        life = self.life
        task = life.start_task(question(life))
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            if life.is_over:
                raise DaemonUnreachable(f"{self.name} went down", hint="try again") from None
            raise

    async def _open(self, life: Life) -> None:
        life.core = core = Core(
            f"redis://{self.name}:6379/0",
            _CONFIGURATION,
            instance=self.name,
            clock=self.clock,
            entropy=self._random.randbytes,
        )
        journal_options = JournalOptions(
            clock=self.clock,
            entropy=self._random.randbytes,
            connect=self.disk.connect,
            executor=self.disk.start_executor,
        )
        journal = await Journal.open(self.disk.folder, journal_options)
        life.durable = DurableWrites(core, journal, _WAITING)
        replica = await self._open_replica() if self._keeps_copies else None
        life.reading = OfflineReading(core, life.durable, replica)
        await life.durable.start()
        life.reading.start()

    async def _open_replica(self) -> Replica:
        folder, pool = self.disk.folder / "replica", self.disk.start_pool()
        return await Replica.open(
            folder, limit_bytes=_COPIES_BYTES, clock=self.clock, executor=pool
        )

"""An event loop whose time jumps to the next timer as soon as nothing is left to do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")

_MOST_TURNS = 400_000
"""No schedule needs as many: what does is a loop without end."""


class Endless(RuntimeError):
    """Nothing will ever happen any more, or nothing comes to an end."""


class Hosts(Protocol):
    """Who can be connected to."""

    async def connect(self, host: str, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Open a connection to a host, by its name."""


class _Skipping(selectors.SelectSelector):
    """Waits for nothing: what would be waited for has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        if timeout is None:
            raise Endless("everybody waits for somebody else")
        if self.turns > _MOST_TURNS:
            raise Endless(f"no rest after {_MOST_TURNS} turns of the loop")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time, in seconds, begins at 0 and passes only where everybody sleeps.

    Connections lead to `hosts`; nothing else of the world can be reached.
    """

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)
        self.hosts: Hosts

    def time(self) -> float:
        return self._skipping.now

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *arguments: Any, context: Any = None
    ) -> asyncio.Handle:
        """The same as `call_soon`: there is one thread."""
        return self.call_soon(callback, *arguments, context=context)

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, *_: Any, **__: Any
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        protocol = protocol_factory()
        return await self.hosts.connect(host, protocol), protocol


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine on a fresh loop to its end; what is left of tasks then is cancelled.

    Raises:
        Endless: it cannot come to an end.
    """
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()

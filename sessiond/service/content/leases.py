"""Turn leases: waiting for one, keeping it alive, giving it back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

from sessiond.errors import SessiondError
from sessiond.store.leases import LeaseState, LeaseStore

Sleep = Callable[[float], Awaitable[None]]

_POLL_SECONDS = 1.0
_RENEWALS_PER_LIFE = 3


class Leases:
    """The turn leases that instances of this daemon hold or wait for.

    A lease is renewed as long as it is held here; when this daemon dies, it ends by itself.

    Args:
        store: the leases in Redis.
        machine: the name under which others see who holds one.
        sleep: how to pause between renewals.
    """

    def __init__(self, store: LeaseStore, machine: str, sleep: Sleep = asyncio.sleep) -> None:
        self._store = store
        self._machine = machine
        self._sleep = sleep
        self._held: dict[tuple[str, str], int] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._renewing: asyncio.Task[None] | None = None

    def held(self, session_id: str, instance: str) -> bool:
        """Tell whether an instance of this daemon holds a session's lease."""
        return (session_id, instance) in self._held

    def sessions_of(self, instance: str) -> list[str]:
        """Return the sessions whose lease an instance holds."""
        return [session_id for session_id, holder in self._held if holder == instance]

    async def acquire(self, session_id: str, instance: str, wait_seconds: float) -> LeaseState:
        """Take a session's lease, waiting for it if somebody else has it.

        Returns:
            Granted, or who had it when the time was up.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        with self._hearing(session_id) as released:
            state = await self._ask_until(session_id, instance, released, wait_seconds)
        if state.granted:
            self._held[session_id, instance] = state.token
            if self._renewing is None or self._renewing.done():
                self._renewing = asyncio.create_task(self._renew())
        return state

    async def release(self, session_id: str, instance: str) -> bool:
        """Give a lease back; False when the instance did not hold it any more.

        Raises:
            StoreUnavailable: Redis does not answer; the lease ends by itself.
        """
        token = self._held.pop((session_id, instance), None)
        if token is None:
            return False
        state = await self._store.ask("release", session_id, instance, self._machine, token)
        return state.granted

    def heard_release(self, session_id: str) -> None:
        """Take note that somebody gave a lease back: whoever waits for it tries again."""
        for released in self._waiting.get(session_id, ()):
            released.set()

    def close(self) -> None:
        """Stop renewing; what is still held ends by itself."""
        if self._renewing:
            self._renewing.cancel()

    @contextlib.contextmanager
    def _hearing(self, session_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever somebody gives the session's lease back."""
        released = asyncio.Event()
        waiting = self._waiting.setdefault(session_id, set())
        waiting.add(released)
        try:
            yield released
        finally:
            waiting.discard(released)
            if not waiting:
                del self._waiting[session_id]

    async def _ask_until(
        self, session_id: str, instance: str, released: asyncio.Event, wait_seconds: float
    ) -> LeaseState:
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while True:
            released.clear()
            state = await self._store.ask("acquire", session_id, instance, self._machine)
            left = deadline - asyncio.get_running_loop().time()
            if state.granted or left <= 0:
                return state
            with contextlib.suppress(TimeoutError):  # a holder that died tells nobody
                await asyncio.wait_for(released.wait(), min(left, _POLL_SECONDS))

    async def _renew(self) -> None:
        while self._held:
            await self._sleep(self._store.ttl_ms / 1000 / _RENEWALS_PER_LIFE)
            held = list(self._held.items())
            await asyncio.gather(*(self._renew_one(*whose, token) for whose, token in held))

    async def _renew_one(self, session_id: str, instance: str, token: int) -> None:
        with contextlib.suppress(SessiondError):  # Redis is away: the next time, perhaps
            state = await self._store.ask("renew", session_id, instance, self._machine, token)
            if not state.granted and self._held.get((session_id, instance)) == token:
                del self._held[session_id, instance]

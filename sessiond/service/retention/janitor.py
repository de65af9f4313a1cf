"""The janitor among the daemons of one Redis: one at a time, and fenced."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sessiond.errors import CleanupHeld, SessiondError
from sessiond.store.janitor import JanitorState, JanitorStore
from sessiond.store.outcome import JanitorLate

_RENEWALS_PER_LIFE = 3


class Term:
    """The time in which this process is the janitor. It is renewed as long as it lasts.

    Args:
        store: who is the janitor, in Redis.
        state: what Redis granted.
        asked: when it was asked for that, on the loop's clock, in seconds.
    """

    def __init__(self, store: JanitorStore, state: JanitorState, asked: float) -> None:
        self._store = store
        self._token = state.token
        self._until_ms = state.until_ms
        self._asked = asked

    def fence(self) -> int:
        """Return until when this process is the janitor, by the server's clock in ms.

        Whatever is done as the janitor names it, and is refused afterwards.

        Raises:
            JanitorLate: it is not any more.
        """
        if _now() - self._asked >= self._store.life_ms / 1000:
            raise JanitorLate("the right to clean up has ended, and was not renewed")
        return self._until_ms

    async def finish(self, report: bytes) -> None:
        """End it, and note what was done.

        Raises:
            JanitorLate: somebody else is the janitor by now.
            StoreUnavailable: Redis does not answer; it ends by itself.
        """
        if not (await self._store.finish(self._token, report)).granted:
            raise JanitorLate("somebody else cleans up by now")

    async def keep(self) -> None:
        """Renew it, until it is lost."""
        while True:
            await asyncio.sleep(self._store.life_ms / 1000 / _RENEWALS_PER_LIFE)
            asked = _now()
            with contextlib.suppress(SessiondError):  # the next time, if that is in time
                state = await self._store.renew(self._token)
                if not state.granted:
                    return
                self._until_ms, self._asked = state.until_ms, asked


@asynccontextmanager
async def term_of(store: JanitorStore, instance: str, at_least_ms: int = 0) -> AsyncIterator[Term]:
    """Be the janitor for a while.

    Args:
        store: who is the janitor, in Redis.
        instance: the name under which others see who it is.
        at_least_ms: for how long the last clean-up must be over.

    Raises:
        CleanupHeld: somebody else is the janitor, or it is too early.
        StoreUnavailable: Redis does not answer.
    """
    asked = _now()
    state = await store.begin(instance, at_least_ms)
    if not state.granted:
        who = f"{state.instance!r} cleans up" if state.instance else "this was done a while ago"
        raise CleanupHeld(who, hint="`sessiond status` shows when it is done, and due again")
    term = Term(store, state, asked)
    renewing = asyncio.create_task(term.keep())
    try:
        yield term
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


def _now() -> float:
    return asyncio.get_running_loop().time()

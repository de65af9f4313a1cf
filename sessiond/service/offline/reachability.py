"""Whether Redis answers: noticed by whoever fails, found out again by one who asks for all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from sessiond.errors import SessiondError, StoreUnavailable

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5
_PATIENCE_SECONDS = 1.0
_LONG_SECONDS = 0.5
"""What takes longer has Redis asked."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Reachability:
    """What a process knows of its Redis.

    Args:
        ask: asks Redis anything; raises SessiondError when it does not answer.
        sleep: how to pause between questions.
        now: a monotonic clock, in seconds; None for the event loop's.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[object]],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._ask = ask
        self._sleep = sleep
        self._now = now or asyncio.get_running_loop().time
        self._is_back = asyncio.Event()
        self._is_back.set()
        self._when_back: list[Callable[[], None]] = []
        self._asking: asyncio.Task[None] | None = None
        self._answered_at = float("-inf")
        self._is_refused = False
        self._limits: set[asyncio.Timeout] = set()
        self.away_since: float | None = None
        """When it was first missed (`now`); None while it answers."""

    @property
    def is_away(self) -> bool:
        """Whether it did not answer when it was last asked."""
        return self.away_since is not None

    @property
    def away_seconds(self) -> float | None:
        """How long it has been away; None while it answers."""
        since = self.away_since
        return None if since is None else round(self._now() - since, 1)

    @property
    def answered_seconds_ago(self) -> float:
        """How long ago it was last known to answer; endless if it never was."""
        return self._now() - self._answered_at

    def note_answer(self) -> None:
        """Note that it answered just now."""
        self._answered_at = self._now()

    def call_when_back(self, callback: Callable[[], None]) -> None:
        """Have something called every time that it answers again."""
        self._when_back.append(callback)

    def note_failure(self) -> None:
        """Note that it did not answer; it is asked from now on until it does."""
        if self.is_away:
            return
        self.away_since = self._now()
        self._is_back.clear()
        _log.warning("redis.away")
        self._give_up()
        if self._asking:
            self._asking.cancel()
        self._asking = asyncio.create_task(self._ask_until_back())

    def suspect(self) -> None:
        """Something took long: ask whether it is Redis."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_once())

    @contextlib.asynccontextmanager
    async def needed(self) -> AsyncIterator[None]:
        """Do something that needs it, given up once it is known to be away.

        A server that stalls is found out so, long before a command's own limit.

        Raises:
            StoreUnavailable: it is away.
        """
        if self.is_away:
            raise _away()
        doubt = asyncio.get_running_loop().call_later(_LONG_SECONDS, self.suspect)
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limits.add(limit)
                yield
        except TimeoutError as error:
            if limit.expired():
                raise _away() from error
            raise
        finally:
            doubt.cancel()
            self._limits.discard(limit)

    async def wait_until_back(self) -> None:
        """Return when it answers."""
        await self._is_back.wait()

    async def close(self) -> None:
        """Stop asking."""
        if self._asking:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def _give_up(self) -> None:
        """End everything that needs it and waits."""
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            limit.reschedule(now)
        self._limits.clear()

    async def _ask_once(self) -> None:
        if not await self._answers():
            self._asking = None
            self.note_failure()

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._ask()
        except (SessiondError, TimeoutError) as error:
            if isinstance(error, SessiondError) and not error.temporary and not self._is_refused:
                self._is_refused = True
                _log.error("redis.refuses", reason=error.detail, hint=error.hint)
            return False
        except Exception:  # noqa: BLE001 - whatever it is, it is asked again, and that is said
            _log.exception("redis.asking_failed")
            return False
        self._is_refused = False
        return True

    async def _ask_until_back(self) -> None:
        began, pause = self._now(), _FIRST_PAUSE_SECONDS
        await self._sleep(pause)
        while not await self._answers():
            await self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        _log.info("redis.back", seconds=round(self._now() - began, 2))
        self.away_since = None
        self.note_answer()
        self._is_back.set()
        for callback in self._when_back:
            callback()


def _away() -> StoreUnavailable:
    return StoreUnavailable("Redis does not answer", hint="try again when it is back")

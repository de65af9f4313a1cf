"""When sessions are cleaned up: some minutes after the start, then as often as the options say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import uniform

import structlog

from sessiond.errors import CleanupHeld, SessiondError
from sessiond.service.retention.cleanup import Cleanup

FIRST_SECONDS = (120.0, 600.0)
"""Daemons that are started together look at different times."""

_LONGEST_SECONDS = 3600.0
_AGAIN_SECONDS = 300.0
_SPREAD_SECONDS = 60.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class CleanupSchedule:
    """Looks now and then whether a clean-up is due, and does it unless another daemon was faster.

    When it was done last stands in Redis: a restart repeats nothing, and a pause skips nothing.

    Args:
        cleanup: what is to be done.
        sleep: how to pause, in seconds.
        spread: returns a number between two at random.
    """

    def __init__(
        self,
        cleanup: Cleanup,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        spread: Callable[[float, float], float] = uniform,
    ) -> None:
        self._cleanup = cleanup
        self._sleep = sleep
        self._spread = spread

    async def run(self) -> None:
        """Go on until cancelled."""
        await self._sleep(self._spread(*FIRST_SECONDS))
        while True:
            pause = await self._look()
            await self._sleep(pause + self._spread(0, _SPREAD_SECONDS))

    async def _look(self) -> float:
        """Clean up if that is due; return for how many seconds there is nothing to do."""
        try:
            if await self._cleanup.due_in_ms() == 0:
                await self._cleanup.run(only_if_due=True)
            return min(_LONGEST_SECONDS, await self._cleanup.due_in_ms() / 1000)
        except CleanupHeld as error:
            _log.debug("retention.held", reason=error.detail)
        except SessiondError as error:
            _log.warning("retention.postponed", code=error.code, reason=error.detail)
        except Exception:  # noqa: BLE001 - whatever it is, it is tried again, and that is said
            _log.exception("retention.broken")
        return _AGAIN_SECONDS

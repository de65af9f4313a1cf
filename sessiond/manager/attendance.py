"""Being at a session, for others to see: announced, repeated in the background, ended.

```python
async with session.present(active_files=["README.md"]) as here:
    if here.seen.shared_files:
        ...  # somebody else has it open, too
    await here.work_on("README.md", "setup.py")
```
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from sessiond.backend import Backend
from sessiond.errors import InvalidInput, NotFound, SessionDeleted, SessiondError
from sessiond.model import SessionPresence
from sessiond.retrying import retried

_RENEWALS_PER_LIFE = 3
_RETRY_SECONDS = 0.5
_PATIENCE_SECONDS = 2.0


class Attendance:
    """One instance at one session, inside `async with`.

    It is announced at the beginning, which raises NotFound, SessionDeleted, InvalidInput,
    DaemonUnreachable or StoreUnavailable; said again often enough for others to see it all the
    time, also across a restart of the daemon; and taken back at the end. Where that fails it ends
    by itself after `seen.valid_seconds`.

    Args:
        backend: who keeps the sessions.
        session_id: the session.
        instance: the name under which others see it.
        active_files: what it works on.
    """

    def __init__(
        self, backend: Backend, session_id: str, instance: str, active_files: Iterable[str]
    ) -> None:
        if isinstance(active_files, str):
            raise InvalidInput("active_files is one text", hint="give a list of names")
        self.instance = instance
        self._backend = backend
        self._session_id = session_id
        self._files = list(active_files)
        self._seen: SessionPresence | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._speaking = asyncio.Lock()  # what is said last must arrive last

    @property
    def seen(self) -> SessionPresence:
        """Who was there when this instance last said that it is; it is one of them."""
        if self._seen is None:
            raise RuntimeError("announced inside `async with` only")
        return self._seen

    @property
    def active_files(self) -> list[str]:
        """What the instance works on."""
        return list(self._files)

    async def work_on(self, *active_files: str) -> SessionPresence:
        """Say what the instance works on from now on, and return who is there.

        Raises:
            InvalidInput: more than 256 files, or a name of more than 1,024 characters.
            NotFound, SessionDeleted, DaemonUnreachable, StoreUnavailable.
        """
        before, self._files = self._files, list(active_files)
        try:
            self._seen = await retried(self._announce)
        except SessiondError:
            self._files = before
            raise
        return self._seen

    async def __aenter__(self) -> Self:
        self._seen = await retried(self._announce)
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        if self._renewing:
            await asyncio.wait([self._renewing], timeout=_PATIENCE_SECONDS)
            self._renewing.cancel()
        with contextlib.suppress(SessiondError):  # it ends by itself
            await self._backend.leave(self._session_id, self.instance)

    async def _announce(self) -> SessionPresence:
        async with self._speaking:
            return await self._backend.announce(self._session_id, self.instance, self._files)

    async def _renew(self) -> None:
        pause = self.seen.valid_seconds / _RENEWALS_PER_LIFE
        while not await self._ends_within(pause):
            try:
                self._seen = await self._announce()
                pause = self._seen.valid_seconds / _RENEWALS_PER_LIFE
            except (NotFound, SessionDeleted):
                return
            except SessiondError:  # the daemon or its Redis is away: as soon as it is back
                pause = min(pause, _RETRY_SECONDS)

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        return self._ending.is_set()

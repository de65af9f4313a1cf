"""The turns of one share: which run here, which run elsewhere, and who may begin the next."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from sessiond.errors import SessiondError, StoreUnavailable
from sessiond.opencode.protocol import Holder, Turn
from sessiond.service.content.leases import Leases
from sessiond.service.opencode.instance import Instance
from sessiond.store.leases import LeaseState

_AFTERMATH_SECONDS = 0.1
_ATTEMPTS = 5
_SILENCE_SECONDS = 15.0
_CATCH_UP_SECONDS = 8.0
_LOOK_SECONDS = 0.25
_RECLAIM_SECONDS = 1.0
_DISTRUST_SECONDS = 60.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Turns:
    """Turns in the sessions of one share.

    Args:
        leases: who may run a turn, among all machines.
        catch_up: brings everything said so far in a session into the database.
        flush: writes everything that happened in a session here.
        ended: told when no turn runs in a session any more, so that what waits may go in.
        spawn: runs something beside.
    """

    def __init__(
        self,
        leases: Leases,
        *,
        catch_up: Callable[[str], Awaitable[None]],
        flush: Callable[[str], Awaitable[None]],
        ended: Callable[[str], None],
        given_back: Callable[[str], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._leases = leases
        self._catch_up = catch_up
        self._flush = flush
        self._ended = ended
        self._given_back = given_back
        self._spawn = spawn
        self._here: defaultdict[str, set[str]] = defaultdict(set)
        self._elsewhere: dict[str, float] = {}
        self._distrust_until = 0.0

    def run_in(self, session_id: str) -> bool:
        """Tell whether a turn runs in a session, so that nothing may be written into it."""
        return bool(self._here.get(session_id)) or session_id in self._elsewhere

    async def until_free(self, session_id: str) -> None:
        """Wait until no turn runs in a session."""
        while self.run_in(session_id):  # noqa: ASYNC110 - turns last seconds and more
            await asyncio.sleep(_LOOK_SECONDS)

    async def begin(self, instance: Instance, session_id: str, wait_seconds: float) -> Turn:
        """Let a process run a turn, after all that was said before is there.

        Returns:
            Granted, or who has the turn; neither when Redis is away and nobody can tell.
        """
        token = 0
        try:
            if instance.attachment.mode == "lease":
                state = await self._leases.acquire(session_id, instance.name, wait_seconds)
                if not state.granted:
                    return Turn(granted=False, holder=_holder(state))
                token = state.token
            if not self.run_in(session_id):
                await self._come_up_to_date(session_id)
        except StoreUnavailable:
            self._without_lease(instance, session_id)
            return Turn(granted=False)
        except asyncio.CancelledError:  # the process does not wait for the answer any more
            self._spawn(self._give_back(instance.name, session_id))
            raise
        self._here[session_id].add(instance.name)
        return Turn(granted=True, token=token)

    def _without_lease(self, instance: Instance, session_id: str) -> None:
        """Let a turn run though nobody can be asked; take others' turns whole for a while."""
        self._distrust_until = time.monotonic() + _DISTRUST_SECONDS
        self.began(instance, session_id)

    @property
    def take_whole(self) -> bool:
        """Whether turns elsewhere may come in only when they are complete: leases were lost."""
        return time.monotonic() < self._distrust_until

    def began(self, instance: Instance, session_id: str) -> None:
        """Take note of a turn that began without asking, and take the right to it if it is free."""
        if instance.name not in self._here[session_id]:
            self._here[session_id].add(instance.name)
            if instance.attachment.mode == "lease":
                self._spawn(self._reclaim(session_id, instance.name))

    def end(self, name: str, session_id: str) -> None:
        """Take note that a process's turn is over, and give the right to the next one."""
        names = self._here.get(session_id, set())
        names.discard(name)
        if not names:
            self._here.pop(session_id, None)
            self._ended(session_id)
        self._spawn(self._give_back(name, session_id))

    def came_back(self, instance: Instance) -> None:
        """Take note of the turns that go on in a process which attaches again."""
        for session_id in instance.attachment.turns:
            self._here[session_id].add(instance.name)
            self._spawn(self._reclaim(session_id, instance.name))

    def gone(self, instance: Instance) -> None:
        """Take note that a process is gone, and with it its turns."""
        for session_id, names in list(self._here.items()):
            if instance.name in names:
                self.end(instance.name, session_id)

    def heard(self, session_id: str) -> None:
        """Take note of a sign of a turn elsewhere (mode `atomic`)."""
        self._elsewhere[session_id] = time.monotonic()

    def ended_elsewhere(self, session_id: str) -> None:
        """Take note that a turn elsewhere is complete."""
        if self._elsewhere.pop(session_id, None) is not None:
            self._ended(session_id)

    def runs_elsewhere(self, session_id: str) -> bool:
        """Tell whether a turn elsewhere is not complete yet (mode `atomic`)."""
        return session_id in self._elsewhere

    def forget_silent(self) -> None:
        """Give up on turns elsewhere of which nothing was heard for long: their machine died."""
        for session_id, heard in list(self._elsewhere.items()):
            if time.monotonic() - heard > _SILENCE_SECONDS:
                self.ended_elsewhere(session_id)

    async def _come_up_to_date(self, session_id: str) -> None:
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await self._catch_up(session_id)
        except TimeoutError:  # the person has waited enough; the rest comes in after the turn
            await _log.awarning("opencode.turn_began_behind", session_id=session_id)

    async def _give_back(self, name: str, session_id: str) -> None:
        """Give a lease back, when what opencode still logs after a turn is written too.

        While that cannot be written, it is tried again, but not for ever: a lease that is not given
        back is renewed, and nobody else could begin a turn.
        """
        await asyncio.sleep(_AFTERMATH_SECONDS)
        for _ in range(_ATTEMPTS):
            if name in self._here.get(session_id, ()):
                return  # the next turn began already
            try:
                await self._flush(session_id)
            except SessiondError:
                await asyncio.sleep(_RECLAIM_SECONDS)
            else:
                break
        if name in self._here.get(session_id, ()):
            return
        with contextlib.suppress(SessiondError):  # not renewed any more, it ends by itself
            if await self._leases.release(session_id, name):
                await self._given_back(session_id)

    async def _reclaim(self, session_id: str, name: str) -> None:
        """Take the lease, as soon as it is free, for a turn that runs without one.

        Such a turn began while Redis or the sidecar was away, or asked nobody. Who comes next
        is to wait for its end.
        """
        while name in self._here.get(session_id, ()):
            with contextlib.suppress(SessiondError):
                if (await self._leases.acquire(session_id, name, 0.0)).granted:
                    return
            await asyncio.sleep(_RECLAIM_SECONDS)


def _holder(state: LeaseState) -> Holder:
    return Holder(
        instance=state.instance,
        machine=state.machine,
        since_ms=state.since_ms,
        token=state.token,
    )

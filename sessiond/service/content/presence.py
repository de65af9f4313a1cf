"""Presence: who is at a session, and which files each has open, so that others can be warned."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from sessiond.codec import json
from sessiond.errors import StoreDamaged, StoreUnavailable
from sessiond.model import Live, Presence, SessionPresence
from sessiond.store.presence import About, PresenceState, PresenceStore
from sessiond.store.sessions import SessionStore
from sessiond.sync.presence import shared_files

_SWEPT_AT_ONCE = 1000
_LOOKED_AT_ONCE = 8


class Presences:
    """Who is at the sessions of one Redis.

    What changes is announced to who listens to the session or its workspace, as a live event:
    `{"presence": {"change": …, "who": …}}` (see `model.PresenceChange`). Repeating what was said
    is no change. Who crashed is told of as `lost` by whoever notices first: the next to announce,
    leave or look, or a daemon's `sweep`.

    Args:
        store: presence in Redis.
        sessions: the sessions.
        machine: the name under which others see where an instance is.
    """

    def __init__(self, store: PresenceStore, sessions: SessionStore, *, machine: str) -> None:
        self._store = store
        self._sessions = sessions
        self._machine = machine

    @property
    def valid_seconds(self) -> float:
        """How long an announcement counts that is not repeated."""
        return self._store.life_ms / 1000

    async def announce(
        self, session_id: str, instance: str, active_files: Iterable[str] = (), client: str = ""
    ) -> SessionPresence:
        """Say that an instance is at a session, and what it works on; return who is there.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
            TooLarge: 256 others are there, or the names of the files are more than 16 KiB.
            StoreUnavailable: Redis does not answer.
        """
        about = About(self._machine, client, tuple(active_files))
        state = await self._store.announce(session_id, instance, about)
        return await self._told(session_id, state)

    async def leave(self, session_id: str, instance: str) -> None:
        """Say that an instance is not at a session any more; it need not have been.

        Raises:
            NotFound, SessionDeleted, StoreUnavailable.
        """
        await self._told(session_id, await self._store.leave(session_id, instance))

    async def present(self, session_id: str) -> SessionPresence:
        """Return who is at a session.

        Raises:
            NotFound, SessionDeleted, StoreUnavailable.
        """
        return await self._told(session_id, await self._store.look(session_id))

    async def everywhere(self, limit: int) -> list[SessionPresence]:
        """Return the sessions where somebody is, `limit` at most; a few are asked for at once."""
        ids = await self._store.sessions(limit)
        found = []
        for first in range(0, len(ids), _LOOKED_AT_ONCE):
            some = ids[first : first + _LOOKED_AT_ONCE]
            states = await asyncio.gather(*(self._look(session_id) for session_id in some))
            for session_id, state in zip(some, states, strict=True):
                if state:
                    await self._tell(session_id, state)
                if state and state.present:
                    found.append(self._answer(session_id, state.present))
        return found

    async def sweep(self) -> None:
        """Tell of those who crashed where nobody else is to notice.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        ids, until_ms = await self._store.silent(_SWEPT_AT_ONCE)
        for session_id in ids:
            state = await self._look(session_id)
            if state:
                await self._tell(session_id, state)
        if until_ms:
            await self._store.forget(until_ms)

    async def _look(self, session_id: str) -> PresenceState | None:
        """Look at one of several sessions: one that is damaged must not hide the others."""
        with contextlib.suppress(StoreDamaged):
            return await self._store.look(session_id)
        return None

    async def _told(self, session_id: str, state: PresenceState | None) -> SessionPresence:
        if state is None:
            await self._sessions.workspace_of(session_id)  # says which: none, or no more
            raise StoreUnavailable(
                f"session {session_id!r} began at this moment", hint="try again in a moment"
            )
        await self._tell(session_id, state)
        return self._answer(session_id, state.present)

    async def _tell(self, session_id: str, state: PresenceState) -> None:
        for change in state.changes:
            live = Live(
                session_id=session_id, origin=self._sessions.writer, body={"presence": change}
            )
            message = json.encode({"live": live})
            with contextlib.suppress(StoreUnavailable):  # it passes by
                await self._sessions.publish(session_id, state.workspace, message)

    def _answer(self, session_id: str, present: list[Presence]) -> SessionPresence:
        return SessionPresence(
            session_id=session_id,
            present=present,
            shared_files=shared_files(present),
            valid_seconds=self.valid_seconds,
        )

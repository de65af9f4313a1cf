"""`SessionManager`: sessions created, loaded, listed and deleted."""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec import UNSET

from sessiond import __version__, exchange
from sessiond.backend import Backend
from sessiond.client import DaemonClient
from sessiond.config import Configuration, RedisOptions, RetentionOptions, SyncOptions
from sessiond.core import Core
from sessiond.exchange import ImportReport
from sessiond.manager.direct import DirectBackend
from sessiond.manager.session import Session, new_key
from sessiond.model import (
    ArchivedSession,
    ConflictRecord,
    ConflictState,
    Context,
    NewSession,
    Preferences,
    SessionPage,
)
from sessiond.paths import api_socket, host_name
from sessiond.retrying import retried
from sessiond.sync.names import checked

_USER_AGENT = f"sessiond-python/{__version__}"


class SessionManager:
    """Creates, loads, lists and deletes sessions, through the local daemon or directly on Redis.

    Both ways behave the same. Through a daemon is the usual one; directly suits programs that
    run where no daemon does.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @classmethod
    def connect(
        cls,
        *,
        socket: str = "",
        address: str = "",
        token: str = "",
        name: str = "",
        environ: Mapping[str, str] = os.environ,
    ) -> SessionManager:
        """Use a daemon: the local one by default.

        Args:
            socket: the daemon's Unix socket; or
            address: `http://127.0.0.1:PORT`, with
            token: the content of the daemon's token file.
            name: how this program is to be named in the origin of what it writes.
            environ: where the default socket is looked up.
        """
        if not socket and not address:
            socket = str(api_socket(environ.get("SESSIOND_API_SOCKET", ""), environ))
        return cls(DaemonClient(socket=socket, address=address, token=token, name=name))

    @classmethod
    def on_redis(
        cls,
        url: str,
        *,
        name: str = "",
        workspace: str = "default",
        namespace: str = "sessiond",
        archive: str = "",
    ) -> SessionManager:
        """Use a Redis directly; must be called where an event loop runs.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            name: under which this program writes; its host's name by default.
            workspace: where sessions belong that do not say.
            namespace: the first word of all keys.
            archive: the folder of archived sessions, `file:///path`; Redis itself by default.
        """
        configuration = Configuration(
            redis=RedisOptions(url=url, namespace=namespace),
            sync=SyncOptions(workspace=workspace),
            retention=RetentionOptions(archive=archive),
        )
        instance = checked("client", name) if name else host_name()
        return cls(DirectBackend(Core(url, configuration, instance=instance)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of connections; what was accepted is written first."""
        await self._backend.close()

    async def create(
        self,
        *,
        user_id: str | None = None,
        preferences: Preferences | None = None,
        context: Context | None = None,
        session_id: str | None = None,
        title: str | None = None,
        workspace: str | None = None,
        environment: str = "development",
        user_agent: str = "",
    ) -> Session:
        """Create a session.

        Args:
            user_id: whose it is: it begins with this user's preferences.
            preferences: go before those.
            context: one with the current folder as `working_directory` otherwise.
            session_id: one is made up otherwise.
            title: of the session.
            workspace: that of the daemon otherwise.
            environment: for example `production`.
            user_agent: the program; this library otherwise.

        Raises:
            AlreadyExists: the id is taken.
            SessionDeleted: the id belonged to a session that was deleted.
            InvalidInput, DaemonUnreachable, StoreUnavailable.
        """
        new = NewSession(
            session_id=session_id or UNSET,
            user_id=user_id or UNSET,
            title=title or UNSET,
            workspace=workspace or UNSET,
            environment=environment,
            user_agent=user_agent or _USER_AGENT,
            context=context or Context(working_directory=_current_folder()),
            preferences=preferences or {},
        )
        key = new_key()
        return Session(self._backend, await retried(lambda: self._backend.create(new, key=key)))

    async def load(self, session_id: str) -> Session:
        """Load a session.

        Raises:
            NotFound, SessionDeleted: there is none, or no more.
        """
        return Session(self._backend, await retried(lambda: self._backend.load(session_id)))

    async def list(
        self, *, cursor: str | None = None, limit: int = 50, **filters: str
    ) -> SessionPage:
        """List sessions, the most recently active first.

        Args:
            cursor: `cursor` of the page before.
            limit: sessions on a page, at most 500.
            filters: any of workspace, status, user_id, environment.
        """
        return await retried(
            lambda: self._backend.list_sessions(cursor=cursor, limit=limit, **filters)
        )

    async def user_preferences(self, user_id: str) -> Preferences:
        """Return what new sessions of a user begin with; nothing for somebody unknown.

        Raises:
            InvalidInput: this is no user's id.
        """
        return await retried(lambda: self._backend.user_preferences(user_id))

    async def change_user_preferences(self, user_id: str, patch: Preferences) -> Preferences:
        """Change it with a merge patch (None removes a field), and return all of it.

        Raises:
            InvalidInput: the id, or the name of a preference, is not allowed.
            TooLarge: the preferences would be more than 64 KiB of JSON.
        """
        return await retried(lambda: self._backend.change_user_preferences(user_id, patch))

    async def conflicts(
        self, *, state: ConflictState | None = None
    ) -> builtins.list[ConflictRecord]:
        """Return the conflicts of all sessions: `open`, `settled` or `resolved` ones, or all."""
        return await retried(lambda: self._backend.conflicts(state=state))

    async def export(self, session_id: str, folder: Path) -> Path:
        """Write a session's JSON files into a folder of its own below `folder`; return that.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
            InvalidInput: there is something by its name in the folder, or it cannot be written.
        """
        loaded = await retried(lambda: self._backend.load(session_id))
        cache = await retried(lambda: exchange.cached_of(self._backend, session_id))
        return await asyncio.to_thread(exchange.write_folder, loaded, cache, folder)

    async def import_from(self, path: Path) -> builtins.list[ImportReport]:
        """Take in the sessions at a path: JSON files of `export`, or of `opencode export`.

        What is there already is merged with by the rules of the daemon.

        Raises:
            InvalidInput: something there is no session.
            SessionDeleted: a session was deleted; nothing of it, or after it, was written.
        """
        found = await asyncio.to_thread(lambda: list(exchange.read_sessions(path)))
        return [await exchange.import_session(self._backend, each) for each in found]

    async def delete(self, session_id: str, *, expected: str = "", base: str = "") -> None:
        """Delete a session; its id is never used again.

        Args:
            session_id: which.
            expected: only if the session is still at this position.
            base: the position that is known here: what others appended since is kept as conflicts.

        Raises:
            VersionMismatch: it has moved on.
            NotFound, SessionDeleted: there is none, or no more.
        """
        delete = partial(
            self._backend.delete, session_id, expected=expected, base=base, key=new_key()
        )
        await retried(delete)

    async def archive(self, session_id: str, *, idle_seconds: int | None = None) -> ArchivedSession:
        """Let a session that nobody uses leave Redis; it comes back when it is loaded.

        Args:
            session_id: which.
            idle_seconds: for how long nobody must have written to it; None: some minutes.

        Raises:
            SessionInUse: somebody is there, or wrote a moment ago.
            NotFound, SessionDeleted: there is none, or no more.
            ArchiveUnavailable: the archive folder does not take it.
        """
        return await self._backend.archive(session_id, idle_seconds=idle_seconds)

    async def restore(self, session_id: str) -> ArchivedSession:
        """Bring an archived session back without loading it.

        Raises:
            NotFound, SessionDeleted: there is none, or no more.
            ArchiveUnavailable, ArchiveDamaged: its archive cannot be read.
        """
        return await retried(lambda: self._backend.restore(session_id))


def _current_folder() -> str:
    """Return the current folder; nothing where it was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""

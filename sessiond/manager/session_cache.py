"""A session's cache of what tools answered, for programs.

```python
text = await session.cache.through("cat", path="README.md", run=read_it)

found = await session.cache.get("grep", {"pattern": "TODO"}, path="src", scope="tree")
if not found.is_hit:
    lines = ...  # search
    await session.cache.put(found, lines)
```
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from sessiond.backend import Backend
from sessiond.errors import SessiondError
from sessiond.model import (
    CacheAnswer,
    CacheCall,
    CacheContents,
    CacheLookup,
    CacheScope,
    CacheStored,
    NewCacheValue,
)


class Looked(Struct, frozen=True):
    """A call that was looked for in the cache, and what was found."""

    call: CacheCall
    answer: CacheAnswer

    @property
    def is_hit(self) -> bool:
        """Whether `value` is what the tool would answer now."""
        return self.answer.outcome == "hit"

    @property
    def value(self) -> Any:
        """What the tool answered; UNSET where nothing was found."""
        return self.answer.value


class SessionCache:
    """The cache of one session, for a project's folder on this machine.

    An answer is given only while the files that it depends on are what they were when the tool
    ran. Where the daemon or its Redis is away nothing is found or cached, and that is no error.

    Args:
        backend: who keeps the sessions.
        session_id: the session.
        root: the project's folder; empty for the current one.
    """

    def __init__(self, backend: Backend, session_id: str, root: str = "") -> None:
        self._backend = backend
        self._session_id = session_id
        self._root = root

    def below(self, root: str | os.PathLike[str]) -> SessionCache:
        """Return the same cache for another folder on this machine."""
        return SessionCache(self._backend, self._session_id, str(Path(root).absolute()))

    async def get(
        self, tool: str, arguments: Any = None, *, path: str, scope: CacheScope = "file"
    ) -> Looked:
        """Look for what a tool answered; do so before it runs, to `put` its answer.

        Args:
            tool: its name, and of which version where that matters.
            arguments: what else its answer depends on; anything that JSON has.
            path: the file that it depends on, relative to the project's folder; or
            scope: with "tree": the folder below which it depends on all files; with "revision":
                what it tells the history of, as of the commit that is checked out.

        Raises:
            InvalidInput: the path leads out of the project's folder.
            NotFound, SessionDeleted: the session is gone.
        """
        call = CacheCall(tool=tool, arguments=arguments, path=path, scope=scope)
        lookup = CacheLookup(root=self._folder(), calls=[call])
        try:
            (answer,) = (await self._backend.look_up_cached(self._session_id, lookup)).answers
        except SessiondError as error:
            if not error.temporary:
                raise
            answer = CacheAnswer(key="", outcome="unknown", reason=str(error))
        return Looked(call, answer)

    async def put(self, looked: Looked, value: Any) -> CacheStored:
        """Cache what the tool answered, if the files are as they were at the `get`.

        Raises:
            InvalidInput: the value has no JSON.
            NotFound, SessionDeleted: the session is gone.
        """
        key, stamp = looked.answer.key, looked.answer.stamp
        if not stamp:
            return CacheStored(key=key, stored=False, reason=looked.answer.reason)
        new = NewCacheValue(root=self._folder(), call=looked.call, stamp=stamp, value=value)
        try:
            return await self._backend.cache(self._session_id, key, new)
        except SessiondError as error:
            if not error.temporary:
                raise
            return CacheStored(key=key, stored=False, reason=str(error))

    async def through(
        self,
        tool: str,
        arguments: Any = None,
        *,
        path: str,
        run: Callable[[], Awaitable[Any]],
        scope: CacheScope = "file",
    ) -> Any:
        """Return what is cached, else run the tool and cache what it answers; see `get`."""
        looked = await self.get(tool, arguments, path=path, scope=scope)
        if looked.is_hit:
            return looked.value
        value = await run()
        await self.put(looked, value)
        return value

    async def invalidate(self, *paths: str) -> int:
        """Drop what depends on files that changed, and tell others; return how many answers.

        No answer is right because of it; it makes room, and others learn of the change.

        Raises:
            InvalidInput: a path leads out of the project's folder.
            NotFound, SessionDeleted, DaemonUnreachable, StoreUnavailable.
        """
        return (await self._backend.invalidate_cached(self._session_id, list(paths))).dropped

    async def clear(self) -> int:
        """Drop all that the session has cached; return how many answers.

        Raises:
            NotFound, SessionDeleted, DaemonUnreachable, StoreUnavailable.
        """
        return (await self._backend.clear_cached(self._session_id)).dropped

    async def contents(self) -> CacheContents:
        """Return what the session has cached, and how well that serves.

        Raises:
            NotFound, SessionDeleted, DaemonUnreachable, StoreUnavailable.
        """
        return await self._backend.cached(self._session_id)

    def _folder(self) -> str:
        return self._root or str(Path.cwd())

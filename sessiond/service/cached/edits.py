"""What tools write, as the log tells it: what is cached of those files is dropped."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from sessiond.errors import SessiondError
from sessiond.opencode.activity import written_files
from sessiond.policy.caching import paths_below
from sessiond.service.cached.caching import Caches
from sessiond.store.draft import Draft
from sessiond.store.outcome import Committed

_ENDED = ("completed", "error")
_ANY = msgspec.json.Decoder()


class EditWatch:
    """Drops what is cached of files that tools edit, when their calls enter a session's log here.

    No answer is right because of it: each is compared with the files when it is given. It makes
    room, and tells the others.
    """

    def __init__(self, caches: Caches) -> None:
        self._caches = caches
        self._tasks: set[asyncio.Task[None]] = set()

    def note_commit(self, session_id: str, group: list[Draft], committed: Committed) -> None:
        """Take note of operations that were written."""
        del committed
        if group[-1].op == "session.delete":
            self._caches.forget(session_id)
        paths = [path for draft in group for path in edited_files(draft)]
        if paths:
            task = asyncio.create_task(self._invalidate(session_id, paths))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Finish what was noted."""
        await asyncio.gather(*self._tasks)

    async def _invalidate(self, session_id: str, paths: list[str]) -> None:
        with contextlib.suppress(SessiondError):  # what is stale is never given anyway
            await self._caches.invalidate(session_id, paths)


def edited_files(draft: Draft) -> list[str]:
    """Return the files below the project's folder that an operation says a tool has written."""
    if draft.op != "part.put" or b'"tool"' not in draft.json:
        return []
    part = _ANY.decode(draft.json)
    state = part.get("state")
    if not isinstance(state, dict) or state.get("status") not in _ENDED:
        return []
    return paths_below(written_files(part))

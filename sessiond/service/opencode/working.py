"""The working context of a session, kept up by what its opencodes' tools do."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sessiond.opencode.activity import ToolUse, context_after, ended_uses, has_ended
from sessiond.opencode.mapping import Change
from sessiond.service.content.documents import Documents
from sessiond.service.writing import Request
from sessiond.store.sessions import SessionStore


class WorkingContext:
    """Notes files and commands in the contexts of sessions.

    A call of a tool is noted once, when the log first has its end: `new_uses` is asked before the
    changes are written, `note` afterwards. What is written in the moment of a crash may be missing.

    Args:
        store: where the log is.
        documents: where the context is; what others change meanwhile is merged with it.
        client: whose changes they are.
    """

    def __init__(self, store: SessionStore, documents: Documents, client: str) -> None:
        self._store = store
        self._documents = documents
        self._client = client

    async def new_uses(self, session_id: str, changes: Iterable[Change]) -> list[ToolUse]:
        """Return the uses of tools that ended with these changes and that the log has not.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        uses = ended_uses(changes)
        return [use for name, use in uses.items() if not await self._is_logged(session_id, name)]

    async def note(self, session_id: str, uses: list[ToolUse]) -> None:
        """Write uses of tools into the session's context.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
            StoreUnavailable, Contended: it is not written.
        """
        if not uses:
            return
        document = await self._documents.read(session_id, "context")
        patch = context_after(msgspec.to_builtins(document.value), uses)
        request = Request(base=document.version, client=self._client)
        await self._documents.change(session_id, "context", patch, request)

    async def _is_logged(self, session_id: str, name: str) -> bool:
        """Tell whether the log has the end of a call, `<message>/<part>`."""
        message_id, _, part_id = name.partition("/")
        versions = await self._store.part_versions(session_id, message_id)
        if part_id not in versions:
            return False
        (entry,) = await self._store.log.entries_at(session_id, [versions[part_id].last])
        return entry is not None and has_ended(msgspec.json.decode(entry.json))

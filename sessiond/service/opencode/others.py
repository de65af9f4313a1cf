"""What an opencode wrote without knowing what somebody else had written: the other side is kept."""

from __future__ import annotations

from sessiond.opencode.database import Database
from sessiond.opencode.mapping import Machine, neutral_part, replayed_offset
from sessiond.service.content.overwriting import Known, Rewriting
from sessiond.service.content.sessions import Sessions
from sessiond.service.opencode.reading import Read
from sessiond.service.opencode.recorder import TITLE, SourcedChange
from sessiond.service.writing import Request


class Others:
    """Looks after the titles and parts that others wrote, before one opencode replaces them.

    Args:
        read: how to read its database.
        sessions: where the sessions are.
        replica: whose changes are written.
    """

    def __init__(self, read: Read, sessions: Sessions, replica: str) -> None:
        self._read = read
        self._sessions = sessions
        self._replica = replica

    async def keep(self, session_id: str, changes: list[SourcedChange], machine: Machine) -> None:
        """Keep what changes are about to replace, where these did not know it.

        To be called before the changes are written.
        """
        for sourced in changes:
            kind, seq = sourced.change.kind, sourced.seq
            if seq is None or kind not in ("session.put", "part.put"):
                continue
            request = Request(key=f"over-{self._replica}-{seq}", client=self._replica)
            if kind == "session.put":
                await self._keep_title(session_id, sourced, seq, request)
            else:
                await self._keep_part(session_id, sourced, machine, request)

    async def _keep_title(
        self, session_id: str, sourced: SourcedChange, seq: int, request: Request
    ) -> None:
        title = str((sourced.change.body or {}).get("title", ""))[:TITLE]
        before = await self._read(lambda database: database.title_before(session_id, seq))
        if before is not None and before[:TITLE] != title:
            await self._sessions.keep_other_title(session_id, before[:TITLE], title, request)

    async def _keep_part(
        self, session_id: str, sourced: SourcedChange, machine: Machine, request: Request
    ) -> None:
        name, seq = sourced.change.id, sourced.seq or 0

        def before(database: Database) -> Known | None:
            found = database.part_before(session_id, name, seq)
            if found is None:
                return None
            event_id, part = found
            return Known(replayed_offset(event_id) or 0, neutral_part(part, machine))

        async def known() -> Known | None:
            return await self._read(before)

        rewriting = Rewriting(session_id, name, sourced.change.body, request, known)
        await self._sessions.keep_other_part(rewriting)

"""Performing a write: the service that does it, and where it went in the session's log."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeAlias

from msgspec import Struct, structs

from sessiond.model import ConflictRecord, Document, Written, WrittenRecord
from sessiond.service import writes
from sessiond.service.content.conflicts import Conflicts
from sessiond.service.content.documents import Documents
from sessiond.service.content.messages import Messages
from sessiond.service.content.preferences import UserPreferences
from sessiond.service.content.records import Records
from sessiond.service.content.sessions import Created, Sessions
from sessiond.service.writes import Write
from sessiond.store.log import LogReader
from sessiond.sync.position import Position, parse_position

Result: TypeAlias = Created | Written | WrittenRecord | Document | ConflictRecord | Position
"""What came of a session's write, by its kind."""


class Performed(Struct, frozen=True):
    """What came of a write, and the place of its last operation in the log.

    Of a user's preferences the result is a ChangedPreferences, and the place what it is known by.
    """

    result: Any
    position: Position

    def as_the_first(self, first: object) -> Performed:
        """Return this as its writer is told: what was new when it was performed first is still new.

        Args:
            first: what came of it then; anything else than a `Performed` if that is not known.
        """
        if isinstance(first, Performed) and isinstance(self.result, Created | Written):
            result = structs.replace(self.result, duplicate=first.result.duplicate)
            return structs.replace(self, result=result)
        return self


class Performer:
    """Performs writes on Redis. The same write performed once more comes to the same.

    Args:
        log: tells the place of a write whose answer names only its offset.
        sessions, messages, records, documents, conflicts, preferences: the services.
    """

    def __init__(
        self,
        log: LogReader,
        *,
        sessions: Sessions,
        messages: Messages,
        records: Records,
        documents: Documents,
        conflicts: Conflicts,
        preferences: UserPreferences,
    ) -> None:
        self._log = log
        self._sessions = sessions
        self._messages = messages
        self._records = records
        self._documents = documents
        self._conflicts = conflicts
        self._preferences = preferences

    async def perform(self, write: Write) -> Performed:
        """Perform a write.

        Raises:
            SessiondError: what the service raises.
        """
        if isinstance(write, writes.ChangePreferences):
            changed = await self._preferences.perform(write.user_id, write.patch, write.request)
            return Performed(changed, changed.position)
        result = await self._result(write)
        position = _position(result)
        if not position.epoch:
            (entry,) = await self._log.entries_at(write.session_id, [position.offset])
            position = entry.position if entry else position
        return Performed(result, position)

    async def _result(self, write: Write) -> Result:
        session_id, request = write.session_id, write.request
        pending: Awaitable[Result]
        match write:
            case writes.Append():
                pending = self._messages.append(session_id, write.messages, request)
            case writes.ChangeDocument():
                pending = self._documents.change(
                    session_id, write.name, write.patch, request, replace=write.replace
                )
            case writes.Edit():
                pending = self._records.edit(session_id, write.message_id, write.patch, request)
            case writes.PutPart():
                pending = self._records.put_part(
                    session_id, write.message_id, write.part_id, write.part, request
                )
            case writes.Remove():
                pending = self._records.remove(session_id, write.message_id, request)
            case writes.RemovePart():
                pending = self._records.remove_part(
                    session_id, write.message_id, write.part_id, request
                )
            case writes.Create():
                new = structs.replace(write.new, session_id=session_id)
                pending = self._sessions.create(new, request)
            case writes.Delete():
                pending = self._sessions.delete(session_id, request)
            case writes.Resolve():
                pending = self._conflicts.resolve(session_id, write.number, write.choice, request)
        return await pending


def _position(result: Result) -> Position:
    match result:
        case Position():
            return result
        case Written():
            return parse_position(result.position)
        case WrittenRecord() | Document():
            return parse_position(result.version)
        case Created():
            return result.position
        case ConflictRecord():
            return (
                parse_position(result.resolution.version) if result.resolution else Position("", 0)
            )

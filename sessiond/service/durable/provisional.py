"""Answers to writes that are journaled and not done yet: of the usual shape, without a place."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import structs

from sessiond.errors import StoreUnavailable
from sessiond.model import (
    DOCUMENTS,
    JOURNALED,
    Conversation,
    Document,
    Metadata,
    PositionReply,
    Preferences,
    Session,
    Written,
    WrittenRecord,
)
from sessiond.service import writes
from sessiond.service.clock import moment
from sessiond.service.writes import Write
from sessiond.sync.position import START

Provisional: TypeAlias = Session | Written | WrittenRecord | Document | PositionReply | Preferences


def provisional(write: Write, version: str) -> Provisional:
    """Return the answer to a write; its position in the log is empty, or the log's beginning.

    Of a changed document it has what was asked for, not what it will be merged with.

    Args:
        write: with the names that it got.
        version: what stands for the version that it will have.

    Raises:
        StoreUnavailable: of a decision nothing can be said before it is made.
    """
    match write:
        case writes.Create():
            return _session(write, version)
        case writes.Append():
            records = [
                WrittenRecord(id=str(message.id), version=version) for message in write.messages
            ]
            return Written(records=records, position="", durability=JOURNALED)
        case writes.Edit() | writes.Remove() | writes.PutPart() | writes.RemovePart():
            return WrittenRecord(id=write.record_id, version=version, durability=JOURNALED)
        case writes.ChangeDocument():
            return Document(
                name=write.name, value=write.patch, version=version, durability=JOURNALED
            )
        case writes.Delete():
            return PositionReply(session_id=write.session_id, position="", durability=JOURNALED)
        case writes.ChangePreferences():
            return dict(write.patch)
        case writes.Resolve():
            raise StoreUnavailable(
                "the decision is journaled, and is made when Redis answers again",
                hint="read the conflict then, to see what became of it",
            )


def _session(write: writes.Create, version: str) -> Session:
    new, at = write.new, moment(write.request.at_ms)
    metadata = Metadata(
        session_id=write.session_id,
        created_at=at,
        last_activity=at,
        user_agent=new.user_agent,
        environment=new.environment,
        title=new.title,
        user_id=new.user_id,
        workspace=new.workspace,
    )
    return Session(
        metadata=metadata,
        conversation=Conversation(),
        context=structs.replace(new.context),
        preferences=dict(new.preferences),
        position=str(START),
        versions=dict.fromkeys(DOCUMENTS, version),
        durability=JOURNALED,
    )

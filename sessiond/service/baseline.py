"""What a session was at a position of its log: what somebody had before them who changed it."""

from __future__ import annotations

import msgspec

from sessiond.model import Message, Metadata, Session
from sessiond.service.intake import UNKNOWN, Base, KnownMessage
from sessiond.store.log import LogReader
from sessiond.sync.outline import Outline
from sessiond.sync.position import Position
from sessiond.sync.replica import Conversation

_MESSAGE = msgspec.json.Decoder(Message)


async def base_at(log: LogReader, session_id: str, position: Position) -> Base | None:
    """Return a session as it was at a position; None where the log has no such position.

    Raises:
        StoreDamaged, StoreUnavailable.
    """
    conversation, outline = Conversation(), Outline()
    written: dict[str, str] = {}
    parts: dict[str, dict[str, str]] = {}
    end = Position("", 0)
    async for page in log.pages(session_id, until=position.offset):
        if page.reset:
            return None
        end = page.position
        for entry in page.entries:
            outline.apply(entry)
            conversation.apply(entry.op, entry.id, entry.offset, entry.json)
            message_id, _, part_id = entry.id.partition("/")
            match entry.op:
                case "message.append" | "message.edit":
                    written[message_id] = str(entry.position)
                case "part.put" | "part.remove":
                    parts.setdefault(message_id, {})[part_id] = str(entry.position)
    if end != position:
        return None
    messages = map(_MESSAGE.decode, conversation.messages())
    known = {
        message.id: KnownMessage(message, written[message.id], parts.get(message.id, {}))
        for message in messages
    }
    metadata = msgspec.convert(outline.documents["metadata"], Metadata)
    return Base(
        metadata=metadata,
        messages=known,
        versions={str(name): version for name, version in outline.versions.items()},
    )


def unknown_base(current: Session) -> Base:
    """Return what stands in for a base that nobody knows: what is there now, and nothing removed.

    `current`: the session as it is.
    """
    messages = {
        message.id: KnownMessage(message, UNKNOWN) for message in current.conversation.messages
    }
    return Base(metadata=current.metadata, messages=messages, is_known=False)

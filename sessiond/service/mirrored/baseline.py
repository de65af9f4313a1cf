"""What a session was at a position of its log: what somebody had before them who changed it."""

from __future__ import annotations

import msgspec

from sessiond.model import Message, Metadata, Session
from sessiond.service.mirrored.intake import UNKNOWN, Base, KnownMessage
from sessiond.store.log import LogReader
from sessiond.sync.entry import Entry
from sessiond.sync.outline import Outline
from sessiond.sync.position import Position
from sessiond.sync.replica import Conversation

_MESSAGE = msgspec.json.Decoder(Message)


class BaseFold:
    """A session folded from its log, with the versions of all that a change may be based on."""

    def __init__(self) -> None:
        self._conversation = Conversation()
        self._outline = Outline()
        self._written: dict[str, str] = {}
        self._parts: dict[str, dict[str, str]] = {}

    @property
    def position(self) -> Position:
        """The place of the last operation that was applied."""
        return self._outline.position

    def apply(self, entry: Entry) -> None:
        """Take the next operation of the log.

        Raises:
            StoreDamaged: it does not fit those before it.
        """
        self._outline.apply(entry)
        self._conversation.apply(entry.op, entry.id, entry.offset, entry.json)
        message_id, _, part_id = entry.id.partition("/")
        match entry.op:
            case "message.append" | "message.edit":
                self._written[message_id] = str(entry.position)
            case "part.put" | "part.remove":
                self._parts.setdefault(message_id, {})[part_id] = str(entry.position)

    def base(self) -> Base:
        """Return the session as it was after the last operation."""
        known = {
            message.id: KnownMessage(
                message, self._written[message.id], self._parts.get(message.id, {})
            )
            for message in map(_MESSAGE.decode, self._conversation.messages())
        }
        return Base(
            metadata=msgspec.convert(self._outline.documents["metadata"], Metadata),
            messages=known,
            versions={str(name): version for name, version in self._outline.versions.items()},
        )


async def base_at(log: LogReader, session_id: str, position: Position) -> Base | None:
    """Return a session as it was at a position; None where the log has no such position.

    Raises:
        StoreDamaged, StoreUnavailable.
    """
    fold = BaseFold()
    async for page in log.pages(session_id, until=position.offset):
        if page.reset:
            return None
        for entry in page.entries:
            fold.apply(entry)
    return fold.base() if fold.position == position else None


def unknown_base(current: Session) -> Base:
    """Return what stands in for a base that nobody knows: what is there now, and nothing removed.

    `current`: the session as it is.
    """
    messages = {
        message.id: KnownMessage(message, UNKNOWN) for message in current.conversation.messages
    }
    return Base(metadata=current.metadata, messages=messages, is_known=False)

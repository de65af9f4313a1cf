"""A conversation rebuilt from its log: the fold that every reader of the log agrees on. Pure.

JSON of messages stays undecoded: most of it only passes through. A message's own body may carry
parts; parts written on their own replace those of the same id, or join behind them.
"""

from __future__ import annotations

from sessiond.errors import StoreDamaged
from sessiond.sync.parts import assemble


class Conversation:
    """The messages of a session, in the order of their appends.

    `apply` takes the operations of a log one after the other, each exactly once.
    """

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._changed_parts: dict[str, dict[str, bytes | None]] = {}

    def __len__(self) -> int:
        return len(self._bodies)

    def apply(self, op: str, record_id: str, offset: int, body: bytes) -> None:
        """Take one operation; those that are not about messages change nothing here.

        Raises:
            StoreDamaged: an edit or a part of a message that is not there.
        """
        match op:
            case "message.append":
                self._bodies[record_id] = body
                self._first[record_id] = self._last[record_id] = offset
            case "message.edit":
                self._check_known(record_id, offset)
                self._bodies[record_id] = body
                self._last[record_id] = offset
            case "message.remove":
                self._check_known(record_id, offset)
                del self._bodies[record_id]
                self._changed_parts.pop(record_id, None)
            case "part.put" | "part.remove":
                message_id, _, part_id = record_id.partition("/")
                self._check_known(message_id, offset)
                parts = self._changed_parts.setdefault(message_id, {})
                parts[part_id] = body if op == "part.put" else None
                self._last[message_id] = offset

    def messages(self) -> list[bytes]:
        """Return the JSON of all messages."""
        return [self.message(name) for name in self._bodies]

    def messages_with_offsets(self) -> list[tuple[int, bytes]]:
        """Return the JSON of all messages, each with the offset of its last change."""
        return [(self._last[name], self.message(name)) for name in self._bodies]

    def messages_after(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return up to `limit` messages first written after an offset, each with that offset."""
        ids = [name for name in self._bodies if self._first[name] > after]
        return [(self._first[name], self.message(name)) for name in ids[:limit]]

    def message(self, message_id: str) -> bytes:
        """Return one message's JSON with its parts as they are now.

        Raises:
            KeyError: there is no such message, or no more.
        """
        body = self._bodies[message_id]
        changed = self._changed_parts.get(message_id)
        return assemble(body, changed) if changed else body

    def body(self, message_id: str) -> bytes | None:
        """Return a message as it was written last, without parts written on their own."""
        return self._bodies.get(message_id)

    def _check_known(self, message_id: str, offset: int) -> None:
        if message_id not in self._bodies:
            raise StoreDamaged(
                f"operation {offset} changes message {message_id!r}, which is not there"
            )

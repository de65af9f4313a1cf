"""How many tokens conversations take: counted once per message, whoever loads the session.

A long conversation takes a while to count. It is done in slices, and others go on in between.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from sessiond.model import Message
from sessiond.policy import tokens
from sessiond.sync.position import Position

_REMEMBERED_MESSAGES = 200_000
_SLICE_SECONDS = 0.002
_LARGE_BYTES = 131_072
"""A message of more takes longer than a slice: it is counted in a thread."""

_MESSAGE = msgspec.json.Decoder(Message)


class Counted(Struct, frozen=True):
    """The tokens of a session's messages, by the offsets of their last changes.

    They hold as long as the log still has `position`.
    """

    position: Position
    by_offset: dict[int, int]


class Usage:
    """Remembers what was counted: of the sessions used last, up to 200,000 messages."""

    def __init__(self) -> None:
        self._counted: OrderedDict[str, Counted] = OrderedDict()
        self._remembered = 0

    def counted(self, session_id: str) -> Counted | None:
        """Return what was counted at the last load of a session."""
        return self._counted.get(session_id)

    async def count(
        self,
        session_id: str,
        position: Position,
        messages: list[tuple[int, bytes]],
        before: Counted | None,
    ) -> int:
        """Return about how many tokens a conversation takes.

        Args:
            session_id: the session.
            position: where its log ends.
            messages: its messages in JSON, each with the offset of its last change.
            before: what was counted, if the log still has that position.
        """
        known = before.by_offset if before else {}
        counts = iter(await count_messages(body for at, body in messages if at not in known))
        by_offset = {
            offset: known[offset] if offset in known else next(counts) for offset, _ in messages
        }
        self._remember(session_id, Counted(position, by_offset))
        return sum(by_offset.values())

    def _remember(self, session_id: str, counted: Counted) -> None:
        forgotten = self._counted.pop(session_id, None)
        self._remembered += len(counted.by_offset) - len(forgotten.by_offset if forgotten else ())
        self._counted[session_id] = counted
        while self._remembered > _REMEMBERED_MESSAGES:
            _, oldest = self._counted.popitem(last=False)
            self._remembered -= len(oldest.by_offset)


async def count_messages(bodies: Iterable[bytes]) -> list[int]:
    """Return about how many tokens each message takes; nobody waits longer than a slice for it."""
    counts: list[int] = []
    pause_at = time.perf_counter() + _SLICE_SECONDS
    for body in bodies:
        if len(body) > _LARGE_BYTES:
            counts.append(await asyncio.to_thread(count_message, body))
        else:
            counts.append(count_message(body))
        if time.perf_counter() >= pause_at:
            await asyncio.sleep(0)
            pause_at = time.perf_counter() + _SLICE_SECONDS
    return counts


def count_message(body: bytes) -> int:
    """Return about how many tokens a message takes, given its JSON."""
    return tokens.of_message(_MESSAGE.decode(body))

"""One attached opencode process: commands go to it in order, answers come back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from msgspec import Struct

from sessiond.codec import json
from sessiond.errors import InstanceGone
from sessiond.opencode.protocol import (
    Applied,
    Apply,
    Attachment,
    Notify,
    OpencodeEvent,
    Toast,
)
from sessiond.service.live.feed import Event, Subscription

_REMEMBERED = 4096


class _Remembered:
    """The ids of the last events; those without an id are never remembered."""

    def __init__(self) -> None:
        self._ids: deque[str] = deque(maxlen=_REMEMBERED)

    def add(self, events: list[OpencodeEvent]) -> None:
        self._ids.extend(event.id for event in events if event.id)

    def without(self, events: list[OpencodeEvent]) -> list[OpencodeEvent]:
        known = set(self._ids)
        return [event for event in events if event.id not in known]


class Instance:
    """An attached opencode process.

    Args:
        name: the name the plugin gave it.
        attachment: what the plugin said of it.
        buffer_bytes: commands that may wait for it before it is cut off.
    """

    def __init__(self, name: str, attachment: Attachment, buffer_bytes: int) -> None:
        self.name = name
        self.attachment = attachment
        self.listeners = 0
        self._commands = Subscription(buffer_bytes)
        self._batches: dict[int, asyncio.Future[Applied]] = {}
        self._last_batch = 0
        self._taken = _Remembered()
        self._shown = _Remembered()
        self._gone = False

    def take_over(self, former: Instance) -> None:
        """Go on as the same process, which attached anew: it may repeat what it told before."""
        self._taken, self._shown = former._taken, former._shown

    def untaken(self, events: list[OpencodeEvent]) -> list[OpencodeEvent]:
        """Return the events that are not done with: a process repeats an unanswered request."""
        return self._taken.without(events)

    def note_taken(self, events: list[OpencodeEvent]) -> None:
        """Take note that events are done with."""
        self._taken.add(events)

    def unshown(self, events: list[OpencodeEvent]) -> list[OpencodeEvent]:
        """Return the events that were not asked for here before: they are to be shown once."""
        fresh = self._shown.without(events)
        self._shown.add(fresh)
        return fresh

    async def commands(self) -> AsyncIterator[list[Event]]:
        """Yield the commands for the plugin, as they come."""
        while True:
            yield await self._commands.take()

    async def apply(
        self,
        session_id: str,
        events: Sequence[OpencodeEvent],
        limit_seconds: float,
        *,
        announce: bool = True,
    ) -> Applied:
        """Have opencode take events of a session, and return what became of them.

        Raises:
            InstanceGone: the process went away before it answered, or took too long.
        """
        if self._gone:
            raise InstanceGone(f"instance {self.name} is not attached any more")
        self._last_batch += 1
        batch = self._last_batch
        answer: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        self._batches[batch] = answer
        command = Apply(batch=batch, session_id=session_id, events=list(events), announce=announce)
        self._send("apply", command)
        try:
            async with asyncio.timeout(limit_seconds):
                outcome = await answer
        except TimeoutError as error:
            raise InstanceGone(f"instance {self.name} does not answer") from error
        finally:
            del self._batches[batch]
        return outcome

    def answered(self, outcome: Applied) -> None:
        """Take the plugin's report on a batch."""
        answer = self._batches.get(outcome.batch)
        if answer and not answer.done():
            answer.set_result(outcome)

    def notify(self, events: Sequence[OpencodeEvent]) -> None:
        """Show events to the views of this process."""
        if events and not self._gone:
            self._send("notify", Notify(events=list(events)))

    def toast(self, message: str) -> None:
        """Tell the person at this process something."""
        if not self._gone:
            self._send("toast", Toast(message=message))

    def leave(self) -> None:
        """Give up on the process: what waits for an answer from it fails."""
        self._gone = True
        error = InstanceGone(f"instance {self.name} went away")
        self._commands.fail(error)
        for answer in self._batches.values():
            if not answer.done():
                answer.set_exception(error)

    def _send(self, name: str, command: Struct) -> None:
        self._commands.offer(Event(name, json.encode(command)))

"""The opencode processes that use one database. What comes in is written through one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sessiond.errors import InstanceGone
from sessiond.opencode.protocol import Applied, OpencodeEvent
from sessiond.service.opencode.instance import Instance

_SECONDS_OF_ONE = 10.0
_SECONDS_OF_SEVERAL = 3.0


class Processes:
    """Attached processes. One process may be attached for several folders; it has one view."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}

    def __bool__(self) -> bool:
        return bool(self._instances)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._instances.values())

    def add(self, instance: Instance) -> None:
        """Add one, or one that came back."""
        self._instances[instance.name] = instance

    def prefer(self, instance: Instance) -> None:
        """Let one write from now on: a person waits there."""
        if self._instances.get(instance.name) is instance:
            others = {name: one for name, one in self._instances.items() if one is not instance}
            self._instances = {instance.name: instance} | others

    def remove(self, instance: Instance) -> bool:
        """Remove one; False when another attachment took its place."""
        if self._instances.get(instance.name) is not instance:
            return False
        del self._instances[instance.name]
        return True

    @property
    def echo(self) -> bool:
        """Whether views are moved by writing parts again, which opencode logs as its own."""
        return any(not instance.attachment.live for instance in self)

    def show(self, events: Sequence[OpencodeEvent], besides: Instance | None = None) -> None:
        """Show events to the views of every process, besides those of one."""
        shown = {besides.attachment.pid} if besides else set()
        for instance in self:
            if instance.attachment.pid not in shown:
                shown.add(instance.attachment.pid)
                instance.notify(events)

    def toast(self, message: str) -> None:
        """Tell the people at all of them something."""
        for instance in self:
            instance.toast(message)

    async def apply(
        self, session_id: str, events: Sequence[OpencodeEvent], *, announce: bool
    ) -> Applied:
        """Have one of them write events, and show them in all if they are to be announced.

        Raises:
            InstanceGone: none is attached, or the one went away.
        """
        writer = next(iter(self), None)
        if writer is None:
            raise InstanceGone("no opencode is attached")
        limit = _SECONDS_OF_SEVERAL if len(self._instances) > 1 else _SECONDS_OF_ONE
        try:
            answer = await writer.apply(session_id, events, limit, announce=announce)
        except InstanceGone:
            if self._instances.get(writer.name) is writer:  # suspended, perhaps: another one first
                self._instances[writer.name] = self._instances.pop(writer.name)
            raise
        if announce:
            self.show(events, besides=writer)
        return answer

"""What those who watch a session at this daemon are told of writes that wait for Redis. Pure."""

from __future__ import annotations

from typing import Any

from sessiond.codec import json
from sessiond.model import JOURNALED, JournaledOperation
from sessiond.service.clock import moment
from sessiond.service.durable.waiting import Journaled
from sessiond.service.live.feed import Event
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    Create,
    Edit,
    PutPart,
    Resolve,
    Write,
    op_of,
)
from sessiond.sync.parts import completed


def announcements(waiting: Journaled, writer: str) -> list[Event]:
    """Return the passing events of a write, one for each operation that it asks for.

    Args:
        waiting: the write, with its times and names.
        writer: who writes in this life of the daemon.

    Raises:
        InvalidInput: nobody can be told of it, and it will be refused.
    """
    write = waiting.write
    request = write.request
    origin = f"{request.client}@{writer}" if request.client else writer
    replace = isinstance(write, ChangeDocument) and write.replace
    return [
        Event(
            JOURNALED,
            json.encode(
                JournaledOperation(
                    op=op_of(write),
                    session_id=write.session_id,
                    version=waiting.version,
                    at=moment(request.at_ms),
                    origin=origin,
                    id=record_id,
                    body=body,
                    replace=replace,
                )
            ),
        )
        for record_id, body in _asked_for(write)
    ]


def _asked_for(write: Write) -> list[tuple[str, Any]]:
    """Return the id of each record that a write is about, and what it is to become.

    Raises:
        InvalidInput: it is about a message that is none.
    """
    body: Any = {}
    match write:
        case Append():
            at = moment(write.request.at_ms)
            messages = [completed(new, str(new.id), at) for new in write.messages]
            return [(message.id, message) for message in messages]
        case Edit() | ChangeDocument():
            body = write.patch
        case PutPart():
            body = {"id": write.part_id} | write.part
        case Create():
            body = write.new
        case Resolve():
            body = write.choice
    return [(write.record_id, body)]

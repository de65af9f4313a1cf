"""Sessions and pages of them in JSON, made of messages that stay undecoded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sessiond.codec import json
from sessiond.model import DOCUMENTS, DocumentName
from sessiond.sync.entry import Entry, operation_json
from sessiond.sync.paging import fitting
from sessiond.sync.position import Position


def session_json(
    documents: Mapping[DocumentName, Any],
    messages: list[bytes],
    position: Position,
    versions: Mapping[Any, str],
    context_window_used: int,
) -> bytes:
    """Return a `model.Session`; the messages, often megabytes, are copied only once."""
    encoded = {name: json.encode(documents[name]) for name in DOCUMENTS}
    head = b'{"metadata":%b,"conversation":{"messages":[' % encoded["metadata"]
    tail = (
        b'],"total_messages":%d,"context_window_used":%d},'
        b'"context":%b,"preferences":%b,"position":%b,"versions":%b}'
    ) % (
        len(messages),
        context_window_used,
        encoded["context"],
        encoded["preferences"],
        json.encode(str(position)),
        json.encode(versions),
    )
    if not messages:
        return head + tail
    first, *others = messages
    bodies = [head + first, *others]
    bodies[-1] += tail
    return b",".join(bodies)


def message_page_json(found: list[tuple[int, bytes]], limit: int, position: Position) -> bytes:
    """Return a `model.MessagePage`, of `PAGE_BYTES` or one message at most.

    Args:
        found: messages and the offsets where each was first written; one more than there is room
            for says that another page follows.
        limit: how many the page has at most.
        position: where the log ends.
    """
    page = found[: min(limit, fitting(len(body) for _, body in found))]
    rest = {"position": str(position), "next": page[-1][0] if len(found) > len(page) else None}
    bodies = b",".join(body for _, body in page)
    return b'{"messages":[%b],%b' % (bodies, json.encode(rest)[1:])


def operation_page_json(
    session_id: str,
    entries: Iterable[Entry],
    position: Position,
    reset: str | None = None,
    *,
    more: bool = False,
) -> bytes:
    """Return a `model.OperationPage`."""
    operations = b",".join(operation_json(session_id, entry) for entry in entries)
    rest = json.encode({"position": str(position), "more": more, "reset": reset})
    return b'{"operations":[%b],%b' % (operations, rest[1:])

"""Messages made of parts: what of the specification's fields follows from them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET

from sessiond.codec import json
from sessiond.errors import InvalidInput
from sessiond.model import Message, NewMessage, Part
from sessiond.sync.names import checked

_MESSAGE = msgspec.json.Decoder(Message)
_PART = msgspec.json.Decoder(Part)
_OWN = "own-"


def derived_content(parts: Iterable[Part]) -> str:
    """Return the text of a message: its text parts, joined by a line break."""
    texts = (part.get("text") for part in parts if part.get("type") == "text")
    return "\n".join(text for text in texts if isinstance(text, str))


def derived_tool_calls(parts: Iterable[Part]) -> list[Any]:
    """Return the names of the tools that a message called, in order."""
    return [part["tool"] for part in parts if part.get("type") == "tool" and "tool" in part]


def completed(new: NewMessage, message_id: str, timestamp: datetime) -> Message:
    """Return the message that a writer gave, with what it left out.

    Raises:
        InvalidInput: see check_parts.
    """
    check_parts(new)
    return Message(
        id=new.id or message_id,
        timestamp=new.timestamp or timestamp,
        role=new.role,
        content=derived_content(new.parts) if new.parts else new.content or "",
        tool_calls=derived_tool_calls(new.parts) if new.parts else new.tool_calls or [],
        metadata=new.metadata,
        parts=new.parts,
    )


def parts_of(message: Message) -> list[Part]:
    """Return a message's parts; what one without parts says itself counts as its first."""
    if message.parts is not UNSET:
        return message.parts
    parts: list[Part] = []
    if message.content:
        parts.append({"id": f"{_OWN}content", "type": "text", "text": message.content})
    for index, call in enumerate(message.tool_calls):
        parts.append({"id": f"{_OWN}call-{index}", "type": "tool", "tool": call})
    return parts


def with_parts(message: Message, parts: list[Part]) -> Message:
    """Return the message with these parts, and with what is derived from them."""
    return Message(
        id=message.id,
        timestamp=message.timestamp,
        role=message.role,
        content=derived_content(parts),
        tool_calls=derived_tool_calls(parts),
        metadata=message.metadata,
        parts=parts,
    )


def edited(before: Message, body: Message) -> Message:
    """Return a message whose body was written anew; parts written on their own stay."""
    if before.parts is UNSET:
        return body
    own = parts_of(body) if body.parts is UNSET else []
    others = [part for part in before.parts if not part["id"].startswith(_OWN)]
    return with_parts(body, own + others)


def assemble(body: bytes, changed: Mapping[str, bytes | None]) -> bytes:
    """Return a message's JSON with its parts as they are now.

    Args:
        body: the message as last written, perhaps with parts of its own.
        changed: part id → the part as put since, or None for a removed one, oldest first.
    """
    message = _MESSAGE.decode(body)
    parts = {part["id"]: part for part in parts_of(message)}
    for part_id, part in changed.items():
        if part is None:
            parts.pop(part_id, None)
        else:
            parts[part_id] = _PART.decode(part)
    return json.encode(with_parts(message, list(parts.values())))


def check_parts(new: NewMessage) -> None:
    """Check the parts a writer gave with a message.

    Raises:
        InvalidInput: a part lacks `id` or `type`, an id stands twice, or `content` or
            `tool_calls` is given beside parts and says something else.
    """
    if new.parts is UNSET:
        return
    for part in new.parts:
        check_part(part)
    ids = [part["id"] for part in new.parts]
    if len(set(ids)) != len(ids):
        raise InvalidInput("two parts of the message have the same id")
    derived = (derived_content(new.parts), derived_tool_calls(new.parts))
    given = (new.content, new.tool_calls)
    for name, value, expected in zip(("content", "tool_calls"), given, derived, strict=True):
        if value not in (UNSET, expected):
            raise InvalidInput(
                f"`{name}` differs from what follows from `parts`",
                hint=f"leave `{name}` out; it is derived from the parts",
            )


def check_part(part: Part) -> None:
    """Check that a part has a type and an id, and that the id is not one of ours.

    Raises:
        InvalidInput: it has not.
    """
    for name in ("id", "type"):
        if not isinstance(part.get(name), str) or not part[name]:
            raise InvalidInput(f"every part needs a text `{name}`")
    checked("part_id", part["id"])
    check_not_own(part["id"])


def check_not_own(part_id: str) -> None:
    """Refuse the ids under which a message's own content counts as parts.

    Raises:
        InvalidInput: it is one of them.
    """
    if part_id.startswith(_OWN):
        raise InvalidInput(
            f"part ids that begin with {_OWN!r} stand for the message's own content",
            hint="edit the message, or choose another id",
        )

"""Messages made shorter, for all to see: stubs for tool outputs, and texts that are cut. Pure."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, structs

from sessiond.model import Message, Part
from sessiond.policy import tokens

LARGE_OUTPUT = 100
"""From so many tokens on, a tool's output is large."""

_OUTPUTS = ("output", "error")
_MARK_TOKENS = 24
"""What a mark takes at most, whatever number stands in it."""


def cut_mark(left_out: int) -> str:
    """Return what stands where a text was cut."""
    return f"\n[… about {left_out} tokens left out]"


def output_stub(size: int) -> str:
    """Return what stands for a tool's output."""
    return f"[tool output of about {size} tokens left out]"


def with_stubs(message: Message) -> tuple[Message, list[str]]:
    """Return a message with a stub for each large tool output, and the ids of its parts with one.

    A `tool` message is an output as a whole. Calls stay as they are, with what they were called
    with.
    """
    if message.role == "tool" and not message.parts:
        size = tokens.of_text(message.content)
        if size < LARGE_OUTPUT:
            return message, []
        return structs.replace(message, content=output_stub(size)), []
    if not message.parts:
        return message, []
    parts = [_with_stub(part) for part in message.parts]
    ids = [
        str(after["id"])
        for before, after in zip(message.parts, parts, strict=True)
        if after is not before
    ]
    return (structs.replace(message, parts=parts), ids) if ids else (message, [])


def cut(message: Message, room: int) -> Message:
    """Return the beginning of a message, so that it takes at most `room` tokens.

    First large tool outputs go, then all but its text, then the end of the text. What is left says
    how much is missing. `room` is at least `window.LEAST_TOKENS`, or nothing of the text may stay.
    """
    shorter, _ = with_stubs(message)
    if tokens.of_message(shorter) <= room:
        return shorter
    whole = tokens.of_message(message)
    head = _beginning(message.content, room - tokens.OF_A_MESSAGE - _MARK_TOKENS)
    left_out = whole - tokens.OF_A_MESSAGE - tokens.of_text(head)
    text = head + cut_mark(left_out)
    parts = [{"id": _text_id(message), "type": "text", "text": text}] if message.parts else UNSET
    return structs.replace(message, content=text, tool_calls=[], parts=parts)


def _with_stub(part: Part) -> Part:
    state = part.get("state")
    if part.get("type") != "tool" or not isinstance(state, dict):
        return part
    stubs = {
        name: output_stub(size)
        for name in _OUTPUTS
        if (size := tokens.of_value(state.get(name))) >= LARGE_OUTPUT
    }
    return {**part, "state": _without_attachments(state) | stubs} if stubs else part


def _without_attachments(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out what opencode keeps of the same output elsewhere in the part."""
    return {name: value for name, value in state.items() if name not in ("metadata", "attachments")}


def _text_id(message: Message) -> str:
    """Return the id of the first text of a message with parts; that of any, without text."""
    parts = message.parts or []
    texts = [part for part in parts if part.get("type") == "text"]
    return str((texts or parts)[0]["id"])


def _beginning(text: str, room: int) -> str:
    """Return the longest beginning of a text that takes at most `room` tokens, by bisection."""
    shortest, longest = 0, len(text)
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        if tokens.of_text(text[:middle]) <= room:
            shortest = middle
        else:
            longest = middle - 1
    return text[:shortest]

"""How many tokens a text takes in a model's context: an estimate by classes of bytes. Pure.

Every byte and every word weighs what it did, by least squares, in some 1,000 pieces of prose in
seven languages, of code and of JSON, counted with the vocabulary o200k_base. Models differ from one
another by more than the estimate errs. `tests/policy/test_tokens.py` measures it on other texts.
"""

from __future__ import annotations

import string
from typing import Any

from sessiond.codec import json
from sessiond.model import Message, Part

OF_A_MESSAGE = 4
"""Tokens that every message takes beside its content: its role, where it begins and ends."""

OF_A_FILE = 1200
"""Tokens of a part that is a file: what a model takes for a picture of middling size."""

_WORD = 643
"""Weights are thousandths of a token."""

_STRETCH_BYTES = 65_536
"""So much of a text is looked at in one go, so that other threads have their turn."""


def _leads(first: int, last: int) -> bytes:
    return bytes(range(first, last + 1))


_ASCII = (
    (string.ascii_lowercase.encode(), 110),
    (string.ascii_uppercase.encode(), 285),
    (string.digits.encode(), 681),
    (string.punctuation.encode(), 801),
    (b"\n", 208),
)
_BEYOND = (
    (_leads(0xC2, 0xDF), 300),  # Latin with marks, Greek, Cyrillic, Hebrew, Arabic
    (_leads(0xE0, 0xE2), 1000),  # Indic scripts, typographic signs
    (_leads(0xE3, 0xE3), 718),  # Kana
    (_leads(0xE4, 0xE9), 898),  # Han
    (_leads(0xEA, 0xEF), 709),  # Hangul
    (_leads(0xF0, 0xF4), 2000),  # emoji
)
"""The first byte of a character in UTF-8 says of which scripts it may be."""

_NOT_SENT = frozenset({"step-start", "step-finish", "snapshot", "patch"})
"""Parts in which opencode keeps its books: no model gets them."""


def of_text(text: str) -> int:
    """Return about how many tokens a text takes."""
    data = text.encode("utf-8", "surrogatepass")
    classes = _ASCII if len(data) == len(text) else _ASCII + _BEYOND
    weight = 0
    for start in range(0, len(data), _STRETCH_BYTES):
        end = start + _STRETCH_BYTES
        stretch = data[start:end]
        begun = int(start > 0 and not data[start - 1 : start].isspace())  # a word before it
        weight += _WORD * (len(data[start - begun : end].split()) - begun)
        for members, each in classes:
            weight += each * (len(stretch) - len(stretch.translate(None, members)))
    return -(-weight // 1000)


def of_value(value: Any) -> int:
    """Return about how many tokens a JSON value takes; nothing (None, "", [], {}) takes none."""
    if isinstance(value, str):
        return of_text(value)
    return of_text(json.encode(value).decode()) if value else 0


def of_part(part: Part) -> int:
    """Return about how many tokens a part of a message takes."""
    match part.get("type"):
        case "text" | "reasoning":
            return of_value(part.get("text"))
        case "tool":
            return of_value(part.get("tool")) + _of_tool_state(part.get("state"))
        case "file":
            return OF_A_FILE
        case kind if kind in _NOT_SENT:
            return 0
        case _:
            return of_value({name: value for name, value in part.items() if name != "id"})


def of_message(message: Message) -> int:
    """Return about how many tokens a message takes: content and calls, or parts; no metadata."""
    if message.parts:
        return OF_A_MESSAGE + sum(map(of_part, message.parts))
    return OF_A_MESSAGE + of_text(message.content) + sum(map(of_value, message.tool_calls))


def _of_tool_state(state: Any) -> int:
    if not isinstance(state, dict):
        return of_value(state)
    return sum(of_value(state.get(name)) for name in ("input", "output", "error"))

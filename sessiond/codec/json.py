"""JSON at the border: bounded before it is parsed, and one kind of error afterwards.

msgspec raises RecursionError on deep nesting, at a depth that depends on the stack, and
UnicodeDecodeError on bad UTF-8; both are the sender's fault and become InvalidInput here.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from sessiond.errors import InvalidInput

Decoded = TypeVar("Decoded")

MAX_DEPTH = 64
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

encode = msgspec.json.Encoder().encode


def check_depth(data: bytes) -> None:
    """Refuse JSON nested deeper than MAX_DEPTH, without parsing it.

    Raises:
        InvalidInput: it is nested too deeply.
    """
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:  # the usual case, at memory speed
        return
    depth = 0
    for byte in _STRINGS.sub(b"", data).translate(None, _NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            raise InvalidInput(f"the JSON is nested deeper than {MAX_DEPTH} levels")


def decode(data: bytes, decoder: msgspec.json.Decoder[Decoded]) -> Decoded:
    """Parse and validate JSON from outside.

    Raises:
        InvalidInput: it is not JSON, not UTF-8, too deep, or not of the decoder's type.
    """
    check_depth(data)
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from error


def encode_given(value: Any) -> bytes:
    """Encode what a program gave.

    Raises:
        InvalidInput: it has no JSON: a lone surrogate, an object of another type, endless nesting.
    """
    try:
        return encode(value)
    except (UnicodeEncodeError, TypeError, OverflowError, RecursionError, ValueError) as error:
        raise InvalidInput(f"this cannot be written as JSON: {error}") from error

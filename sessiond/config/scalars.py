"""What an unquoted word means: the core rules of YAML 1.2, for files, variables and flags."""

from __future__ import annotations

import math
import re

_LIMIT_CHARACTERS = 64

# YAML 1.2.2, section 10.3.2 (core schema), without .inf and .nan: no option can be either.
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_WHOLE = (
    (re.compile(r"[-+]?[0-9]+"), 10),
    (re.compile(r"0o[0-7]+"), 8),
    (re.compile(r"0x[0-9a-fA-F]+"), 16),
)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


def resolved(text: str) -> bool | int | float | str | None:
    """Resolve a plain scalar.

    Only true/false, null/~/nothing and numbers are not text: `NO` and `22:22` are.

    Raises:
        OverflowError: a number of more than 64 characters, or beyond a float.
    """
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    for pattern, base in _WHOLE:
        if pattern.fullmatch(text):
            return int(_bounded(text), base)
    if _FLOAT.fullmatch(text):
        return _finite(float(_bounded(text)))
    return text


def _bounded(digits: str) -> str:
    if len(digits) > _LIMIT_CHARACTERS:
        raise OverflowError
    return digits


def _finite(number: float) -> float:
    if math.isinf(number):
        raise OverflowError
    return number

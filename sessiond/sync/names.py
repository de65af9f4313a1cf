"""What names may look like: ids, keys and clients, checked wherever they come in."""

from __future__ import annotations

import re

from sessiond.errors import InvalidInput

_FIRST = ", a letter or digit first"
_SESSION = (
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"),
    f"up to 64 letters, digits, '-' or '_'{_FIRST}",
)
_RECORD = (
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"),
    f"up to 128 letters, digits, '-', '_' or '.'{_FIRST}",
)
_USER = (
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,127}"),
    f"up to 128 letters, digits, '-', '_', '.', '@' or '+'{_FIRST}",
)
_CLIENT = (
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"),
    f"up to 64 letters, digits, '-', '_' or '.'{_FIRST}",
)
_CONFLICT = (re.compile(r"\d{1,15}(-\d{1,15})?", re.ASCII), "a number such as 57, or 57-1")
_KEY = (re.compile(r"[\x21-\x7e]{1,128}"), "up to 128 visible ASCII characters")
_VERSION = re.compile(r"[0-9a-f]{14}:\d{1,15}|\d{1,15}", re.ASCII)

_KINDS = {
    "session_id": _SESSION,
    "message_id": _RECORD,
    "part_id": _RECORD,
    "workspace": _RECORD,
    "user_id": _USER,
    "client": _CLIENT,
    "conflict": _CONFLICT,
    "instance": _CLIENT,
    "Idempotency-Key": _KEY,
}


def checked(kind: str, value: str) -> str:
    """Return a name of a kind, unchanged.

    Raises:
        InvalidInput: it is not one.
    """
    pattern, expected = _KINDS[kind]
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidInput(f"{kind} is {str(value)[:80]!r}, expected {expected}")
    return value


def is_name(kind: str, value: str) -> bool:
    """Tell whether this is a name of a kind."""
    return _KINDS[kind][0].fullmatch(value) is not None


def checked_version(value: str) -> str:
    """Return a version that a change is based on, `epoch:offset` or an offset; empty for none.

    Raises:
        InvalidInput: it is neither.
    """
    if value and not _VERSION.fullmatch(value):
        raise InvalidInput(
            f"{value[:80]!r} is not a version",
            hint="use it as received, for example 00f3a9c1d2e4b7:12",
        )
    return value

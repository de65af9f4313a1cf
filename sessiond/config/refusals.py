"""The words in which a wrong configuration is refused.

Every refusal reads `where: key: expected …, found …` with a hint that names the remedy. What
somebody wrote is shown only where it cannot be a secret: refusals end up in logs.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from sessiond.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

HIDDEN = "***"
_SHOWN_NAME = 64
_SHOWN_CHARACTERS = 40
_SHOWN_NUMBER = 10**20
_COMPARED_CHARACTERS = 80

# The one form of address whose parts can be told apart for certain; all others are hidden whole.
_ADDRESS = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<user>[^@/?#]*@)?"
    r"(?P<place>(?:[A-Za-z0-9\[/][A-Za-z0-9.:\[\]_/-]*)?)(?P<query>\?[^@]*)?"
)


def refusal(*, where: str, key: str, expected: str, found: str, hint: str) -> ConfigurationError:
    """Say where, which key, what was expected, what was found, and the remedy.

    Args:
        where: file and line, variable or flag; may be empty.
        key: dotted name of the option; empty for the document as a whole.
        expected: what would have been right.
        found: what is there; the caller has made it safe to show.
        hint: what to do next.
    """
    place = "".join(f"{part}: " for part in (where, key) if part)
    return ConfigurationError(f"{place}expected {expected}, found {found}", hint=hint)


def place_in(source: str, line: int, column: int) -> str:
    """Name a place in a file as a person would look for it; both count from 1."""
    return f"{printable(source)}, line {line}, column {column}"


def printable(text: str) -> str:
    """Escape what a terminal or a log could not show."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def shown(value: object, *, secret: bool = False) -> str:  # noqa: PLR0911  # one per type
    """Describe a value without ever showing one that may be a secret.

    Args:
        value: any plain value.
        secret: hide texts and numbers altogether.
    """
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return HIDDEN if secret else _shown_number(value)
        case str():
            return HIDDEN if secret else _shown_text(value)
        case dict():
            return "a section"
        case list() | tuple() | set() | frozenset():
            return "a list"
        case _:
            return f"a Python {type(value).__name__}"


def shown_name(name: str) -> str:
    """Show the name of a key, a variable or a flag; it may be anything somebody typed."""
    return HIDDEN if len(name) > _SHOWN_NAME or _may_be_address(name) else printable(name)


def shown_address(address: str) -> str:
    """Show an address without user, password and query; `***` when they cannot be told apart."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return HIDDEN if address else ""
    user = f"{HIDDEN}@" if found["user"] else ""
    query = f"?{HIDDEN}" if found["query"] else ""
    return f"{found['scheme']}://{user}{found['place']}{query}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Find the known name that somebody most likely meant, if any is near."""
    if len(name) > _COMPARED_CHARACTERS:
        return None
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def _shown_number(number: float) -> str:
    if isinstance(number, int) and abs(number) >= _SHOWN_NUMBER:
        return "a very large number"
    return f"the number {number}"


def _shown_text(text: str) -> str:
    if _may_be_address(text):
        return HIDDEN
    if len(text) > _SHOWN_CHARACTERS:
        return f"a text of {len(text)} characters"  # a token, perhaps
    return f"the text {text!r}"


def _may_be_address(text: str) -> bool:
    return "://" in text or "@" in text  # and so may hold a password

r"""Patterns for the fields of a document: `active_files`, `state.**.count`, `parts.*.text`. Pure.

Names are parted by dots. `*` stands for any part of a name, or for a whole one; `**` alone for
any number of names, also none. `\` takes the next character as itself: `files.main\.py`.

A pattern is about the fields it names and all below them: `state` and `state.**` are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TypeAlias

from msgspec import Struct

from sessiond.errors import InvalidInput

LARGEST_NUMBER_OF_NAMES = 32
_SPECIAL = re.compile(r"[.*\\]")
_ANY_NAME = re.compile(".*", re.DOTALL)

Name: TypeAlias = str | re.Pattern[str] | None
"""A name as written, an expression for several, or None for any number of any."""


class Glob(Struct, frozen=True):
    """A compiled pattern. `names` are without `**` at the end, which says nothing more."""

    text: str
    names: tuple[Name, ...]

    @property
    def rank(self) -> tuple[int, int, int, int, str]:
        """Sorts the most specific pattern first.

        More names written in full; then more written in part; then more that are `*`; then fewer
        `**`; between equals, the alphabet.
        """
        exact = sum(isinstance(name, str) for name in self.names)
        anything = self.names.count(_ANY_NAME)
        any_number = self.names.count(None)
        in_part = len(self.names) - exact - anything - any_number
        return -exact, -in_part, -anything, any_number, self.text

    def begin(self) -> frozenset[int]:
        """Return where in the pattern the document itself stands; see `after`."""
        return frozenset(self._and_past_any_number([0]))

    def after(self, places: Iterable[int], name: str) -> frozenset[int]:
        """Return where in the pattern one stands with one more name of the path.

        Places count the names passed. Empty: the pattern is not about this path, nor any below.
        """
        following = []
        for place in places:
            expected = self.names[place] if place < len(self.names) else ""
            if expected is None:
                following.append(place)
            elif place < len(self.names) and _fits(name, expected):
                following.append(place + 1)
        return frozenset(self._and_past_any_number(following))

    def is_met(self, places: Iterable[int]) -> bool:
        """Tell whether the pattern names the path that led to these places."""
        return len(self.names) in places

    def _and_past_any_number(self, places: Iterable[int]) -> Iterator[int]:
        for place in places:
            past = place
            yield past
            while past < len(self.names) and self.names[past] is None:
                past += 1
                yield past


def compiled(text: str) -> Glob:
    """Read a pattern.

    Raises:
        InvalidInput: it is none; the message says why, in words that follow "found".
    """
    names = [_compiled_name(written) for written in _parted(text)]
    if len(names) > LARGEST_NUMBER_OF_NAMES:
        raise InvalidInput(f"more than {LARGEST_NUMBER_OF_NAMES} names")
    while names and names[-1] is None:
        names.pop()
    return Glob(text, tuple(names))


def dotted(path: Iterable[str]) -> str:
    """Write a path as a pattern for this path alone."""
    return ".".join(_SPECIAL.sub(r"\\\g<0>", name) for name in path)


def _parted(text: str) -> Iterator[list[str]]:
    """Yield the names, each as its characters; those that were written with a backslash keep it."""
    name: list[str] = []
    characters = iter(text)
    for character in characters:
        if character == ".":
            yield name
            name = []
        elif character == "\\":
            name.append(character + next(characters, ""))
        else:
            name.append(character)
    yield name


def _compiled_name(written: list[str]) -> Name:
    if not written:
        raise InvalidInput("a name that is empty")
    if "\\" in written:
        raise InvalidInput("a backslash with nothing behind it")
    if written == ["*", "*"]:
        return None
    if written == ["*"]:
        return _ANY_NAME
    if any(pair == ("*", "*") for pair in pairwise(written)):
        raise InvalidInput("'**' beside other characters")
    if "*" not in written:
        return "".join(each[-1] for each in written)
    parts = (".*" if each == "*" else re.escape(each[-1]) for each in written)
    return re.compile("".join(parts), re.DOTALL)


def _fits(name: str, expected: str | re.Pattern[str]) -> bool:
    if isinstance(expected, str):
        return name == expected
    return expected.fullmatch(name) is not None

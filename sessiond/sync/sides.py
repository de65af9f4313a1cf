"""The two sides of a merge: what each made of a value, and which of them counts as the later. Pure.

A field that is not there is `UNSET`; null is a value like any other.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Struct

Path: TypeAlias = tuple[str, ...]
"""Where a value stands in its document: names of fields, and ids of the objects in lists."""

Outcome: TypeAlias = Literal["ours", "theirs", "merged"]
"""Whose value a conflict ended with; `merged`: parts of both, but not all of either."""

_encode = msgspec.json.Encoder(order="deterministic").encode


class Side(Struct, frozen=True):
    """What one side made of a value, and when it did. A removed value is `UNSET`.

    Attributes:
        value: the value as this side has it.
        at: when it was written, in milliseconds, by the writer's clock; 0 when clocks are not to
            decide.
        offset: the offset of the operation in the session's log; of one that is not in the log
            yet, any number above those that are.
        origin: who wrote it. Two sides of the same time, offset and origin are the same change.
    """

    value: Any
    at: int = 0
    offset: int = 0
    origin: str = ""

    @property
    def stamp(self) -> tuple[int, int, str]:
        """When and by whom: time first, then the place in the log, then the origin's name."""
        return self.at, self.offset, self.origin

    def holding(self, value: Any) -> Side:
        """Return a side of the same stamp with another value: that of one of its fields."""
        return Side(value, self.at, self.offset, self.origin)


class Verdict(Struct, frozen=True):
    """What became of a field. `outcome` is set when a part of a side is not in it: a conflict."""

    value: Any
    outcome: Outcome | None = None


def is_later(one: Side, other: Side) -> bool:
    """Tell whether one side counts as written after the other; both call the same one later.

    The greater time decides; where it is equal, the greater offset; then the greater origin;
    then the greater text of the value. A clock alone never decides between equals, and whatever
    it decides is between changes that did not know of each other: see `merge`.
    """
    if one.stamp != other.stamp:
        return one.stamp > other.stamp
    return canonical(one.value) > canonical(other.value)


def canonical(value: Any) -> bytes:
    """Return what tells two values apart as JSON does; empty for one that is not there."""
    return b"" if value is UNSET else _encode(value)


def same(one: Any, other: Any) -> bool:
    """Compare as JSON does: 1, 1.0 and true are three values; the order of fields says nothing."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict | list):
        return bool(one == other) and canonical(one) == canonical(other)
    if isinstance(one, float):
        return bool(one.hex() == other.hex())  # -0.0 equals 0.0 everywhere but in JSON
    return bool(one == other)

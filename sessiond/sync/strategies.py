"""Strategies: what becomes of one field that both sides changed at once. Pure.

`decide` is what every strategy goes through, and what its laws are about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, Struct

from sessiond.codec import json
from sessiond.sync import resolving
from sessiond.sync.resolving import Resolve, last_writer
from sessiond.sync.sides import Side, Verdict, canonical, same

LARGEST_CAP = 1_000_000
STATUSES = ("active", "archived", "deleted")
"""The order of plain `lattice`, the weakest first: what is deleted stays deleted."""

_CALL = re.compile(r"(?P<name>[a-z-]+)(?:\((?P<arguments>[^()]*)\))?")
_CUSTOM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_CAP = re.compile(r"[1-9]\d{0,6}", re.ASCII)
_JSON = msgspec.json.Decoder()


class Law(Enum):
    """What holds of a strategy ∘ for any base, and any sides a, b and c that are its kind.

    A merged side counts as written when the later of the changes in it was.
    """

    COMMUTATIVE = "a∘b = b∘a"
    ASSOCIATIVE = "(a∘b)∘c = a∘(b∘c)"
    IDEMPOTENT = "a∘b = a where both made the same of the base, at different times"


Custom: TypeAlias = Callable[[Any, Side, Side], Any]
"""The same from outside: may also return the value itself, in which both sides then count as kept.

It gets copies. If it raises, or returns what is no JSON, the last writer wins.
"""


class Strategy(Struct, frozen=True):
    """What becomes of a field that both sides changed.

    Attributes:
        name: as written in the configuration.
        resolve: decides between two changes.
        laws: which laws hold; the tests prove these, and that the others do not.
        takes_whole: whether it takes objects and lists as they are, instead of their fields.
        cap: how many entries a list keeps, the newest; None for all.
    """

    name: str
    resolve: Resolve
    laws: frozenset[Law]
    takes_whole: bool = False
    cap: int | None = None


def decide(strategy: Strategy, base: Any, ours: Side, theirs: Side) -> Verdict:
    """Decide about one field as a whole. A side that left it as it was has no say."""
    if same(ours.value, base):
        return Verdict(theirs.value)
    if same(theirs.value, base):
        return Verdict(ours.value)
    return between(strategy, base, ours, theirs)


def between(strategy: Strategy, base: Any, ours: Side, theirs: Side) -> Verdict:
    """Decide between two changes.

    When both made the same of the field, that is the value. A strategy that is not idempotent
    takes them for two changes all the same, unless both carry the same stamp and so are one.
    """
    is_one = Law.IDEMPOTENT in strategy.laws or ours.stamp == theirs.stamp
    if is_one and same(ours.value, theirs.value):
        return Verdict(ours.value)
    return strategy.resolve(base, ours, theirs)


def named(text: str) -> Strategy | None:
    """Return the strategy of a name such as `union`, `append(100)` or `lattice(low, high)`.

    None when there is none; names of custom ones (`package.module:function`) have none here.
    """
    found = _CALL.fullmatch(text)
    if found is None:
        return None
    name, arguments = found["name"], found["arguments"]
    if arguments is None:
        return PLAIN.get(name)
    if name == "append" and _CAP.fullmatch(arguments) and int(arguments) <= LARGEST_CAP:
        return _append(int(arguments))
    order = [word.strip() for word in arguments.split(",")]
    if name == "lattice" and len(order) > 1 and _are_distinct_words(order):
        return _lattice(text, order)
    return None


def _are_distinct_words(order: list[str]) -> bool:
    return len(set(order)) == len(order) and all(word and word.isprintable() for word in order)


def is_custom(text: str) -> bool:
    """Tell whether this is the name of a custom strategy: `package.module:function`."""
    return _CUSTOM.fullmatch(text) is not None


def custom(name: str, function: Custom) -> Strategy:
    """Return somebody else's function as a strategy, with the one law that `decide` sees to."""
    return Strategy(name, _guarded(function), frozenset({Law.IDEMPOTENT}), takes_whole=True)


def _guarded(function: Custom) -> Resolve:
    def resolve(base: Any, ours: Side, theirs: Side) -> Verdict:
        try:
            sides = (side.holding(_copied(side.value)) for side in (ours, theirs))
            found = function(_copied(base), *sides)
            verdict = found if isinstance(found, Verdict) else Verdict(found)
            return Verdict(_copied(verdict.value), verdict.outcome)
        except Exception:  # noqa: BLE001  # whatever it does, both sides must survive it
            return last_writer(base, ours, theirs)

    return resolve


def _copied(value: Any) -> Any:
    """Return a copy of its own of what JSON can hold.

    Raises:
        Exception: JSON cannot hold it.
    """
    return value if value is UNSET else json.decode(canonical(value), _JSON)


def _append(cap: int) -> Strategy:
    return Strategy(f"append({cap})", resolving.append(cap), _COMMUTATIVE, cap=cap)


def _lattice(name: str, order: Sequence[str]) -> Strategy:
    return Strategy(name, resolving.greatest(resolving.place_in(order)), _ALL)


_ALL = frozenset(Law)
_COMMUTATIVE = frozenset({Law.COMMUTATIVE})

LAST_WRITER_WINS = Strategy("last-writer-wins", last_writer, _ALL)
MANUAL = Strategy("manual", last_writer, _ALL)
"""The last writer's value stands until a person decides; see `merge.Conflict`."""

PLAIN = {
    strategy.name: strategy
    for strategy in (
        LAST_WRITER_WINS,
        Strategy("ours", resolving.ours, _ALL - {Law.COMMUTATIVE}),
        Strategy("theirs", resolving.theirs, _ALL - {Law.COMMUTATIVE}),
        Strategy("union", resolving.union, _ALL - {Law.ASSOCIATIVE}),
        Strategy("append", resolving.append(), _COMMUTATIVE),
        Strategy("max", resolving.greatest(resolving.size), _ALL),
        Strategy("min", resolving.greatest(resolving.size, least=True), _ALL),
        Strategy("counter", resolving.counter, _ALL - {Law.IDEMPOTENT}),
        Strategy("text", resolving.text, _ALL - {Law.ASSOCIATIVE}),
        _lattice("lattice", STATUSES),
        MANUAL,
    )
}
"""The strategies by name. `append` also takes a cap, `lattice` an order: see `named`."""

"""Which strategy is for which field: what was configured, else the defaults. Pure.

Where several patterns are about a field, a configured one goes before a default; among those, the
most specific one (`Glob.rank`). Where none is, the last writer wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from msgspec import Struct, inspect, structs

from sessiond.errors import InvalidInput
from sessiond.model import Context, Message, Metadata
from sessiond.sync.defaults import DEFAULTS, MERGED_DOCUMENTS, MergedDocument
from sessiond.sync.globs import Glob, compiled
from sessiond.sync.strategies import (
    LAST_WRITER_WINS,
    PLAIN,
    Custom,
    Strategy,
    custom,
    is_custom,
    named,
)

STRATEGY_NAMES = (
    *(name for name in PLAIN if name != "append"),
    *("append", "append(100)", "lattice(weakest, …, strongest)", "package.module:function"),
)
"""What may be written for a strategy, for messages."""

_NONE: Mapping[str, Mapping[str, str]] = MappingProxyType({})
_NO_CUSTOM: Mapping[str, Custom] = MappingProxyType({})


class Rule(Struct, frozen=True):
    """A pattern and the strategy of the fields it is about."""

    glob: Glob
    strategy: Strategy


class Fields:
    """The rules for one field and those below it.

    `below` costs a look-up once a path of this kind was met: equal situations are shared.
    """

    def __init__(self, document: _Document, places: tuple[frozenset[int], ...], met: int) -> None:
        self.strategy = document.strategy(met)
        self._document = document
        self._places = places
        self._met = met
        self._below: dict[_Look, Fields] = {}

    def below(self, name: str) -> Fields:
        """Return the rules for a field of this one, or for the entry of a list with this id."""
        look = self._document.look(name)
        found = self._below.get(look)
        if found is None:
            found = self._document.after(self._places, self._met, name)
            self._below[look] = found
        return found


_Look = tuple[str | None, tuple[bool, ...]]
"""What the patterns can tell about a name: which one it is, if they name it; what it fits."""


class _Document:
    """The rules of one document, the first that is met decides; a machine made as it is used."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = tuple(rules)
        names = [name for rule in self._rules for name in rule.glob.names if name is not None]
        self._exact = {name for name in names if isinstance(name, str)}
        self._expressions = list(dict.fromkeys(name for name in names if not isinstance(name, str)))
        self._known: dict[tuple[tuple[frozenset[int], ...], int], Fields] = {}

    def root(self) -> Fields:
        return self._fields(tuple(rule.glob.begin() for rule in self._rules), len(self._rules))

    def strategy(self, met: int) -> Strategy:
        return self._rules[met].strategy if met < len(self._rules) else LAST_WRITER_WINS

    def look(self, name: str) -> _Look:
        if not self._expressions:
            return (name if name in self._exact else None), ()
        fits = tuple([each.fullmatch(name) is not None for each in self._expressions])
        return (name if name in self._exact else None), fits

    def after(self, places: tuple[frozenset[int], ...], met: int, name: str) -> Fields:
        pairs = zip(self._rules, places, strict=True)
        return self._fields(tuple(rule.glob.after(each, name) for rule, each in pairs), met)

    def _fields(self, places: tuple[frozenset[int], ...], met: int) -> Fields:
        pairs = zip(self._rules, places, strict=True)
        now = (index for index, (rule, each) in enumerate(pairs) if rule.glob.is_met(each))
        first = min([met, *now])
        # Those behind a rule that is met for good can say nothing any more.
        still = tuple(each if index < first else frozenset() for index, each in enumerate(places))
        return self._known.setdefault((still, first), Fields(self, still, first))


LAST_WRITER = _Document(()).root()
"""The rules of a document of which nobody knows what it was before: the last writer wins."""


class Rules:
    """The rules of all documents, compiled once.

    Args:
        chosen: document → pattern → name of a strategy; these go before the defaults.
        custom: name → function, of every custom strategy that is named.

    Raises:
        InvalidInput: an unknown document or strategy, or a pattern that no field can fit.
    """

    def __init__(
        self,
        chosen: Mapping[str, Mapping[str, str]] = _NONE,
        custom: Mapping[str, Custom] = _NO_CUSTOM,
    ) -> None:
        unknown = chosen.keys() - set(MERGED_DOCUMENTS)
        if unknown:
            raise InvalidInput(f"{min(unknown)[:80]!r} is no document with rules for merging")
        self._roots: dict[str, Fields] = {}
        for document in MERGED_DOCUMENTS:
            defaults = {each.path: each.strategy for each in DEFAULTS if each.document == document}
            rules = [
                *_sorted(document, chosen.get(document, {}), custom),
                *_sorted(document, defaults, custom),
            ]
            self._roots[document] = _Document(rules).root()

    def of(self, document: MergedDocument) -> Fields:
        """Return the rules of a document."""
        return self._roots[document]

    def for_path(self, document: MergedDocument, path: Iterable[str]) -> Strategy:
        """Return the strategy of a field."""
        fields = self._roots[document]
        for name in path:
            fields = fields.below(name)
        return fields.strategy


def possible(document: MergedDocument, text: str) -> Glob:
    """Return a pattern, compiled.

    Raises:
        InvalidInput: it is none, or no field of the document can fit it; the message says why, in
            words that follow "found".
    """
    glob = compiled(text)
    known = _KNOWN.get(document)
    begin = glob.begin()
    if known is None or glob.is_met(begin):
        return glob
    for name, is_open in known.items():
        places = glob.after(begin, name)
        if glob.is_met(places) or (is_open and places):
            return glob
    raise InvalidInput(f"a path that no field of {document} has")


def is_strategy(text: str) -> bool:
    """Tell whether something names a strategy; a custom one need not be there for that."""
    return named(text) is not None or is_custom(text)


def known_fields(document: MergedDocument) -> tuple[str, ...]:
    """Return the fields of a document; empty when it may have any."""
    return tuple(_KNOWN.get(document, ()))


def _sorted(
    document: MergedDocument, rules: Mapping[str, str], functions: Mapping[str, Custom]
) -> list[Rule]:
    made = [
        Rule(possible(document, path), _strategy(name, functions)) for path, name in rules.items()
    ]
    return sorted(made, key=lambda rule: rule.glob.rank)


def _strategy(name: str, functions: Mapping[str, Custom]) -> Strategy:
    if found := named(name):
        return found
    if name in functions:
        return custom(name, functions[name])
    raise InvalidInput(
        f"{name[:80]!r} is no strategy", hint=f"take one of {', '.join(STRATEGY_NAMES)}"
    )


def _fields_of(struct: type[Struct]) -> dict[str, bool]:
    """Return the names of a Struct's fields, and whether there may be fields below them."""
    return {
        field.encode_name: _is_open(inspect.type_info(field.type))
        for field in structs.fields(struct)
    }


def _is_open(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.Metadata):
        return _is_open(kind.type)
    if isinstance(kind, inspect.UnionType):
        return any(_is_open(each) for each in kind.types)
    if isinstance(kind, inspect.ListType):
        return _is_open(kind.item_type)
    return isinstance(kind, inspect.DictType | inspect.AnyType)


_KNOWN: dict[str, dict[str, bool]] = {
    "metadata": _fields_of(Metadata),
    "context": _fields_of(Context),
    "message": _fields_of(Message),
}
"""Document → its fields, and whether there may be fields below them. Others may have any."""

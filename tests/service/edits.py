"""What replicas edit: a field for every strategy, and what may be made of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET

from sessiond.sync.rules import Rules
from sessiond.sync.sides import Side, Verdict

Kind = Literal[
    "union", "append", "cap", "counter", "max", "min", "rank", "text", "whole", "said", "items",
    "wild",
]  # fmt: skip
RANKS = ("low", "mid", "high", "top")
CAP = 3
_TOKEN = re.compile(r"t\d+(?!\d)")


class Field(NamedTuple):
    """A field that is edited: where it is, and how."""

    subject: str
    path: tuple[str, ...]
    kind: Kind


def joined(base: Any, ours: Side, theirs: Side) -> Any:
    """A custom strategy that keeps all that was said; one that fails, and one that chooses."""
    said = [*tokens(ours.value), *tokens(theirs.value)]
    if len(said) % 5 == 4:
        raise ValueError(said)
    if len(said) % 5 == 3:
        return Verdict(ours.value, "ours")
    gone = set(tokens(base)) - (set(tokens(ours.value)) & set(tokens(theirs.value)))
    return {"said": [token for token in dict.fromkeys(said) if token not in gone]}


_CUSTOM = f"{__name__}:joined"
STRATEGIES: dict[str, tuple[str, Kind]] = {
    "tags": ("union", "union"),
    "history": ("append", "append"),
    "last": (f"append({CAP})", "cap"),
    "n_count": ("counter", "counter"),
    "up": ("max", "max"),
    "down": ("min", "min"),
    "rank": (f"lattice({', '.join(RANKS)})", "rank"),
    "note": ("text", "text"),
    "phase": ("last-writer-wins", "whole"),
    "mine": ("ours", "whole"),
    "yours": ("theirs", "whole"),
    "chosen": ("manual", "whole"),
    "said": (_CUSTOM, "said"),
    "items": ("last-writer-wins", "items"),
    "wild_union": ("union", "wild"),
    "wild_append": ("append", "wild"),
    "wild_text": ("text", "wild"),
    "wild_custom": (_CUSTOM, "wild"),
}
"""Field → its strategy, and how it is edited: every strategy is one of them."""

_PARENTS = {"context": ("state",), "preferences": (), "m0": ("metadata",), "m1/p": ()}
_ALSO = ("tags", "n_count", "phase", "chosen", "note", "items", "wild_custom")
"""What is edited also elsewhere than in the context."""

STARTS: dict[Kind, Any] = {
    "union": [], "append": [], "cap": [], "counter": 0, "max": 0, "min": 0, "rank": "low",
    "text": "", "whole": "", "said": {"said": []}, "items": [], "wild": [],
}  # fmt: skip

FIELDS = [
    Field("context", ("active_files",), "union"),
    Field("context", ("working_directory",), "whole"),
    Field("metadata", ("title",), "whole"),
    Field("m0", ("content",), "text"),
    *(
        Field(subject, (*parent, name), kind)
        for subject, parent in _PARENTS.items()
        for name, (_, kind) in STRATEGIES.items()
        if subject == "context" or name in _ALSO
    ),
]
SUBJECTS = list(dict.fromkeys(field.subject for field in FIELDS))
RULES = Rules(
    {
        document: {
            ".".join((*_PARENTS[subject], name)): strategy
            for name, (strategy, _) in STRATEGIES.items()
        }
        for document, subject in (
            ("context", "context"),
            ("preferences", "preferences"),
            ("message", "m0"),
            ("part", "m1/p"),
        )
    },
    {_CUSTOM: joined},
)


def tokens(value: Any) -> list[str]:
    """Return the words of a value that were never written before."""
    return [] if value is UNSET else _TOKEN.findall(msgspec.json.encode(value).decode())


def edited(kind: Kind, value: Any, token: str, choice: int) -> Any:
    """Return what somebody makes of a field; `token` is a word that was never written before."""
    return _EDITS[kind](value, token, choice)


def _text(value: str, token: str, choice: int) -> str:
    return "\n".join(_listed(value.split("\n") if value else [], token, choice))


def _raised(value: str, _token: str, choice: int) -> str:
    return RANKS[min(RANKS.index(value) + choice % 3, len(RANKS) - 1)]


def _anything(_value: Any, token: str, choice: int) -> Any:
    return [[token], token, {"a": token}, UNSET, f"{token}\n{token}", None, 1][choice]


def _listed(value: list[str], token: str, choice: int) -> list[str]:
    if not value or choice < 3:
        return [*value[choice:], *value[:choice], token] if choice == 2 else [*value, token]
    place = choice % len(value)
    before, after = value[:place], value[place + 1 :]
    return [[*before, *after], [*before, token, *after], [*after, *before, value[place]]][
        choice % 3
    ]


def _items(value: list[Any], token: str, choice: int) -> list[Any]:
    if not value or choice < 2:
        return [*value, {"id": token, "said": token}]
    place = choice % len(value)
    before, after = value[:place], value[place + 1 :]
    if choice == 3:
        return [*before, *after]
    if choice == 4:
        return [value[place], *before, *after]
    return [*before, value[place] | {"said": token}, *after]


_EDITS: dict[Kind, Callable[[Any, str, int], Any]] = {
    "union": _listed,
    "append": lambda value, token, _: [*value, token],
    "cap": lambda value, token, _: [*value, token][-CAP:],
    "counter": lambda value, _, choice: value + (choice - 3 or 7),
    "max": lambda value, _, choice: value + choice + 1,
    "min": lambda value, _, choice: value - choice - 1,
    "rank": _raised,
    "text": _text,
    "whole": lambda _value, token, _choice: token,
    "said": lambda value, token, choice: {"said": _listed(value["said"], token, choice)},
    "items": _items,
    "wild": _anything,
}


def at(value: Any, path: tuple[str, ...]) -> Any:
    """Return what stands in nested objects; UNSET where nothing does."""
    for name in path:
        value = value.get(name, UNSET) if isinstance(value, dict) else UNSET
    return value


def with_field(value: Any, path: tuple[str, ...], new: Any) -> Any:
    """Return nested objects with another value at a path."""
    name, *rest = path
    inner = with_field(value[name], tuple(rest), new) if rest else new
    others = {field: kept for field, kept in value.items() if field != name}
    return others if inner is UNSET else {**value, name: inner}


def patch_between(before: Any, after: Any) -> Any:
    """Return the merge patch that leads from one object to another."""
    changed = {
        name: patch_between(before[name], value)
        if isinstance(value, dict) and isinstance(before.get(name), dict)
        else value
        for name, value in after.items()
        if before.get(name, UNSET) != value or type(before.get(name)) is not type(value)
    }
    return changed | {name: None for name in before if name not in after}

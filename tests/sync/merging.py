"""Values, sides and rules for the tests of merging."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from msgspec import UNSET

from sessiond.sync.sides import Side

words = st.text("ab ", max_size=3)
scalars = st.one_of(
    words, st.integers(-3, 3), st.sampled_from([0.0, -0.0, 1.0, 0.1]), st.booleans(), st.none()
)
names = st.sampled_from(["a", "b", "id", "n_count", "log", "odd.name", ""])


def _with_collections(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    entries = st.lists(
        st.tuples(st.sampled_from("pqr"), st.dictionaries(names, inner, max_size=2)), max_size=3
    ).map(lambda pairs: [fields | {"id": name} for name, fields in dict(pairs).items()])
    return st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3), entries
    )


json_values = st.recursive(scalars, _with_collections, max_leaves=8)
documents = st.dictionaries(names, json_values, max_size=4)
fields = json_values | st.just(UNSET)

lines = st.lists(st.sampled_from("abcd"), max_size=6).map("\n".join)
lists = st.lists(st.sampled_from(["a", "b", "c", 1, 1.0, True]), max_size=5)
numbers = st.integers(-5, 5) | st.sampled_from([0.5, 1.0, -0.0, 2**70])
moments = st.sampled_from(
    [
        "2026-01-13T10:30:00Z",
        "2026-01-13T10:30:00.5Z",
        "2026-01-13T12:00:00+02:00",
        "2026-01-13t10:30:00z",
        "2026-02-30T10:30:00Z",
        "yesterday",
        "",
    ]
)


def side(value: Any, at: int = 1, origin: str = "") -> Side:
    return Side(value, at=at, origin=origin or f"origin-{at}")


@st.composite
def edited(draw: st.DrawFn, base: Any) -> Any:
    """What somebody may make of a document: most of it stays."""
    if isinstance(base, dict) and draw(st.integers(0, 5)):
        kept = {
            name: draw(edited(value)) for name, value in base.items() if draw(st.integers(0, 5))
        }
        return kept | draw(st.dictionaries(names, json_values, max_size=1))
    if isinstance(base, list) and draw(st.integers(0, 5)):
        entries = [draw(edited(value)) for value in base if draw(st.integers(0, 5))]
        return entries + draw(st.lists(scalars, max_size=1))
    return draw(json_values) if not draw(st.integers(0, 3)) else base


@st.composite
def concurrent(draw: st.DrawFn) -> tuple[Any, Side, Side]:
    """A document, and what two made of it at once."""
    base = draw(documents | json_values)
    ours, theirs = draw(edited(base)), draw(edited(base))
    return base, side(ours, draw(st.integers(1, 3)), "one"), side(theirs, 2, "two")

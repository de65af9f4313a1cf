"""Which strategy is for which field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from sessiond.errors import InvalidInput
from sessiond.model import Context, Message, Metadata
from sessiond.sync.defaults import DEFAULTS, MERGED_DOCUMENTS, MergedDocument
from sessiond.sync.globs import dotted
from sessiond.sync.rules import Rules, is_strategy, known_fields, possible

SPECIFIED: dict[MergedDocument, dict[str, str]] = {
    "metadata": {
        "session_id": "last-writer-wins",
        "created_at": "min",
        "last_activity": "max",
        "user_agent": "last-writer-wins",
        "environment": "last-writer-wins",
        "status": "lattice",
        "title": "last-writer-wins",
        "user_id": "last-writer-wins",
        "workspace": "last-writer-wins",
    },
    "context": {
        "working_directory": "last-writer-wins",
        "active_files": "union",
        "recent_commands": "append(100)",
        "state": "last-writer-wins",
        "opencode": "last-writer-wins",
        "state.current_task": "last-writer-wins",
        "state.phase": "last-writer-wins",
        "state.findings": "union",
        "state.findings.f1.text": "union",
        "state.count": "counter",
        "state.any.depth.count": "counter",
        "state.tool_calls.read_count": "counter",
        "state.total_tokens": "counter",
        "state.total": "last-writer-wins",
        "state.account": "last-writer-wins",
        "state.discount": "last-writer-wins",
        "opencode.time.updated": "max",
        "opencode.time.created": "last-writer-wins",
        "opencode.count": "last-writer-wins",
    },
    "preferences": {
        "theme": "last-writer-wins",
        "editor.tabs": "last-writer-wins",
        "count": "last-writer-wins",
    },
    "message": {
        "id": "last-writer-wins",
        "timestamp": "last-writer-wins",
        "role": "last-writer-wins",
        "content": "text",
        "tool_calls": "last-writer-wins",
        "metadata": "last-writer-wins",
        "parts": "last-writer-wins",
        "parts.p1.text": "text",
        "parts.p1.state": "last-writer-wins",
        "metadata.text": "last-writer-wins",
    },
    "part": {"id": "last-writer-wins", "type": "last-writer-wins", "text": "text"},
}


@pytest.mark.parametrize("document", MERGED_DOCUMENTS)
def test_every_field_has_its_default(document: MergedDocument) -> None:
    found = {path: Rules().for_path(document, path.split(".")).name for path in SPECIFIED[document]}
    assert found == SPECIFIED[document]


@pytest.mark.parametrize(
    ("document", "struct"), [("metadata", Metadata), ("context", Context), ("message", Message)]
)
def test_every_field_of_the_model_is_in_this_table(document: MergedDocument, struct: Any) -> None:
    names = [field.encode_name for field in structs.fields(struct)]
    assert set(names) <= SPECIFIED[document].keys()
    assert list(known_fields(document)) == names


def test_every_default_says_why_and_stands_once() -> None:
    assert all(rule.why and is_strategy(rule.strategy) for rule in DEFAULTS)
    places = [(rule.document, rule.path) for rule in DEFAULTS]
    assert len(set(places)) == len(places)
    assert {rule.document for rule in DEFAULTS if rule.path == "**"} == {*MERGED_DOCUMENTS}


def chosen(*patterns: str) -> Rules:
    """Rules whose strategies are named after their patterns."""
    names = {f"m:f{index}": pattern for index, pattern in enumerate(patterns)}
    return Rules(
        {"preferences": {pattern: name for name, pattern in names.items()}},
        {name: lambda _base, ours, _theirs: ours.value for name in names},
    )


@pytest.mark.parametrize(
    ("more", "less", "path"),
    [
        ("editor", "*", "editor"),
        ("editor", "**", "editor"),
        ("editor.tabs", "editor", "editor.tabs"),
        ("editor.*", "*.*", "editor.tabs"),
        ("editor.tabs", "editor.**", "editor.tabs"),
        ("editor", "edit*", "editor"),
        ("edit*", "*", "editor"),
        ("*", "**", "editor"),
        ("*.*", "*", "editor.tabs"),
        ("*.tabs", "*.*", "editor.tabs"),
        ("*.tabs", "**.tabs", "editor.tabs"),
        ("**.tabs", "*.*", "editor.tabs"),
        ("**.editor.tabs", "editor", "editor.tabs"),
        ("editor", "**.tabs", "editor.tabs"),
        ("editor.tabs.width", "editor.**.width", "editor.tabs.width"),
        ("*a", "a*", "aba"),
        ("editor", "editor.**", "editor"),
    ],
)
def test_the_most_specific_pattern_wins_in_whatever_order(more: str, less: str, path: str) -> None:
    for patterns in ((more, less), (less, more)):
        name = chosen(*patterns).for_path("preferences", path.split(".")).name
        assert patterns[int(name.removeprefix("m:f"))] == more


def test_what_was_chosen_goes_before_every_default_and_the_others_stay() -> None:
    rules = Rules({"context": {"state.**": "ours", "*": "theirs"}})
    assert rules.for_path("context", ["state", "n_count"]).name == "ours"
    assert rules.for_path("context", ["active_files"]).name == "theirs"
    rules = Rules({"context": {"state.phase": "manual"}})
    assert rules.for_path("context", ["state", "phase"]).name == "manual"
    assert rules.for_path("context", ["state", "findings"]).name == "union"
    assert rules.for_path("metadata", ["status"]).name == "lattice"


def test_a_rule_is_about_all_below_its_field() -> None:
    rules = Rules({"preferences": {"editor": "ours", "editor.font.size": "max"}})
    for path in (["editor"], ["editor", "a"], ["editor", "font"], ["editor", "font", "a", "b"]):
        assert rules.for_path("preferences", path).name == "ours"
    assert rules.for_path("preferences", ["editor", "font", "size"]).name == "max"
    assert rules.for_path("preferences", ["editor", "font", "size", "x"]).name == "max"
    assert rules.for_path("preferences", ["editors"]).name == "last-writer-wins"
    assert rules.for_path("preferences", []).name == "last-writer-wins"


names = st.sampled_from(["a", "b", "ab", "a.b", "*", "", "\n"])
segments = st.sampled_from(["a", "b", "*", "**", "a*", "*b", r"a\.b", r"\*"])


def reaches(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Tell whether a pattern is about a path, word for word as its documentation says it."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(reaches(pattern[1:], path[skipped:]) for skipped in range(len(path) + 1))
    fits: dict[str, Callable[[str], bool]] = {
        "a": lambda name: name == "a",
        "b": lambda name: name == "b",
        "*": lambda _: True,
        "a*": lambda name: name.startswith("a"),
        "*b": lambda name: name.endswith("b"),
        r"a\.b": lambda name: name == "a.b",
        r"\*": lambda name: name == "*",
    }
    return bool(path) and fits[pattern[0]](path[0]) and reaches(pattern[1:], path[1:])


@given(
    st.lists(st.lists(segments, min_size=1, max_size=4).map(tuple), max_size=4, unique=True),
    st.lists(st.lists(names, max_size=4).map(tuple), max_size=5),
)
def test_a_pattern_is_about_a_field_exactly_as_documented(
    patterns: list[tuple[str, ...]], paths: list[tuple[str, ...]]
) -> None:
    written = [".".join(pattern) for pattern in patterns]
    rules = chosen(*written)
    for path in paths * 2:  # the second time from memory
        about = [
            each for each, pattern in zip(written, patterns, strict=True) if reaches(pattern, path)
        ]
        best = min(about, key=lambda each: possible("preferences", each).rank, default=None)
        name = rules.for_path("preferences", path).name
        found = None if name == "last-writer-wins" else written[int(name.removeprefix("m:f"))]
        assert found == best


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_path_written_out_is_a_pattern_for_it_alone(path: list[str]) -> None:
    glob = possible("preferences", dotted(path))
    assert glob.names == tuple(path)


@pytest.mark.parametrize(
    ("document", "pattern"),
    [
        ("context", "*"),
        ("context", "**"),
        ("context", "active_*"),
        ("context", "state.deep.er"),
        ("context", "**.count"),
        ("context", "*.count"),
        ("metadata", "title"),
        ("metadata", "**.title"),
        ("message", "parts.*.text"),
        ("message", "tool_calls.x"),
        ("part", "anything.at.all"),
        ("preferences", r"files.main\.py"),
        ("preferences", ".".join("x" * 32)),
    ],
)
def test_patterns_that_a_field_can_fit_are_taken(document: MergedDocument, pattern: str) -> None:
    assert possible(document, pattern).text == pattern


@pytest.mark.parametrize(
    ("document", "pattern", "found"),
    [
        ("context", "", "a name that is empty"),
        ("context", ".", "a name that is empty"),
        ("context", "state.", "a name that is empty"),
        ("context", "state..x", "a name that is empty"),
        ("context", "state.***", "'**' beside other characters"),
        ("context", "state.a**", "'**' beside other characters"),
        ("context", "state\\", "a backslash with nothing behind it"),
        ("context", ".".join("x" * 33), "more than 32 names"),
        ("context", "states", "a path that no field of context has"),
        ("context", "states.**", "a path that no field of context has"),
        ("context", "*_file", "a path that no field of context has"),
        ("context", "active_files.x", "a path that no field of context has"),
        ("context", "active_files.*", "a path that no field of context has"),
        ("metadata", "status.x", "a path that no field of metadata has"),
        ("metadata", "*.x", "a path that no field of metadata has"),
        ("metadata", "**.x", "a path that no field of metadata has"),
        ("message", "text", "a path that no field of message has"),
        ("message", "content.*", "a path that no field of message has"),
    ],
)
def test_patterns_that_no_field_can_fit_are_refused(
    document: MergedDocument, pattern: str, found: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        possible(document, pattern)
    assert str(caught.value.detail) == found
    with pytest.raises(InvalidInput):
        Rules({document: {pattern: "ours"}})


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"cache": {"a": "ours"}}, "'cache' is no document"),
        ({"context": {"state": "newest"}}, "'newest' is no strategy"),
        ({"context": {"state": "m:f"}}, "'m:f' is no strategy"),
    ],
)
def test_unknown_documents_and_strategies_are_refused(
    rules: dict[str, dict[str, str]], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        Rules(rules)


def test_memory_does_not_grow_with_the_names_that_are_looked_up() -> None:
    fields = Rules().of("context")
    seen = {id(fields.below("state").below(f"x{n}").below(f"y_count{n}")) for n in range(1000)}
    assert len(seen) == 1

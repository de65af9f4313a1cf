"""The option `sync.merge`: what is taken, what is refused and in which words, and what it means."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sessiond import config
from sessiond.config import Configuration, MergeOptions, load, merge_rules, with_value
from sessiond.errors import ConfigurationError
from sessiond.sync.merge import merge
from sessiond.sync.rules import STRATEGY_NAMES
from sessiond.sync.sides import Side

STRATEGIES = ", ".join(STRATEGY_NAMES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sessions.yaml"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("merging_of_ours")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def refused(**layers: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(**{"file": None, "environ": {}, "flags": {}} | layers)
    return caught.value


def test_a_file_chooses_strategies_field_by_field(file: Path) -> None:
    file.write_text(
        "sync:\n  merge:\n    context:\n      state.phase: manual\n"
        "      '**.notes': append(20)\n    message:\n    part: {}\n"
    )
    loaded = load(file=file, environ={}, flags={}).sync.merge
    assert loaded == MergeOptions(context={"state.phase": "manual", "**.notes": "append(20)"})
    rules = merge_rules(loaded)
    assert rules.for_path("context", ["state", "phase"]).name == "manual"
    assert rules.for_path("context", ["state", "x", "notes"]).name == "append(20)"
    assert rules.for_path("context", ["active_files"]).name == "union"


def test_without_choices_the_rules_are_the_defaults() -> None:
    rules = merge_rules(Configuration().sync.merge)
    assert rules.for_path("metadata", ["status"]).name == "lattice"


@pytest.mark.parametrize(
    ("text", "detail", "hint"),
    [
        (
            "context:\n    state.phase: newest",
            (
                "line 4, column 5: sync.merge.context[state.phase]: expected one of "
                f"{STRATEGIES}, found the text 'newest'"
            ),
            "the README tells what each of them does",
        ),
        (
            "context:\n    active_files: unoin",
            (
                "line 4, column 5: sync.merge.context[active_files]: expected one of "
                f"{STRATEGIES}, found the text 'unoin'"
            ),
            "did you mean union?",
        ),
        (
            "context: {recent_commands: append(0)}",
            (
                "line 3, column 13: sync.merge.context[recent_commands]: expected one of "
                f"{STRATEGIES}, found the text 'append(0)'"
            ),
            "did you mean append(100)?",
        ),
        (
            "context:\n    state: {phase: manual}",
            (
                "line 4, column 5: sync.merge.context[state]: expected one of "
                f"{STRATEGIES}, found a section"
            ),
            "the README tells what each of them does",
        ),
        (
            "context:\n    actve_files: union",
            (
                "line 4, column 5: sync.merge.context[actve_files]: expected a field of context, "
                "or a pattern for some, found a path that no field of context has"
            ),
            "did you mean active_files?",
        ),
        (
            "metadata:\n    status.x: ours",
            (
                "line 4, column 5: sync.merge.metadata[status.x]: expected a field of metadata, "
                "or a pattern for some, found a path that no field of metadata has"
            ),
            "did you mean status?",
        ),
        (
            "message:\n    zzz: ours",
            (
                "line 4, column 5: sync.merge.message[zzz]: expected a field of message, "
                "or a pattern for some, found a path that no field of message has"
            ),
            "message has id, timestamp, role, content, tool_calls, metadata, parts",
        ),
        (
            "preferences:\n    editor..tabs: ours",
            (
                "line 4, column 5: sync.merge.preferences[editor..tabs]: expected a field of "
                "preferences, or a pattern for some, found a name that is empty"
            ),
            "part names with '.'; '*' stands for any name, '**' for any number of them",
        ),
        (
            "part: [text]",
            (
                "line 3, column 3: sync.merge.part: expected a section, each entry a text, "
                "found a list"
            ),
            "give sync.merge.part a section, each entry a text",
        ),
        (
            "cache: {a: ours}",
            (
                "line 3, column 3: sync.merge.cache: expected one of metadata, context, "
                "preferences, message, part, found the unknown name 'cache'"
            ),
            "did you mean",
        ),
    ],
)
def test_a_wrong_choice_is_refused_by_line_and_key(
    file: Path, text: str, detail: str, hint: str
) -> None:
    file.write_text(f"sync:\n merge:\n  {text}\n")
    error = refused(file=file)
    assert error.detail == f"{file}, {detail}"
    assert error.hint.startswith(hint)


@pytest.mark.parametrize("entry", [r'"state.a\x07": ours', r'state.a: "lattice(a, b\x07)"'])
def test_what_a_terminal_could_not_show_is_refused(file: Path, entry: str) -> None:
    file.write_text(f"sync: {{merge: {{context: {{{entry}}}}}}}")
    assert "\x07" not in str(refused(file=file))


def test_variables_flags_and_typed_texts_are_told_to_use_the_file() -> None:
    expected = "sync.merge.context: expected nothing: this option is a section of the file, found"
    hint = "write sync.merge.context in sessions.yaml, one 'field: strategy' on a line"
    by_variable = refused(environ={"SESSIOND_SYNC_MERGE_CONTEXT": "state: ours"})
    by_flag = refused(flags={"sync.merge.context": "state: ours"})
    with pytest.raises(ConfigurationError) as typed:
        with_value(Configuration(), "sync.merge.context", "state: ours")
    assert by_variable.detail == f"variable SESSIOND_SYNC_MERGE_CONTEXT: {expected} a text"
    assert by_flag.detail == f"flag: {expected} a text"
    assert typed.value.detail == f"{expected} a text"
    assert {by_variable.hint, by_flag.hint, typed.value.hint} == {hint}


def test_the_choices_are_displayed_in_one_line(file: Path) -> None:
    file.write_text("sync: {merge: {context: {state: ours, active_files: union}}}")
    loaded = load(file=file, environ={}, flags={})
    assert config.displayed(loaded, "sync.merge.context") == "state: ours, active_files: union"
    assert config.displayed(loaded, "sync.merge.part") == ""


def test_a_custom_strategy_is_imported_when_the_rules_are_made(
    file: Path, module: ModuleType
) -> None:
    module.longer = lambda _base, ours, theirs: max(ours.value, theirs.value, key=len)  # type: ignore[attr-defined]
    file.write_text("sync: {merge: {preferences: {motto: 'merging_of_ours:longer'}}}")
    rules = merge_rules(load(file=file, environ={}, flags={}).sync.merge).of("preferences")
    merged = merge({}, Side({"motto": "longer"}, 1), Side({"motto": "short"}, 2), rules)
    assert merged.value == {"motto": "longer"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("no_such_module_of_ours:f", "ModuleNotFoundError at its import"),
        ("merging_of_ours:missing", "AttributeError at its import"),
        ("merging_of_ours:number", "the number 3"),
    ],
)
def test_a_custom_strategy_that_is_none_is_refused_at_the_start(
    module: ModuleType, name: str, found: str
) -> None:
    module.number = 3  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError) as caught:
        merge_rules(MergeOptions(context={"state.phase": name}))
    assert caught.value.detail == (
        f"sync.merge.context[state.phase]: expected a function at {name} that takes "
        f"(base, ours, theirs), found {found}"
    )
    assert caught.value.hint


def test_reading_a_file_imports_nothing(file: Path) -> None:
    file.write_text("sync: {merge: {context: {state: 'no_such_module_of_ours:f'}}}")
    assert load(file=file, environ={}, flags={}).sync.merge.context

"""Whatever the bytes: a plain value or a ConfigurationError, within a second of work."""

from __future__ import annotations

import json
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessiond.config.yaml_guard import LIMIT_BYTES, Document, Plain, read_yaml
from sessiond.errors import ConfigurationError

TOKENS = [
    *"[]{},:?-|>&*!%@`'\"#\\ \n\t~.019abxUu<=+_\r\x85\u2028\ufeff\x00é",
    *("- ", "? ", ": ", "\n  ", "---\n", "...\n", "<<: ", "!!", "%YAML 1.1\n", "%TAG ! x:\n"),
    *("\\U", "\\x", "&a ", "*a ", "|+2\n", ">-\n", "\r\n", "!<", "%F0", "key: ", "0x", "1e9"),
]
fragments = st.lists(st.sampled_from(TOKENS), max_size=30).map("".join)
many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_read_or_refused(text: bytes | str) -> None:
    started = time.thread_time()
    result: Document | ConfigurationError
    try:
        result = read_yaml(text, "fuzz.yaml")
    except ConfigurationError as error:
        result = error
    assert time.thread_time() - started < 1
    if isinstance(result, ConfigurationError):
        assert_tells_what_to_do(result)
    else:
        assert_plain(result.value)


def assert_tells_what_to_do(error: ConfigurationError) -> None:
    assert error.detail.startswith("fuzz.yaml")
    assert "expected " in error.detail
    assert ", found " in error.detail
    assert error.hint
    str(error).encode()


def assert_plain(value: Plain) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            assert type(key) is str
            assert_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            assert_plain(inner)
    else:
        assert type(value) in {str, int, float, bool, type(None)}


@many
@given(st.binary(max_size=200))
def test_random_bytes(text: bytes) -> None:
    assert_read_or_refused(text)


@many
@given(st.text(st.characters(), max_size=200))
def test_random_text(text: str) -> None:
    assert_read_or_refused(text)


@many
@given(fragments)
def test_random_yaml_tokens(text: str) -> None:
    assert_read_or_refused(text)
    assert_read_or_refused(text.encode())


@few
@given(fragments, st.lists(st.sampled_from(TOKENS), min_size=1, max_size=5).map("".join))
def test_one_fragment_repeated_to_64_kib(start: str, fragment: str) -> None:
    assert_read_or_refused((start + fragment * LIMIT_BYTES)[: LIMIT_BYTES // 2])
    filled = (start + fragment * LIMIT_BYTES).encode()[:LIMIT_BYTES]
    assert_read_or_refused(filled.decode(errors="ignore"))


@few
@given(
    st.lists(st.sampled_from(["[", "{a: ", "[a, ", "- ", "? ", "\n", "{"]), min_size=1, max_size=4),
    st.integers(1, 100_000),
)
def test_nested_brackets(brackets: list[str], depth: int) -> None:
    assert_read_or_refused("".join(brackets) * depth)


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.text(st.characters(categories=["L", "N"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc-"), inner, max_size=4),
    max_leaves=20,
)


@many
@given(plain_values)
def test_what_is_written_as_json_is_read_back(value: Plain) -> None:

    assert read_yaml(json.dumps(value, ensure_ascii=False), "fuzz.yaml").value == value

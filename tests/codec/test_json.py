"""JSON from outside: a value, or InvalidInput."""

from __future__ import annotations

import json as stdlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond.codec import json
from sessiond.codec.json import MAX_DEPTH, check_depth, decode
from sessiond.errors import InvalidInput
from sessiond.model import NewMessage

ANY = msgspec.json.Decoder()
MESSAGE = msgspec.json.Decoder(NewMessage)

texts = st.text(st.sampled_from('[]{}"\\/\n\té\U0001f600a'), max_size=8)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=30,
)


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return (opening * depth + closing * depth).encode()


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(values)
def test_json_within_the_limits_is_read_as_it_was_written(value: Any) -> None:
    for ascii_only in (True, False):
        written = stdlib.dumps(value, ensure_ascii=ascii_only).encode()
        assert decode(written, ANY) == value
    assert decode(json.encode(value), ANY) == value


@given(values, st.integers(MAX_DEPTH - 8, MAX_DEPTH + 8))
def test_exactly_what_is_nested_deeper_than_the_limit_is_refused(value: Any, around: int) -> None:
    written = b"[" * around + stdlib.dumps(value).encode() + b"]" * around
    if around + depth_of(value) > MAX_DEPTH:
        with pytest.raises(InvalidInput, match="nested deeper than 64"):
            check_depth(written)
    else:
        check_depth(written)
        decode(written, ANY)


def test_the_limit_itself_is_accepted_and_one_more_is_not() -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        inner = "0" if opening != "[" else ""
        check_depth((opening * MAX_DEPTH + inner + closing * MAX_DEPTH).encode())
        with pytest.raises(InvalidInput):
            check_depth((opening * (MAX_DEPTH + 1) + inner + closing * (MAX_DEPTH + 1)).encode())


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert decode(b"[" + b"[],{}," * 5000 + b"[]]", ANY)[:2] == [[], {}]


@pytest.mark.parametrize(
    "inside", ["[" * 500, "{" * 500, '\\"' + "[" * 500, "\\\\", "\\u005b" * 100, '[\\"[' * 100]
)
def test_brackets_inside_texts_do_not_count(inside: str) -> None:
    check_depth(b'["' + inside.encode() + b'",' + nested(63) + b"]")
    with pytest.raises(InvalidInput):
        check_depth(b'["' + inside.encode() + b'",' + nested(64) + b"]")


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="open"),
        pytest.param(b"[1,]", id="trailing comma"),
        pytest.param(b"[1] [2]", id="two values"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"[Infinity]", id="Infinity"),
        pytest.param(b"1e999", id="too large a number"),
        pytest.param(b"1" * 5000, id="too long a number"),
        pytest.param(b'"\\ud800"', id="lone surrogate"),
        pytest.param(b'"\\udc00\\ud800"', id="surrogates in the wrong order"),
        pytest.param(b'"\xed\xa0\x80"', id="surrogate in UTF-8"),
        pytest.param(b'"\xff"', id="not UTF-8"),
        pytest.param(b'"\xc0\x80"', id="overlong UTF-8"),
        pytest.param(b'{"\xff": 1}', id="a name that is not UTF-8"),
        pytest.param(b'"a\nb"', id="raw line break"),
        pytest.param(nested(100_000), id="100,000 levels"),
        pytest.param(b"[" * 100_000, id="100,000 brackets"),
        pytest.param(b'{"a":' * 100_000, id="100,000 objects"),
        pytest.param(b'"' + b"[" * 100_000, id="a text without an end"),
        pytest.param(b"]" * 1000 + b"[" * 1000, id="closed before it was opened"),
        pytest.param("[1]".encode("utf-16"), id="UTF-16"),
    ],
)
def test_what_is_not_json_is_invalid_input(bad: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode(bad, ANY)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_invalid_input(data: bytes) -> None:
    for decoder in (ANY, MESSAGE):
        try:
            value = decode(data, decoder)
        except InvalidInput:
            continue
        assert decode(json.encode(value), decoder) == value


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**64), 10**400])
def test_huge_whole_numbers_keep_every_digit(number: int) -> None:
    assert json.encode(decode(str(number).encode(), ANY)) == str(number).encode()


def test_of_a_name_given_twice_the_last_value_counts() -> None:
    assert decode(b'{"a":1,"a":2}', ANY) == {"a": 2}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{}", "role"),
        (b'{"role":"king"}', "$.role"),
        (b'{"role":"user","parts":[1]}', "$.parts"),
        (b'{"role":"user","id":"a b"}', "$.id"),
        (b'{"role":"user","id":"a\\n"}', "$.id"),
        (b'{"role":"user","rolle":1}', "rolle"),
        (b'{"role":"user","timestamp":"2026-01-13T10:30:00"}', "$.timestamp"),
        (b"[]", "object"),
    ],
)
def test_json_of_another_shape_is_refused_and_the_place_is_named(body: bytes, place: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode(body, MESSAGE)
    assert place in str(refused.value)

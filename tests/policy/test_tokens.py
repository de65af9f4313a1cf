"""The estimate of tokens, held against counts of a real tokenizer.

`token_samples.json` holds texts of this repository, and some in Chinese, Japanese and Korean, each
with the number of its tokens in o200k_base, counted once by gpt-tokenizer 3. None of them was among
the texts that the weights come from.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from statistics import quantiles
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond.model import Message, Part
from sessiond.policy import tokens


class Sample(msgspec.Struct):
    kind: str
    text: str
    tokens: int

    @property
    def error(self) -> float:
        """How far off the estimate is, relative to the count."""
        return tokens.of_text(self.text) / self.tokens - 1


SAMPLES = msgspec.json.decode(
    Path(__file__).with_name("token_samples.json").read_bytes(), type=list[Sample]
)
KINDS = {name: list(group) for name, group in groupby(SAMPLES, key=lambda sample: sample.kind)}


def percentile(samples: list[Sample], percent: int) -> float:
    errors = [abs(sample.error) for sample in samples]
    return quantiles(errors, n=100, method="inclusive")[percent - 1]


def test_the_error_is_what_the_readme_says() -> None:
    assert percentile(SAMPLES, 50) <= 0.11
    assert percentile(SAMPLES, 95) <= 0.35


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_text_is_rather_thought_too_large_than_too_small(kind: str) -> None:
    estimated = sum(tokens.of_text(sample.text) for sample in KINDS[kind])
    counted = sum(sample.tokens for sample in KINDS[kind])
    assert -0.1 <= estimated / counted - 1 <= 0.4


@given(st.text(), st.integers(1, 9))
def test_a_text_is_estimated_alike_in_stretches_of_any_length(text: str, stretch: int) -> None:
    whole = tokens.of_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_STRETCH_BYTES", stretch)
        assert tokens.of_text(text) == whole


@given(st.text(), st.text())
def test_more_text_never_takes_less(one: str, other: str) -> None:
    assert tokens.of_text(one + " " + other) >= max(tokens.of_text(one), tokens.of_text(other))


def test_nothing_takes_nothing() -> None:
    assert tokens.of_text("") == 0
    nothing: tuple[Any, ...] = (None, "", [], {})
    assert [tokens.of_value(empty) for empty in nothing] == [0] * 4


@pytest.mark.parametrize("text", ["\ud800", "\x00", "🙂🙂", "é" * 10, "a\r\nb"])
def test_any_text_has_an_estimate(text: str) -> None:
    assert 0 < tokens.of_text(text) <= 3 * len(text)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "text", "text": "three short words"}, tokens.of_text("three short words")),
        ({"type": "text", "text": 7}, tokens.of_text("7")),
        ({"type": "tool"}, 0),
        (
            {"type": "tool", "tool": "grep", "state": {"input": {"a": 1}, "output": "found"}},
            tokens.of_text("grep") + tokens.of_text('{"a":1}') + tokens.of_text("found"),
        ),
        ({"type": "tool", "state": "odd"}, tokens.of_text("odd")),
        ({"type": "file", "url": "data:" + "A" * 9999}, tokens.OF_A_FILE),
        ({"type": "step-finish", "cost": 12}, 0),
        ({"type": "own", "x": "y"}, tokens.of_text('{"type":"own","x":"y"}')),
    ],
)
def test_of_a_part_counts_what_a_model_is_sent(part: Part, expected: int) -> None:
    assert tokens.of_part({"id": "p", **part}) == expected


def test_a_message_counts_its_parts_or_itself_and_no_metadata() -> None:
    def message(**fields: Any) -> Message:
        at = datetime(2026, 1, 13, tzinfo=UTC)
        return Message(id="m", timestamp=at, role="user", metadata={"long": "x" * 999}, **fields)

    words = tokens.of_text("some words")
    assert tokens.of_message(message()) == tokens.OF_A_MESSAGE
    assert tokens.of_message(message(content="some words")) == tokens.OF_A_MESSAGE + words
    parts = [{"id": "p", "type": "text", "text": "some words"}]
    assert (
        tokens.of_message(message(content="some words", parts=parts)) == tokens.OF_A_MESSAGE + words
    )

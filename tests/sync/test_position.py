"""Positions as text, and the fold that makes one prove the history before it."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sessiond.errors import InvalidInput
from sessiond.sync.position import NO_EPOCH, START, Position, entry_hash, fold, parse_position

epochs = st.text("0123456789abcdef", min_size=14, max_size=14)
offsets = st.integers(1, 10**15 - 1)
hashes = st.binary(min_size=7, max_size=7)
lines = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=20)
LANE_ONE, LANE_TWO = 67_108_859, 67_108_837


@given(epochs, offsets)
def test_a_position_survives_being_written_and_read(epoch: str, offset: int) -> None:
    position = Position(epoch, offset)
    assert parse_position(str(position)) == position


@given(offsets)
def test_an_offset_alone_names_a_place_without_an_epoch(offset: int) -> None:
    position = parse_position(str(offset))
    assert position == Position("", offset)
    assert str(position) == str(offset)


@pytest.mark.parametrize("text", ["0", "0:0", f"{NO_EPOCH}:0", "000"])
def test_every_way_to_say_zero_is_the_start(text: str) -> None:
    assert parse_position(text) == START


def test_the_start_is_written_with_the_epoch_of_an_empty_log() -> None:
    assert str(START) == "00000000000000:0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":5",
        "5:",
        "-1",
        "+1",
        " 1",
        "1\n",
        "1.0",
        "1e3",
        "abc",
        "0:5",
        "ABCDEF01234567:5",
        "abcdef0123456:5",
        "abcdef012345678:5",
        "abcdef01234567:",
        "abcdef01234567:1:2",
        "1" * 16,
        "9" * 5000,
        "٣",
        "abcdef01234567:٣",
        "²",
    ],
)
def test_what_is_no_position_is_refused_as_invalid_input(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_position(text)
    assert len(str(refused.value)) < 300


@given(st.one_of(st.text(max_size=30), st.from_regex(r"[0-9a-f:]{0,20}", fullmatch=True)))
def test_any_text_is_a_position_or_invalid_input(text: str) -> None:
    try:
        position = parse_position(text)
    except InvalidInput:
        return
    assert parse_position(str(position)) == position


@given(epochs, hashes)
def test_a_folded_epoch_is_an_epoch_again(epoch: str, content: bytes) -> None:
    folded = fold(epoch, content)
    assert len(folded) == 14
    assert int(folded[:7], 16) < LANE_ONE
    assert int(folded[7:], 16) < LANE_TWO
    assert parse_position(f"{folded}:1") == Position(folded, 1)


@given(epochs, hashes, hashes)
def test_two_entries_in_the_other_order_give_another_epoch(
    epoch: str, one: bytes, other: bytes
) -> None:
    assume(_residues(one) != _residues(other))
    assert fold(fold(epoch, one), other) != fold(fold(epoch, other), one)


@given(st.lists(hashes, min_size=1, max_size=20), st.data())
def test_one_changed_entry_changes_every_epoch_from_there_on(
    history: list[bytes], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(history) - 1))
    changed = data.draw(hashes)
    assume(_residues(changed) != _residues(history[place]))
    other = [*history[:place], changed, *history[place + 1 :]]
    differing = [one != two for one, two in zip(_epochs(history), _epochs(other), strict=True)]
    assert differing == [False] * place + [True] * (len(history) - place)


def test_the_fold_is_the_one_that_existing_logs_were_written_with() -> None:
    content = entry_hash("message.append", "2026-01-13T10:30:00.000Z", "a.b:1", "msg_1", b"{}")
    assert content.hex() == "20a38551fd9af8"
    assert fold(NO_EPOCH, content) == "020a3861fd9d15"
    assert fold(fold(NO_EPOCH, content), content) == "1d5515c215b184"


@given(st.lists(lines, min_size=4, max_size=4), st.binary(max_size=20), lines, st.integers(0, 3))
def test_the_hash_of_an_entry_depends_on_every_field(
    texts: list[str], json: bytes, other: str, place: int
) -> None:
    changed = [*texts[:place], other, *texts[place + 1 :]]
    assert (_hash(changed, json) == _hash(texts, json)) == (changed == texts)
    assert _hash(texts, json + b" ") != _hash(texts, json)
    assert len(_hash(texts, json)) == 7


def _hash(texts: list[str], json: bytes) -> bytes:
    op, at, origin, record_id = texts
    return entry_hash(op, at, origin, record_id, json)


def _residues(content: bytes) -> tuple[int, int]:
    halves = int.from_bytes(content[:3], "big"), int.from_bytes(content[3:], "big")
    return halves[0] % LANE_ONE, halves[1] % LANE_TWO


def _epochs(history: list[bytes]) -> list[str]:
    found = [NO_EPOCH]
    for content in history:
        found.append(fold(found[-1], content))
    return found[1:]

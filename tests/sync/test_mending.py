"""A damaged log made whole: what the chain proves is restored, and what is lost is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sessiond.sync.entry import Entry
from sessiond.sync.mending import Mended, Remains, mend
from sessiond.sync.position import NO_EPOCH, Position, entry_hash, fold

AT = "2026-01-13T10:30:00.000Z"
CREATION = b'{"session_id":"s","workspace":"default","context":{},"preferences":{}}'


def log(length: int) -> list[Entry]:
    """A creation, messages, and in the end an edit of the first of them."""
    entries, epoch = [], NO_EPOCH
    for offset in range(1, length + 1):
        op, name, json = "message.append", f"m{offset}", b'{"content":"%d"}' % offset
        if offset == 1:
            op, name, json = "session.create", "s", CREATION
        elif offset == length:
            op, name = "message.edit", "m2"
        origin = f"here.1:{offset}"
        epoch = fold(epoch, entry_hash(op, AT, origin, name, json))
        entries.append(Entry(offset, op, AT, origin, name, epoch, json))
    return entries


def by_offset(entries: list[Entry]) -> dict[int, Entry]:
    return {entry.offset: entry for entry in entries}


def mended(held: list[Entry], copy: list[Entry] = [], whole: list[Entry] | None = None) -> Mended:  # noqa: B006 - read only
    known = Position(whole[-1].epoch, whole[-1].offset) if whole else None
    found = mend(Remains(by_offset(held), by_offset(copy), known), "repair.1:0")
    assert found is not None
    epoch = NO_EPOCH
    for offset, entry in enumerate(found.entries, 1):
        epoch = fold(epoch, entry_hash(entry.op, entry.at, entry.origin, entry.id, entry.json))
        assert (entry.offset, entry.epoch) == (offset, epoch), "the result is always whole"
    assert found.derived.position == found.entries[-1].position
    return found


def test_a_whole_log_stays_as_it_is() -> None:
    entries = log(6)
    found = mended(entries, whole=entries)
    assert (found.entries, found.restored, found.lost) == (entries, {}, {})


@pytest.mark.parametrize("offset", range(1, 7))
def test_what_is_damaged_or_missing_comes_from_the_copy(offset: int) -> None:
    entries = log(6)
    for held in (
        [entry for entry in entries if entry.offset != offset],
        [replace(e, json=b'{"content":"x"}') if e.offset == offset else e for e in entries],
        [replace(e, epoch="0" * 14) if e.offset == offset else e for e in entries],
        [],
    ):
        found = mended(held, entries, entries)
        assert found.entries == entries
        assert offset in found.restored
        assert found.lost == {}


@pytest.mark.parametrize("offset", range(1, 7))
def test_an_epoch_is_restored_from_what_follows(offset: int) -> None:
    entries = log(6)
    held = [replace(e, epoch="0" * 14) if e.offset == offset else e for e in entries]
    found = mended(held, whole=entries)
    assert (found.entries, list(found.restored), found.lost) == (entries, [offset], {})


@pytest.mark.parametrize("offset", range(2, 6))
def test_what_nobody_has_is_lost_and_all_the_rest_keeps_its_place(offset: int) -> None:
    entries = log(6)
    held = [replace(e, json=b"{") if e.offset == offset else e for e in entries]
    found = mended(held, whole=entries)
    lost = {offset, 6} if offset == 2 else {offset}  # the last one edits the message of the second
    assert set(found.lost) == lost
    for entry, before in zip(found.entries, entries, strict=True):
        if entry.offset in lost:
            assert (entry.op, entry.id) == ("document.change", "context")
        else:
            assert (entry.op, entry.id, entry.json) == (before.op, before.id, before.json)
    assert found.entries[offset - 2] == entries[offset - 2]
    assert found.entries[offset].epoch != entries[offset].epoch, "readers learn of it"


def test_of_a_gap_what_comes_behind_it_is_said_to_be_unproven() -> None:
    entries = log(6)
    found = mended([entry for entry in entries if entry.offset not in (3, 4)], whole=entries)
    assert set(found.lost) == {3, 4}
    assert found.unproven == [5]


def test_a_copy_of_another_history_is_not_mixed_in() -> None:
    entries = log(6)
    other = [replace(entry, json=b'{"content":"other"}') for entry in entries]
    held = [entry for entry in entries if entry.offset != 4]
    assert set(mended(held, other, entries).lost) == {4}


def test_what_the_copy_has_behind_the_end_is_taken_if_it_follows() -> None:
    entries = log(6)
    assert mended(entries[:3], entries, entries[:3]).entries == entries
    assert mended(entries, whole=entries[:3]).entries == entries, "metadata that is too old"


def test_without_a_beginning_there_is_nothing_to_mend() -> None:
    assert mend(Remains(by_offset(log(6)[1:]), {}, None), "r:0") is None
    assert mend(Remains({}, {}, None), "r:0") is None


def test_what_others_put_far_behind_the_end_is_left_out() -> None:
    entries = log(6)
    foreign = replace(entries[2], offset=1_768_300_200_000)
    assert mended([*entries, foreign]).entries == entries
    assert mended([*entries, foreign], whole=entries).entries == entries


@given(st.data())
def test_any_damage_gives_a_whole_log_and_with_a_copy_the_same_one(data: st.DataObject) -> None:
    entries = log(data.draw(st.integers(3, 9)))
    held = []
    for entry in entries:
        match data.draw(st.sampled_from(["keep", "keep", "drop", "json", "epoch", "id", "op"])):
            case "keep":
                held.append(entry)
            case "json":
                held.append(replace(entry, json=data.draw(st.binary(max_size=8))))
            case "epoch":
                held.append(
                    replace(entry, epoch=data.draw(st.text("0123456789abcdefx", max_size=15)))
                )
            case "id":
                held.append(replace(entry, id="other"))
            case "op":
                held.append(replace(entry, op="message.append"))
    assert mended(held, entries, entries).entries == entries
    if held and held[0] == entries[0]:
        mended(held, whole=entries)

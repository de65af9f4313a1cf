"""Rows, seals and marks, and reading them out of a file's bytes: pure, and never an exception."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessiond.journal import carving
from sessiond.journal.connection import (
    COLUMNS,
    PAGE_BYTES,
    WIDTHS,
    connect,
    create_tables,
    in_one_transaction,
    insert,
    open_file,
)
from sessiond.journal.record import (
    Row,
    decode_operations,
    encode_operations,
    entry_number,
    entry_of,
    identity_and_sequence,
    sealed,
    unsealed,
)
from sessiond.journal.watermark import Mark, decode_mark, encode_mark

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(0, 2**62)
VALUES = st.one_of(NUMBERS, TEXTS, st.binary(max_size=40), st.none())


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=10))
def test_operations_come_back_as_they_were(group: list[bytes]) -> None:
    assert decode_operations(encode_operations(group)) == group


@given(st.lists(VALUES, min_size=1, max_size=6), st.lists(VALUES, min_size=1, max_size=6))
def test_a_seal_fits_its_row_and_no_other(columns: list[object], others: list[object]) -> None:
    row = sealed("entries", *columns)
    assert unsealed("entries", row) == tuple(columns)
    assert unsealed("confirmed", row) is None
    if repr(others) != repr(columns):
        assert unsealed("entries", (*others, row[-1])) is None


@given(st.integers(1, 2**22), st.integers(1, 2**40 - 1), st.integers(1, 2**40 - 1))
def test_numbers_are_in_the_order_of_the_writes(identity: int, first: int, second: int) -> None:
    number = entry_number(identity, first)
    assert identity_and_sequence(number) == (identity, first)
    assert (number < entry_number(identity, second)) == (first < second)
    assert number < entry_number(identity + 1, 1) < 2**63


@given(TEXTS, TEXTS, st.lists(st.binary(max_size=50), min_size=1, max_size=4))
def test_an_entry_is_what_its_row_says(session_id: str, key: str, group: list[bytes]) -> None:
    body = encode_operations(group)
    row = sealed("entries", entry_number(3, 17), "abc", session_id, key, 5, body)
    columns = unsealed("entries", row)
    assert columns is not None
    entry = entry_of(columns, None)
    assert (entry.span.first, entry.span.last) == (17, 16 + len(group))
    assert (entry.session_id, entry.key, entry.operations) == (session_id, key, group)


@given(st.binary(max_size=6), NUMBERS, st.integers(0, 127), st.integers(0, 7))
def test_a_mark_comes_back_and_a_flipped_bit_makes_it_none(
    incarnation: bytes, sequence: int, place: int, bit: int
) -> None:
    mark = Mark(incarnation.hex() or "0", sequence)
    line = encode_mark(mark)
    assert decode_mark(line) == mark
    flipped = bytearray(line)
    flipped[place] ^= 1 << bit
    assert decode_mark(bytes(flipped)) is None


@given(st.binary(max_size=200))
def test_anything_else_is_no_mark(content: bytes) -> None:
    assert decode_mark(content) is None


def rows_for(chance: Random, count: int) -> list[Row]:
    sizes = [chance.choice((0, 1, 100, 1_000, 4_050, 4_090, 9_000, 70_000)) for _ in range(count)]
    return [
        sealed(
            *("entries", entry_number(1, place + 1), "abc", f"ses_{place}", "schlüssel"),
            *(chance.choice((0, 1, 200, 2**40)), encode_operations([chance.randbytes(size)])),
        )
        for place, size in enumerate(sizes)
    ]


def write(path: Path, rows: list[Row]) -> sqlite3.Connection:
    connection = open_file(path, connect)
    assert isinstance(connection, sqlite3.Connection)
    in_one_transaction(connection, lambda: create_tables(connection))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    half = len(rows) // 2
    in_one_transaction(connection, lambda: insert(connection, "entries", rows[:half]))
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    for row in rows[half:]:
        insert(connection, "entries", [row])
    return connection


def carved(file: bytes, log: bytes) -> set[Row]:
    found = carving.rows(file, log, PAGE_BYTES)
    return {row for row in found if len(row) == WIDTHS["entries"] and unsealed("entries", row)}


@pytest.mark.parametrize("seed", range(10))
def test_every_row_is_carved_out_of_file_and_log(tmp_path: Path, seed: int) -> None:
    rows = rows_for(Random(seed), 50)
    path = tmp_path / "journal.db"
    connection = write(path, rows)
    file, log = path.read_bytes(), path.with_name("journal.db-wal").read_bytes()
    assert carved(file, log) == set(rows)
    connection.close()
    assert carved(path.read_bytes(), b"") == set(rows)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, set[Row]]:
    path = tmp_path_factory.mktemp("carving") / "journal.db"
    rows = rows_for(Random(0), 30)
    connection = write(path, rows)
    content = path.read_bytes(), path.with_name("journal.db-wal").read_bytes(), set(rows)
    connection.close()
    return content


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_whatever_is_broken_nothing_but_rows_that_were_written_comes_out(
    sample: tuple[bytes, bytes, set[Row]], chance: Random, breaks: int
) -> None:
    file, log, rows = bytearray(sample[0]), bytearray(sample[1]), sample[2]
    for _ in range(breaks):
        content = chance.choice((file, log))
        place = chance.randrange(len(content))
        content[place : place + chance.choice((1, 4, 600))] = chance.randbytes(1)
    assert carved(bytes(file), bytes(log)) <= rows


@given(st.binary(max_size=3 * PAGE_BYTES), st.binary(max_size=300))
def test_carving_takes_any_bytes(file: bytes, log: bytes) -> None:
    assert carved(file, log) == set()
    assert carving.lost_its_header(log) or not any(log)


def test_no_two_tables_look_alike() -> None:
    assert len(set(WIDTHS.values())) == len(COLUMNS)


def frames(pattern: str) -> list[carving.Frame]:
    """`.` is a page within a transaction, `C` the one that commits it."""
    return [carving.Frame(1, 0, commits=letter == "C") for letter in pattern]


@pytest.mark.parametrize(
    ("pattern", "valid", "cut"),
    [
        ("", 0, False),
        ("..C.C", 5, False),
        ("..C..", 3, False),  # a torn transaction
        ("..C.C", 3, False),  # the last one, torn or not: nobody can tell by the log alone
        ("..C.C.", 3, True),  # it was synced: another one began behind it
        ("..C.C.C", 0, True),
        ("...", 0, False),
    ],
)
def test_a_log_that_goes_on_behind_a_break_was_damaged(pattern: str, valid: int, cut: bool) -> None:
    assert carving.cuts_a_commit(frames(pattern), valid) == cut

"""The form of an archive: what goes in comes out, and damage is noticed wherever it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond.archive.record import FORM, Archive, KeyContent, pack, unpack
from sessiond.errors import ArchiveDamaged

values = st.binary(max_size=60)
hashes = st.lists(st.tuples(values, values), max_size=8).map(
    lambda pairs: KeyContent("hash", [word for pair in pairs for word in pair])
)
streams = st.lists(st.tuples(values, st.lists(values, max_size=6)).map(list), max_size=8).map(
    lambda entries: KeyContent("stream", entries)
)
archives = st.builds(
    Archive,
    session_id=st.text(max_size=20),
    epoch=st.text(max_size=14),
    version=st.integers(0, 2**53),
    keys=st.dictionaries(st.text(max_size=8), hashes | streams, max_size=5),
)
SMALL = Archive("ses_1", "0" * 14, 1, {"metadata": KeyContent("hash", [b"title", b"T"])})


@given(archive=archives)
def test_what_goes_in_comes_out(archive: Archive) -> None:
    assert unpack(pack(archive), archive.session_id) == archive


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    packed = pack(SMALL)
    for place in range(len(packed)):
        for bit in range(8):
            bad = packed[:place] + bytes([packed[place] ^ (1 << bit)]) + packed[place + 1 :]
            with pytest.raises(ArchiveDamaged):
                unpack(bad, "ses_1")
        with pytest.raises(ArchiveDamaged):
            unpack(packed[:place], "ses_1")
        with pytest.raises(ArchiveDamaged):
            unpack(packed[:place] + bytes(len(packed) - place), "ses_1")
    with pytest.raises(ArchiveDamaged):
        unpack(packed + b"\0", "ses_1")


def test_the_archive_of_another_session_is_refused() -> None:
    with pytest.raises(ArchiveDamaged, match="it is of session 'ses_1'"):
        unpack(pack(SMALL), "ses_2")


def test_a_newer_form_is_not_guessed_at() -> None:
    with pytest.raises(ArchiveDamaged, match="does not begin like one"):
        unpack(pack(SMALL).replace(FORM, b"sessiond-archive-2\n"), "ses_1")

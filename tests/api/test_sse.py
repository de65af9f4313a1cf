"""How events are cut into pieces of a stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sessiond.api.sse import pieces

PIECE = 32 * 1024
frames = st.lists(st.integers(0, 3 * PIECE).map(bytes), max_size=6)


@given(frames)
def test_nothing_is_lost_and_no_piece_is_large(frames: list[bytes]) -> None:
    found = list(pieces(frames))
    assert b"".join(found) == b"".join(frames)
    assert all(len(each) <= PIECE for each in found)


def test_small_events_go_together_and_a_large_one_is_not_copied() -> None:
    small, large = [b"a" * 100] * 300, b"b" * 10 * PIECE
    assert len(list(pieces(small))) == 1
    assert all(isinstance(each, memoryview) and each.obj is large for each in pieces([large]))

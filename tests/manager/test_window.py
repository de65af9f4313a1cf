"""Windows through the Python API, in both ways."""

from __future__ import annotations

import pytest

from sessiond import Session
from sessiond.errors import InvalidInput
from tests.manager.programs import state


async def test_a_window_shows_what_fits_and_leaves_the_session_whole(session: Session) -> None:
    for number in range(10):
        await session.add_message(role="user", content=f"{number} " + "word " * 30)
    before = state(session)
    window = await session.window(tokens=100, strategy="pinned")
    assert window.messages == session.messages[-len(window.messages) :] != []
    assert window.tokens <= window.budget == 100
    assert sum(left.messages for left in window.left_out) + len(window.messages) == 11
    assert state(session) == before
    assert (await session.window()).messages == session.messages


async def test_what_cannot_be_is_refused(session: Session) -> None:
    with pytest.raises(InvalidInput):
        await session.window(tokens=1)
    with pytest.raises(InvalidInput):
        await session.window(strategy="newest")  # type: ignore[arg-type]

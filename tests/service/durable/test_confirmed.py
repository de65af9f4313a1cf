from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from sessiond.errors import StoreUnavailable
from sessiond.service.durable.confirmed import Confirmed, Lookup
from sessiond.sync.position import Position


class _Journal:
    async def newest_confirmed(self) -> dict[str, Position]:
        return {f"ses_{number}": Position("", number) for number in (1, 2, 3)}


async def _unreachable(_session_id: str, _positions: list[Position]) -> list[bool]:
    raise StoreUnavailable("Redis does not answer")


async def _forgive(_session_id: str) -> None:
    return


async def test_of_lookups_that_fail_together_one_is_told_and_none_is_left_to_the_log() -> None:
    unheard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    journal: Any = _Journal()
    confirmed = Confirmed(journal, Lookup(_unreachable, _forgive), lambda *_: 0)
    await confirmed.start()
    with pytest.raises(StoreUnavailable):
        await confirmed.recheck()
    gc.collect()
    assert unheard == []
    assert confirmed.is_in_doubt


async def test_sessions_that_the_journal_dropped_are_forgotten_and_the_others_kept() -> None:
    class Dropping(_Journal):
        async def newest_confirmed(self) -> dict[str, Position]:
            return {}

        async def sessions(self) -> set[str]:
            return {"ses_7", "ses_19999"}

    journal: Any = Dropping()
    confirmed = Confirmed(journal, Lookup(_unreachable, _forgive), lambda *_: 0)
    await confirmed.start()
    for number in range(20_000):
        confirmed.note(f"ses_{number}", Position("", number + 1))
    confirmed.begin_look()
    confirmed.end_look()
    assert confirmed.known("ses_8")
    await confirmed.forget_dropped()
    assert confirmed.known("ses_7") == Position("", 8)
    assert confirmed.known("ses_19999") == Position("", 20_000)
    assert confirmed.known("ses_8") is None

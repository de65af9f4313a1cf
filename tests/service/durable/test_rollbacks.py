"""The watch for rollbacks, on a real journal, before a Redis that is played."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from sessiond.journal import Entry, Journal
from sessiond.service.durable.confirmed import Confirmed, Lookup
from sessiond.service.durable.rollbacks import RollbackWatch
from sessiond.service.offline.reachability import Reachability
from sessiond.store.watermarks import Watermark, WatermarkStore
from sessiond.sync.position import Position
from tests.journal.support import at


class PlayedRedis:
    """Has the positions that it is given, in one life after the other."""

    def __init__(self) -> None:
        self.life = "first"
        self.positions: set[Position] = set()
        self.asked: list[Position] = []
        self._watermark: Watermark | None = None

    async def exchange(self, _: str, now: Watermark) -> tuple[str, Watermark | None]:
        before, self._watermark = self._watermark, now
        return self.life, before

    async def are_there(self, _: str, positions: list[Position]) -> list[bool]:
        self.asked += positions
        return [position in self.positions for position in positions]

    async def forgive(self, _: str) -> None:
        return None


class Watched:
    """A watch, and what it has written again."""

    def __init__(self, journal: Journal, redis: PlayedRedis) -> None:
        self.journal = journal
        self.seconds = 0.0
        self.again: list[Entry] = []
        lookup = Lookup(are_there=redis.are_there, forgive=redis.forgive)
        self.confirmed = Confirmed(journal, lookup, self._write_again)
        self.watch = RollbackWatch(
            journal,
            cast("WatermarkStore", redis),
            self.confirmed,
            cast("Reachability", None),
            now=lambda: self.seconds,
        )

    def _write_again(self, _: str, lost: list[Entry]) -> int:
        self.again += lost
        return len(lost)

    async def write(self, offset: int) -> Position:
        """Journal something that Redis confirms."""
        span = await self.journal.append("s", [b"x"])
        self.journal.confirm(span, at(offset))
        self.confirmed.note("s", at(offset))
        return at(offset)


@pytest.fixture
def redis() -> PlayedRedis:
    return PlayedRedis()


@pytest.fixture
async def watched(tmp_path: Path, redis: PlayedRedis) -> AsyncIterator[Watched]:
    journal = await Journal.open(tmp_path / "j")
    watched = Watched(journal, redis)
    await watched.watch.look()
    watched.seconds = 100
    yield watched
    await journal.close()


async def test_a_redis_that_stays_the_same_is_asked_for_the_newest_only(
    watched: Watched, redis: PlayedRedis
) -> None:
    for offset in (1, 3, 2):
        redis.positions.add(await watched.write(offset))
    await watched.watch.look()
    assert redis.asked == [at(3)]
    await watched.watch.look()
    assert redis.asked == [at(3)]
    assert not watched.confirmed.is_in_doubt


async def test_one_that_went_back_by_less_than_a_look_gets_again_what_it_lacks(
    watched: Watched, redis: PlayedRedis
) -> None:
    """Its life and its mark are those of the look before."""
    redis.positions.add(await watched.write(1))
    await watched.write(2)
    await watched.write(3)
    await watched.watch.look()
    assert [entry.position for entry in watched.again] == [at(2), at(3)]


@pytest.mark.parametrize("change", ["life", "mark"])
async def test_another_or_an_emptied_one_gets_again_what_it_lacks(
    watched: Watched, redis: PlayedRedis, change: str
) -> None:
    redis.positions.add(await watched.write(1))
    await watched.write(2)
    await watched.watch.look()
    if change == "life":
        redis.life = "second"
    else:
        redis._watermark = None
    await watched.watch.look()
    assert [entry.position for entry in watched.again] == [at(2)]


async def test_an_answer_of_the_former_one_that_comes_late_is_not_believed(
    watched: Watched, redis: PlayedRedis
) -> None:
    redis.life = "second"
    await watched.watch.look()
    await watched.write(7)  # confirmed by the one that is gone
    watched.seconds += 2
    await watched.watch.look()
    assert [entry.position for entry in watched.again] == [at(7)]


async def test_after_a_while_nothing_of_the_former_one_is_waited_for(
    watched: Watched, redis: PlayedRedis
) -> None:
    redis.life = "second"
    await watched.watch.look()
    watched.seconds += 60
    await watched.write(6)
    redis.positions.add(await watched.write(7))
    await watched.watch.look()
    assert redis.asked == [at(7)]

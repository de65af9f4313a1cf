"""Old parts of long logs are compressed by whoever writes to them, when they have settled."""

from __future__ import annotations

import pytest

from sessiond.model import NewMessage, NewSession
from sessiond.policy.compression import BlockRules
from sessiond.service.retention.compression import Compression
from sessiond.store.blocks import BlockStore
from sessiond.sync.position import Position
from tests.store.support import Services, assert_contract

RULES = BlockRules(kept=8, entries=4, size=1000)


class Seconds:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def compression_of(core: Services, seconds: Seconds) -> Compression:
    blocks = BlockStore(core.redis, core.keys)
    compression = Compression(core.store, blocks, settled_seconds=60, now=seconds, rules=RULES)
    core.store.on_commit.append(compression.note)
    return compression


async def append(core: Services, count: int, size: int = 1) -> None:
    for _ in range(count):
        await core.messages.append("ses_1", [NewMessage(role="user", content="x" * size)])


async def live(core: Services) -> int:
    return int(await core.redis.xlen(core.keys.conversation("ses_1")))


async def test_what_settled_is_compressed_and_the_newest_stay(
    core: Services, seconds: Seconds
) -> None:
    compression = compression_of(core, seconds)
    await core.sessions.create(NewSession(session_id="ses_1"))
    await append(core, 29)
    before = await core.sessions.load("ses_1")

    await compression.look()
    assert await live(core) == 30  # nothing is known to be old yet
    seconds.now += 59
    await compression.look()
    assert await live(core) == 30
    seconds.now += 1
    await append(core, 4)
    await compression.look()
    assert await live(core) == 14  # 30 - 8 = 22: five blocks of four; what came since is not old

    seconds.now += 60
    await compression.look()
    assert await live(core) == 10
    assert_contract(await core.entries("ses_1"))
    assert (await core.store.log.page("ses_1", Position("", 3), 1)).entries[0].offset == 4
    assert before[:200] == (await core.sessions.load("ses_1"))[:200]


async def test_a_log_that_rests_is_not_looked_at_again(core: Services, seconds: Seconds) -> None:
    compression = compression_of(core, seconds)
    await core.sessions.create(NewSession(session_id="ses_1"))
    await append(core, 10)
    assert not compression._grown
    await append(core, 1)
    assert compression._grown
    for _ in range(3):
        await compression.look()
        seconds.now += 60
    assert not compression._grown
    assert await live(core) == 8


async def test_large_messages_make_blocks_of_few(core: Services, seconds: Seconds) -> None:
    compression = compression_of(core, seconds)
    await core.sessions.create(NewSession(session_id="ses_1"))
    await append(core, 13, size=600)
    assert await compression.compress("ses_1", 14) == 4
    assert await live(core) == 9  # of what may go, the last fits alone: it waits for company
    assert len(await core.entries("ses_1")) == 14


async def test_two_that_compress_at_once_do_it_once(core: Services, seconds: Seconds) -> None:
    one, other = compression_of(core, seconds), compression_of(core, seconds)
    await core.sessions.create(NewSession(session_id="ses_1"))
    await append(core, 31)
    await one.compress("ses_1", 32)
    assert await other.compress("ses_1", 32) == 0
    assert_contract(await core.entries("ses_1"))


async def test_a_deleted_session_is_passed_over(core: Services, seconds: Seconds) -> None:
    compression = compression_of(core, seconds)
    await core.sessions.create(NewSession(session_id="ses_1"))
    await append(core, 20)
    await core.sessions.delete("ses_1")
    await compression.look()
    assert not compression._grown

"""Blocks beside the stream: readers and writers do not notice, whatever lies where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sessiond.errors import AlreadyExists, StoreDamaged, VersionMismatch
from sessiond.store.blocks import BlockStore, pack, parse_block, raw_block, unpack
from sessiond.sync.position import START, Position
from tests.store.support import (
    Services,
    appending,
    assert_contract,
    creating,
    deleting,
    editing,
    keys_of,
    roll_back,
    take_copy,
)

ENTRIES = 40
BLOCKS = [(1, 9), (10, 10), (11, 30)]

texts = st.binary(max_size=40)
raw_logs = st.lists(
    st.tuples(texts, texts, texts, texts, st.binary(min_size=7, max_size=7), texts), min_size=1
)


def raw_entries(rows: list[tuple[bytes, ...]], first: int) -> list[Any]:
    names = (b"op", b"at", b"origin", b"id", b"epoch", b"json")
    return [
        [
            b"%d-0" % offset,
            [
                item
                for name, value in zip(names, row, strict=True)
                for item in (name, value.hex().encode() if name == b"epoch" else value)
            ],
        ]
        for offset, row in enumerate(rows, start=first)
    ]


@given(rows=raw_logs, first=st.integers(1, 10**12))
def test_a_block_gives_back_exactly_the_entries_that_went_in(
    rows: list[tuple[bytes, ...]], first: int
) -> None:
    raw = raw_entries(rows, first)
    block = pack(raw)
    assert (block.first, block.last) == (first, first + len(rows) - 1)
    assert unpack(block) == raw


def test_damage_of_any_byte_of_a_block_is_noticed() -> None:
    raw = raw_entries([(b"op", b"at", b"origin", b"id", b"7 bytes", b'{"a":1}')] * 5, 1)
    block = pack(raw)
    for name in ("data", "epochs", "checksum"):
        value = getattr(block, name)
        for place in range(len(value)):
            for bad in (value[:place], _flipped(value, place)):
                with pytest.raises(StoreDamaged, match="is damaged"):
                    unpack(replace(block, **{name: bad}))
    with pytest.raises(StoreDamaged, match="is damaged"):
        unpack(replace(block, last=6))
    with pytest.raises(StoreDamaged, match="in the form 'lz4'"):
        unpack(replace(block, codec="lz4"))


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


@pytest.mark.parametrize(
    "raw",
    [
        [b"5-0", [b"epochs", b"1234567", b"codec", b"zstd-1"]],
        [b"5-0", [b"epochs", b"123456", b"codec", b"zstd-1", b"data", b"", b"checksum", b""]],
        [b"5-0", [b"epochs", b"", b"codec", b"zstd-1", b"data", b"", b"checksum", b""]],
        [b"1-0", [b"epochs", b"1234567" * 2, b"codec", b"zstd-1", b"data", b"", b"checksum", b""]],
        [b"5-3", [b"epochs", b"1234567", b"codec", b"zstd-1", b"data", b"", b"checksum", b""]],
        [b"5-0", [b"epochs", b"1234567", b"codec", b"\xff", b"data", b"", b"checksum", b""]],
    ],
)
def test_an_entry_of_somebody_else_is_no_block(raw: Any) -> None:
    with pytest.raises(StoreDamaged, match="not one of sessiond's"):
        parse_block(raw)


@pytest.fixture
async def positions(core: Services) -> list[Position]:
    """The positions of a log of which the first thirty entries are compressed."""
    done = await core.commit("ses_1", creating("ses_1"))
    found = [START, *done.positions]
    for number in range(2, ENTRIES + 1):
        body = b'{"n":%d}' % number
        found += (await core.commit("ses_1", appending(f"m{number}", body))).positions
    for first, last in BLOCKS:
        assert await compress(core, last - first + 1)
    return found


async def compress(core: Services, count: int) -> bool:
    blocks = BlockStore(core.redis, core.keys)
    return await blocks.put("ses_1", pack(await blocks.oldest("ses_1", count)))


async def test_the_stream_is_short_and_the_log_is_whole(
    core: Services, positions: list[Position]
) -> None:
    assert await core.redis.xlen(core.keys.conversation("ses_1")) == ENTRIES - 30
    assert await core.redis.xlen(core.keys.blocks("ses_1")) == len(BLOCKS)
    entries = await core.entries("ses_1")
    assert_contract(entries)
    assert [entry.position for entry in entries] == positions[1:]
    assert [entry.json for entry in entries[1:3]] == [b'{"n":2}', b'{"n":3}']


@pytest.mark.parametrize("limit", [1, 3, 21, 500])
async def test_every_position_continues_exactly(
    core: Services, positions: list[Position], limit: int
) -> None:
    for offset, position in enumerate(positions):
        for after in (position, Position("", offset)):
            page = await core.store.log.page("ses_1", after, limit)
            assert page.reset is None
            assert [e.position for e in page.entries] == positions[offset + 1 :][:limit]
        assert [e.position for e in await core.entries("ses_1", position)] == positions[
            offset + 1 :
        ]


async def test_a_position_of_another_history_is_refused_also_in_a_block(
    core: Services, positions: list[Position]
) -> None:
    for offset in (1, 9, 10, 11, 30, 31):
        page = await core.store.log.page("ses_1", Position("00000000000001", offset))
        assert (page.raw, page.reset) == ([], "history-changed")


async def backwards(core: Services, offset: int) -> list[Position]:
    pages = core.store.log.back_from("ses_1", offset)
    return [entry.position async for page in pages for entry in page]


async def test_the_log_is_read_backwards_across_blocks(
    core: Services, positions: list[Position]
) -> None:
    for offset in (ENTRIES, 31, 30, 20, 10, 1):
        assert await backwards(core, offset) == positions[offset:0:-1]


async def test_entries_are_found_wherever_they_lie(
    core: Services, positions: list[Position]
) -> None:
    wanted = [40, 1, 12, 10, 99, 0, 13, 12]
    found = await core.store.log.entries_at("ses_1", wanted)
    assert [entry and entry.position for entry in found] == [
        positions[offset] if 0 < offset <= ENTRIES else None for offset in wanted
    ]


async def test_a_rollback_is_noticed_in_what_is_compressed(
    core: Services, positions: list[Position]
) -> None:
    asked = [positions[5], Position("00000000000001", 5), positions[40], Position("", 41)]
    assert await core.store.have("ses_1", asked) == [True, False, True, False]


async def test_versions_of_compressed_records_are_compared_as_ever(
    core: Services, positions: list[Position]
) -> None:
    with pytest.raises(VersionMismatch, match=str(positions[5])):
        await core.commit("ses_1", editing("m5", expected="00000000000001:5"))
    with pytest.raises(AlreadyExists):
        await core.commit("ses_1", appending("m5"))
    done = await core.commit("ses_1", editing("m5", expected=str(positions[5])))
    assert done.positions[0].offset == ENTRIES + 1


async def test_a_writer_may_rely_on_a_compressed_position(
    core: Services, positions: list[Position]
) -> None:
    core.committer.is_guarded = True
    core.committer._applied.clear()
    core.committer.recall = {"ses_1": positions[7]}.get
    assert (await core.commit("ses_1", appending("new"))).positions[0].offset == ENTRIES + 1


async def test_nothing_is_compressed_but_what_is_in_the_stream(
    core: Services, positions: list[Position]
) -> None:
    blocks = BlockStore(core.redis, core.keys)
    block = pack(await blocks.oldest("ses_1", 5))
    epochs = bytes(7) + block.epochs
    wrong = [
        replace(block, epochs=bytes(len(block.epochs))),  # other entries
        replace(block, epochs=epochs),  # begins earlier
        replace(block, epochs=epochs, last=block.last + 1),  # ends later
        pack(await blocks.oldest("ses_1", 500)),  # nothing would be left
    ]
    before = await core.redis.dump(core.keys.conversation("ses_1"))
    for refused in wrong:
        assert not await blocks.put("ses_1", refused)
    assert await core.redis.dump(core.keys.conversation("ses_1")) == before
    assert await blocks.put("ses_1", block)
    assert not await blocks.put("ses_1", block)
    assert_contract(await core.entries("ses_1"))


async def test_a_server_that_went_back_before_a_compression_has_the_same_log(
    core: Services, positions: list[Position]
) -> None:
    copy = await take_copy(core, "ses_1")
    assert await compress(core, 5)
    await roll_back(core, "ses_1", copy)
    assert [entry.position for entry in await core.entries("ses_1")] == positions[1:]
    assert await compress(core, 5)
    assert [entry.position for entry in await core.entries("ses_1")] == positions[1:]


async def test_a_block_that_is_missing_is_damage_not_silence(
    core: Services, positions: list[Position]
) -> None:
    key = core.keys.blocks("ses_1")
    await core.redis.xdel(key, "10-0")
    with pytest.raises(StoreDamaged, match="entries are missing"):
        await core.store.log.page("ses_1", START)
    await core.redis.delete(key)
    page = await core.store.log.page("ses_1", START)
    assert page.reset == "trimmed"


async def damage_first_of_the_stream(core: Services) -> None:
    """Have the first entry behind the blocks say something else."""
    key = core.keys.conversation("ses_1")
    entries = await core.redis.execute_command("XRANGE", key, "-", "+")
    entries[0][1][11] = b'{"n":0}'
    await core.redis.delete(key)
    for stream_id, fields in entries:
        await core.redis.execute_command("XADD", key, stream_id, *fields)


@pytest.mark.parametrize("after", [0, 9, 25, 30])
async def test_the_chain_is_followed_from_the_blocks_into_the_stream(
    core: Services, positions: list[Position], after: int
) -> None:
    await damage_first_of_the_stream(core)
    with pytest.raises(StoreDamaged, match="31-0"):
        await core.entries("ses_1", positions[after])
    assert await core.entries("ses_1", positions[31]), "what follows is as it was"


@pytest.mark.parametrize("offset", [31, 33, ENTRIES])
async def test_the_chain_is_followed_backwards_into_the_blocks(
    core: Services, positions: list[Position], offset: int
) -> None:
    await damage_first_of_the_stream(core)
    with pytest.raises(StoreDamaged, match="31-0"):
        await backwards(core, offset)
    assert await backwards(core, 30) == positions[30:0:-1]


async def test_a_single_entry_is_proven_by_the_one_before_it_in_a_block(
    core: Services, positions: list[Position]
) -> None:
    await damage_first_of_the_stream(core)
    with pytest.raises(StoreDamaged, match="31-0"):
        await core.store.log.entries_at("ses_1", [31])
    found = await core.store.log.entries_at("ses_1", [30, 33])
    assert [entry and entry.position for entry in found] == [positions[30], positions[33]]


async def test_a_block_of_another_history_does_not_follow(
    core: Services, positions: list[Position]
) -> None:
    key = core.keys.blocks("ses_1")
    blocks = await core.redis.execute_command("XRANGE", key, "-", "+")
    entries = unpack(parse_block(blocks[1]))
    entries[0][1][11] = b'{"n":0}'
    blocks[1] = raw_block(pack(entries))
    await core.redis.delete(key)
    for stream_id, fields in blocks:
        await core.redis.execute_command("XADD", key, stream_id, *fields)
    with pytest.raises(StoreDamaged, match="10-0"):
        await core.entries("ses_1", positions[3])
    assert await core.entries("ses_1", positions[10])


async def test_blocks_go_with_their_session(core: Services, positions: list[Position]) -> None:
    await core.commit("ses_1", deleting("ses_1"))
    assert set(await keys_of(core, "ses_1")) == {"metadata", "conversation", "applied"}
    (entry,) = await core.entries("ses_1", positions[20])
    assert (entry.op, entry.offset) == ("session.delete", ENTRIES + 1)
    assert not await compress(core, 1)

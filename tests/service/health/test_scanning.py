"""The scan: all damage of a small session is noticed, and nothing else is called damage."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sessiond.errors import NotFound, SessiondError, StoreDamaged
from sessiond.service.health.scanning import Damage, Scanner
from sessiond.service.writing import Request
from sessiond.store.blocks import BlockStore, pack
from sessiond.store.keys import SESSION_KINDS, TABLE
from sessiond.store.keyspace import Keyspace
from tests.service.contested import leave_open_conflict
from tests.service.support import create, said, text
from tests.service.test_agreement import act, course
from tests.store.support import Services, contents, keys_of, until_awaited

FIELDS = ["op", "at", "origin", "id", "epoch", "json"]
HASHES = ["metadata", "context", "preferences", "messages", "parts", "applied"]


@pytest.fixture
def scanner(core: Services) -> Scanner:
    return Scanner(Keyspace(core.redis, core.keys), core.clock)


async def furnished(core: Services, session_id: str = "ses_1") -> str:
    """A session that holds something of every kind: a part, an edit, a removal, a conflict."""
    await create(core, session_id, preferences={"theme": "dark"})
    await core.messages.append(session_id, [said("one", "m1"), said("two", "m2")])
    await core.records.edit(session_id, "m1", {"content": "edited"})
    await core.records.put_part(session_id, "m1", "p1", text("part"), Request(key="once"))
    await core.records.remove(session_id, "m2")
    base = str(await core.sessions.position(session_id))
    for value in ("light", "blue"):
        change = {"theme": value}
        request = Request(base=base, client=value)
        await core.documents.change(session_id, "preferences", change, request)
    await core.documents.change(session_id, "context", {"state": {"a": [1, {"b": None}]}})
    return session_id


async def found(scanner: Scanner, session_id: str = "ses_1") -> list[Damage]:
    return (await scanner.sessions([session_id])).damage


async def raw_entries(core: Services, kind: str = "conversation") -> list[Any]:
    name = core.keys.of_session(kind, "ses_1")
    entries: list[Any] = await core.redis.execute_command("XRANGE", name, "-", "+")
    return entries


async def write_stream(core: Services, entries: list[Any], kind: str = "conversation") -> None:
    """Put these entries in place of a stream."""
    name = core.keys.of_session(kind, "ses_1")
    await core.redis.delete(name)
    for stream_id, fields in entries:
        await core.redis.execute_command("XADD", name, stream_id, *fields)


async def compress(core: Services, *lengths: int) -> None:
    """Put the beginning of the log of ses_1 into blocks of these lengths."""
    blocks = BlockStore(core.redis, core.keys)
    for length in lengths:
        assert await blocks.put("ses_1", pack(await blocks.oldest("ses_1", length)))


def flipped(value: bytes, place: int, bit: int = 0) -> bytes:
    """A value with one bit of one byte turned over."""
    turned = value[place] ^ (1 << bit)
    return value[:place] + bytes([turned]) + value[place + 1 :]


async def test_a_healthy_session_scans_clean(core: Services, scanner: Scanner) -> None:
    await furnished(core)
    assert await keys_of(core, "ses_1") == {
        kind: core.keys.of_session(kind, "ses_1") for kind in [*HASHES, "conversation", "conflicts"]
    }
    assert await found(scanner) == []
    page = await scanner.page("", 10)
    assert (page.sessions, page.damage) == (1, [])
    assert (await scanner.page(page.cursor, 10)).damage == []


@pytest.mark.parametrize("seed", range(4))
async def test_what_the_random_workload_made_scans_clean(
    core: Services, scanner: Scanner, seed: int
) -> None:
    chance = course(seed)
    await create(core)
    for number in range(80):
        try:
            await act(core, chance, number)
        except SessiondError:
            continue
        if number % 20 == 0:
            assert await found(scanner) == []
    assert await found(scanner) == []


async def test_a_session_that_is_written_meanwhile_scans_clean(
    core: Services, scanner: Scanner
) -> None:
    await create(core)
    written = 0

    async def write(seed: int) -> None:
        nonlocal written
        chance = random.Random(seed)  # noqa: S311 - no secret hangs on it
        for number in range(400):
            try:
                await act(core, chance, number)
                written += 1
            except SessiondError:
                continue

    writers = [asyncio.create_task(write(seed)) for seed in range(3)]
    scans = 0
    while not all(writer.done() for writer in writers):
        assert await found(scanner) == []
        scans += 1
    await asyncio.gather(*writers)
    assert scans > 1
    assert written > 100
    assert await found(scanner) == []


async def test_a_deleted_session_scans_clean(core: Services, scanner: Scanner) -> None:
    await furnished(core)
    await core.sessions.delete("ses_1")
    assert await found(scanner) == []


async def test_a_session_that_is_deleted_meanwhile_is_no_damage(
    core: Services, scanner: Scanner
) -> None:
    for number in range(20):
        await furnished(core, f"ses_{number}")
    names = [f"ses_{number}" for number in range(20)]
    deleting = asyncio.gather(*(core.sessions.delete(name) for name in names))
    pages = await asyncio.gather(*(scanner.sessions([name]) for name in names))
    await deleting
    assert [damage for page in pages for damage in page.damage] == []


@pytest.mark.parametrize("field", FIELDS)
async def test_every_byte_of_every_field_of_an_entry_is_proven(
    core: Services, scanner: Scanner, field: str
) -> None:
    await furnished(core)
    entries = await raw_entries(core)
    chance = course(1)
    tried = 0
    for index, (_, fields) in enumerate(entries):
        where = fields.index(field.encode()) + 1
        places = range(len(fields[where]))
        for place in sorted(chance.sample(places, min(len(places), 12))):
            damaged = [[stream_id, list(values)] for stream_id, values in entries]
            damaged[index][1][where] = flipped(fields[where], place, chance.randrange(8))
            await write_stream(core, damaged)
            assert await found(scanner), f"entry {index + 1}, {field}, byte {place}"
            with pytest.raises(StoreDamaged, match="scan"):
                await core.entries("ses_1")
            tried += 1
    assert tried > len(entries)
    await write_stream(core, entries)
    assert await found(scanner) == []


async def test_every_entry_that_is_missing_is_noticed(core: Services, scanner: Scanner) -> None:
    await furnished(core)
    entries = await raw_entries(core)
    for index in range(len(entries)):
        await write_stream(core, entries[:index] + entries[index + 1 :])
        assert await found(scanner), f"entry {index + 1}"


@pytest.mark.parametrize("kind", HASHES)
async def test_every_line_of_a_hash_that_is_changed_missing_or_added_is_noticed(
    core: Services, scanner: Scanner, kind: str
) -> None:
    await furnished(core)
    name = core.keys.of_session(kind, "ses_1")
    lines = await core.redis.hgetall(name)
    assert lines
    for field, value in lines.items():
        is_key = field.startswith(b"key:")  # its digest has no witness: its form alone is known
        for place in range(0 if not is_key else value.index(b" "), len(value)):
            await core.redis.hset(name, field, flipped(value, place, 6))
            assert await found(scanner), (field, place)
        await core.redis.hdel(name, field)
        if not is_key:
            assert await found(scanner), field
        await core.redis.hset(name, field, value)
    await core.redis.hset(name, "foreign", "1")
    assert await found(scanner)
    await core.redis.hdel(name, "foreign")
    assert await found(scanner) == []


@pytest.mark.parametrize("kind", SESSION_KINDS)
async def test_a_key_of_another_type_is_noticed_and_named(
    core: Services, scanner: Scanner, kind: str
) -> None:
    await furnished(core)
    name = core.keys.of_session(kind, "ses_1")
    await core.redis.delete(name)
    await core.redis.set(name, "not ours")
    damage = await found(scanner)
    assert (name, f"is of type string, not {TABLE[kind].type}") in [
        (each.key, each.finding) for each in damage
    ]


@pytest.mark.parametrize("kind", [*HASHES, "conversation"])
async def test_a_key_that_is_gone_is_noticed(core: Services, scanner: Scanner, kind: str) -> None:
    await furnished(core)
    await core.redis.delete(core.keys.of_session(kind, "ses_1"))
    assert await found(scanner)
    page = await scanner.page("", 10)
    assert page.sessions == 1, "found by its other keys"
    assert page.damage


Plant = Callable[[Services], Awaitable[Any]]
PLANTED: dict[str, Plant] = {
    "a key that is none of ours": lambda core: core.redis.set(
        f"{core.keys.namespace}:{{ses_1}}:foreign", "1"
    ),
    "a foreign entry at the end": lambda core: core.redis.xadd(
        core.keys.conversation("ses_1"), {"hello": "world"}
    ),
    "a foreign conflict": lambda core: core.redis.xadd(
        core.keys.conflicts("ses_1"), {"hello": "world"}
    ),
    "presence that is none": lambda core: core.redis.hset(
        core.keys.presence("ses_1"), "somebody", "1 2 x"
    ),
    "an index without the session": lambda core: core.redis.zrem(core.keys.sessions, "ses_1"),
    "a workspace without the session": lambda core: core.redis.zrem(
        core.keys.workspace("default"), "ses_1"
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
async def test_what_others_put_among_our_keys_is_noticed_in_that_session_alone(
    core: Services, scanner: Scanner, planted: str
) -> None:
    await furnished(core)
    await furnished(core, "ses_2")
    await PLANTED[planted](core)
    damage = (await scanner.page("", 10)).damage
    assert damage
    assert {each.session_id for each in damage} == {"ses_1"}
    assert all(each.finding and each.remedy for each in damage)
    assert await found(scanner), "also where it is asked for by name"


async def test_every_byte_of_what_a_person_filters_conflicts_by_is_proven(
    core: Services, scanner: Scanner
) -> None:
    await furnished(core)
    entries = await raw_entries(core, "conflicts")
    ((stream_id, fields),) = entries
    for name in (b"what", b"document", b"strategy", b"outcome"):
        where = fields.index(name) + 1
        for place in range(len(fields[where])):
            damaged = list(fields)
            damaged[where] = flipped(fields[where], place)
            await write_stream(core, [[stream_id, damaged]], "conflicts")
            assert await found(scanner), (name, place)


async def test_an_index_of_another_type_and_a_session_that_is_gone_are_told(
    core: Services, scanner: Scanner
) -> None:
    await core.redis.zadd(core.keys.sessions, {"ses_gone": core.clock.ms - 120_000})
    await core.redis.zadd(core.keys.sessions, {"ses_coming": core.clock.ms})
    page = await scanner.page("", 10)
    listed = (await scanner.page(page.cursor, 10)).damage
    assert [(each.session_id, each.severity) for each in listed] == [("ses_gone", "warning")]
    await core.redis.delete(core.keys.sessions)
    await core.redis.set(core.keys.sessions, "not ours")
    (damage,) = (await scanner.page("", 10)).damage
    assert damage.key == core.keys.sessions
    await core.redis.delete(core.keys.sessions)


async def test_all_sessions_are_scanned_page_by_page(core: Services, scanner: Scanner) -> None:
    names = {f"ses_{number}" for number in range(30)}
    for name in names:
        await create(core, name)
        await core.redis.hset(core.keys.metadata(name), "title", "damaged")
    seen: set[str] = set()
    pages, cursor = 0, ""
    while pages == 0 or cursor:
        page = await scanner.page(cursor, 5)
        seen |= {damage.session_id for damage in page.damage}
        pages, cursor = pages + 1, page.cursor
    assert seen == names


async def test_a_session_that_is_not_there_cannot_be_scanned(scanner: Scanner) -> None:
    with pytest.raises(NotFound, match="ses_none"):
        await scanner.sessions(["ses_none"])


async def test_another_session_works_while_one_is_damaged(core: Services, scanner: Scanner) -> None:
    await furnished(core)
    await furnished(core, "ses_2")
    await core.redis.xdel(core.keys.conversation("ses_1"), "2-0")
    with pytest.raises(StoreDamaged):
        await core.sessions.load("ses_1")
    await core.sessions.load("ses_2")
    await until_awaited(lambda: _is_clean(scanner, "ses_2"))


async def _is_clean(scanner: Scanner, session_id: str) -> bool:
    return await found(scanner, session_id) == []


async def test_a_compressed_session_scans_clean(core: Services, scanner: Scanner) -> None:
    await furnished(core)
    await compress(core, 2, 3)
    assert await found(scanner) == []


async def test_a_session_that_is_compressed_meanwhile_scans_clean(
    core: Services, scanner: Scanner
) -> None:
    await furnished(core)
    await core.messages.append("ses_1", [said("long", f"n{number}") for number in range(60)])
    compressing = asyncio.create_task(compress(core, *[1] * 60))
    scans = 0
    while not compressing.done():
        damage = await found(scanner)
        assert [each.finding for each in damage] == []
        scans += 1
    await compressing
    assert scans > 1


async def test_every_bit_of_a_block_is_proven(core: Services, scanner: Scanner) -> None:
    await furnished(core)
    await compress(core, 2, 3)
    blocks = await raw_entries(core, "blocks")
    for number, (stream_id, fields) in enumerate(blocks):
        for where in range(1, len(fields), 2):
            damaged = list(fields)
            damaged[where] = flipped(fields[where], len(fields[where]) // 2)
            entries = [*blocks[:number], [stream_id, damaged], *blocks[number + 1 :]]
            await write_stream(core, entries, "blocks")
            assert "blocks" in {each.key.rpartition(":")[2] for each in await found(scanner)}


@pytest.mark.parametrize("gone", [0, 1])
async def test_a_block_that_is_gone_is_noticed(core: Services, scanner: Scanner, gone: int) -> None:
    await furnished(core)
    await compress(core, 2, 3)
    blocks = await raw_entries(core, "blocks")
    await core.redis.xdel(core.keys.blocks("ses_1"), blocks[gone][0])
    assert any("are missing" in damage.finding for damage in await found(scanner))


@pytest.mark.parametrize("is_open", [False, True])
async def test_an_archived_session_scans_clean_and_stays_archived(
    core: Services, scanner: Scanner, *, is_open: bool
) -> None:
    await furnished(core)
    if is_open:
        await leave_open_conflict(core, "ses_1")
    await core.archiving.archive("ses_1", idle_seconds=0)
    before = await contents(core)
    assert await found(scanner) == []
    page = await scanner.page("", 10)
    assert (page.sessions, page.damage) == (1, [])
    assert await contents(core) == before


STUBS: dict[str, Plant] = {
    "the archive is gone": lambda core: core.redis.delete(core.keys.archive("ses_1")),
    "the archive is of another type": lambda core: core.redis.set(core.keys.archive("ses_1"), "x"),
    "a position that is none": lambda core: core.redis.hset(
        core.keys.metadata("ses_1"), "epoch", "x"
    ),
    "another status": lambda core: core.redis.hset(core.keys.metadata("ses_1"), "status", "active"),
    "a conflict that is none": lambda core: core.redis.xadd(
        core.keys.conflicts("ses_1"), {"json": "{}"}
    ),
    "a key that an archived session has not": lambda core: core.redis.hset(
        core.keys.messages("ses_1"), "m1", "1"
    ),
}


@pytest.mark.parametrize("stub", STUBS)
async def test_damage_of_what_is_left_of_an_archived_session_is_noticed(
    core: Services, scanner: Scanner, stub: str
) -> None:
    await furnished(core)
    await core.archiving.archive("ses_1", idle_seconds=0)
    await STUBS[stub](core)
    assert await found(scanner)


async def test_an_archive_of_a_session_that_is_not_archived_is_noticed(
    core: Services, scanner: Scanner
) -> None:
    await furnished(core)
    await core.redis.hset(core.keys.archive("ses_1"), "packed", "x")
    assert [each.severity for each in await found(scanner)] == ["warning"]

"""A repair: planned first, done as a whole, never above a newer write, and nothing is deleted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sessiond.errors import NotFound, StoreDamaged
from sessiond.service.health.repairing import Repairer
from sessiond.service.health.scanning import Scanner
from sessiond.store.keys import SESSION_KINDS
from sessiond.store.keyspace import Keyspace
from sessiond.store.repairs import RepairStore
from sessiond.sync.entry import Entry
from tests.service.health.test_scanning import (
    HASHES,
    PLANTED,
    STUBS,
    compress,
    flipped,
    furnished,
    raw_entries,
    write_stream,
)
from tests.service.support import load, said
from tests.store.support import Services, contents

DERIVED = ["messages", "parts", "context", "preferences", "metadata", "applied"]


class Machine:
    """One machine's repairs of ses_1. `copy` of its log, `journal`: the offsets that it has."""

    def __init__(self, core: Services) -> None:
        keyspace = Keyspace(core.redis, core.keys)
        self.copy: list[Entry] = []
        self.journal: set[int] = set()
        self.changed: list[str] = []
        self.scanner = Scanner(keyspace, core.clock)
        self.repairer = Repairer(
            self.scanner,
            keyspace,
            RepairStore(core.redis, core.keys),
            core.store,
            copies=self._copied,
            journaled=self._journaled,
            changed=self.changed.append,
            clock=core.clock,
        )

    async def _copied(self, session_id: str) -> list[Entry]:
        assert session_id == "ses_1"
        return self.copy

    async def _journaled(self, session_id: str) -> set[int]:
        assert session_id == "ses_1"
        return self.journal

    async def is_clean(self) -> bool:
        return (await self.scanner.sessions(["ses_1"])).damage == []


@pytest.fixture
async def machine(core: Services) -> Machine:
    await furnished(core)
    return Machine(core)


async def repaired(core: Services, machine: Machine) -> list[str]:
    """Repair, and hold what every repair has to; return what was lost."""
    before = await contents(core)
    plan = await machine.repairer.plan("ses_1")
    assert plan.steps
    assert not plan.applied
    assert await contents(core) == before, "a plan changes nothing"
    done = await machine.repairer.apply("ses_1")
    assert (done.steps, done.lost, done.applied) == (plan.steps, plan.lost, True)
    assert await machine.is_clean()
    await assert_nothing_is_gone(core, before, done.quarantine)
    assert (await machine.repairer.apply("ses_1")).steps == [], "a second repair does nothing"
    return done.lost


async def assert_nothing_is_gone(core: Services, before: dict[str, Any], aside_at: str) -> None:
    """Each key has its content, or that is in quarantine."""
    after = await contents(core)
    aside = {name: value for name, value in after.items() if name.startswith(aside_at)}
    for name, value in before.items():
        if ":{" in name and after.get(name) != value:
            assert value in aside.values(), name
    assert not [name for name in after if ":repair:" in name]


async def test_a_healthy_session_needs_no_repair(core: Services, machine: Machine) -> None:
    before = await contents(core)
    done = await machine.repairer.apply("ses_1")
    assert (done.steps, done.lost, done.applied) == ([], [], False)
    assert await contents(core) == before


@pytest.mark.parametrize("kind", DERIVED)
@pytest.mark.parametrize("damage", ["gone", "of another type", "a line changed", "a line more"])
async def test_what_follows_from_the_log_is_made_anew_as_it_was(
    core: Services, machine: Machine, kind: str, damage: str
) -> None:
    whole = await contents(core)
    name = core.keys.of_session(kind, "ses_1")
    lines = await core.redis.hgetall(name)
    match damage:
        case "gone":
            await core.redis.delete(name)
        case "of another type":
            await core.redis.delete(name)
            await core.redis.set(name, "not ours")
        case "a line changed":
            field = next(field for field in lines if not field.startswith(b"key:"))
            await core.redis.hset(name, field, flipped(lines[field], 0, 6))
        case _:
            await core.redis.hset(name, "foreign", "1")
    assert await repaired(core, machine) == []
    after = await core.redis.hgetall(name)
    assert {f: v for f, v in lines.items() if not f.startswith(b"key:")} == {
        f: v for f, v in after.items() if not f.startswith(b"key:")
    }
    assert (await contents(core))[core.keys.conversation("ses_1")] == whole[
        core.keys.conversation("ses_1")
    ], "the log was whole"
    await core.messages.append("ses_1", [said("it goes on", "m9")])


@pytest.mark.parametrize("planted", PLANTED)
async def test_what_others_put_among_our_keys_is_moved_aside(
    core: Services, machine: Machine, planted: str
) -> None:
    before = await load(core)
    await PLANTED[planted](core)
    assert await repaired(core, machine) == []
    assert await load(core) == before
    await core.messages.append("ses_1", [said("it goes on", "m9")])


@pytest.mark.parametrize("kind", SESSION_KINDS)
async def test_a_key_of_another_type_is_replaced(
    core: Services, machine: Machine, kind: str
) -> None:
    before = await load(core)
    machine.copy = await core.entries("ses_1")
    name = core.keys.of_session(kind, "ses_1")
    await core.redis.delete(name)
    await core.redis.set(name, "not ours")
    lost = await repaired(core, machine)
    assert bool(lost) == (kind == "conflicts"), "the sides of a conflict are nowhere else"
    assert await load(core) == before


@pytest.mark.parametrize("index", range(10))
async def test_with_a_copy_a_log_is_again_what_it_was(
    core: Services, machine: Machine, index: int
) -> None:
    before, entries = await load(core), await raw_entries(core)
    machine.copy = await core.entries("ses_1")
    assert index < len(entries)
    damaged = [[stream_id, list(fields)] for stream_id, fields in entries]
    damaged[index][1][11] = flipped(damaged[index][1][11], 0)
    for wrong in (damaged, entries[:index] + entries[index + 1 :]):
        core.clock.ms += 1000
        await write_stream(core, wrong)
        assert await repaired(core, machine) == []
        assert await raw_entries(core) == entries
        assert await load(core) == before, "the same positions, too"


@pytest.mark.parametrize("index", range(1, 10))
async def test_without_a_copy_what_is_lost_is_said_and_the_rest_can_be_read(
    core: Services, machine: Machine, index: int
) -> None:
    entries = await raw_entries(core)
    damaged = [[stream_id, list(fields)] for stream_id, fields in entries]
    damaged[index][1][11] = flipped(damaged[index][1][11], 0)
    await write_stream(core, damaged)
    with pytest.raises(StoreDamaged):
        await core.sessions.load("ses_1")
    lost = await repaired(core, machine)
    assert any(f"operation {index + 1}" in each for each in lost)
    assert machine.changed == ["ses_1"], "who wrote to it looks for its writes"
    session = await load(core)
    assert session.position.endswith(f":{len(entries)}"), "nothing changed its place"
    assert session.position != f"{entries[-1][1][9].decode()}:{len(entries)}"
    await core.messages.append("ses_1", [said("it goes on", "m9")])
    assert await machine.is_clean()


async def test_what_the_journal_writes_again_is_offered_and_only_the_rest_is_lost(
    core: Services, machine: Machine
) -> None:
    damaged = [[stream_id, list(fields)] for stream_id, fields in await raw_entries(core)]
    for index in (2, 4):
        damaged[index][1][11] = b"{"
    await write_stream(core, damaged)
    machine.journal = {1, 3}
    plan = await machine.repairer.plan("ses_1")
    assert plan.again == ["operation 3 is in this machine's journal, which writes it again"]
    assert not [each for each in plan.lost if "operation 3" in each]
    assert [each for each in plan.lost if "operation 5" in each]
    (step,) = [step for step in plan.steps if step.key == core.keys.conversation("ses_1")]
    assert "written again at the end: 3; lost: 5" in step.action
    assert await repaired(core, machine) == plan.lost


async def test_the_key_of_what_was_lost_may_be_used_again(core: Services, machine: Machine) -> None:
    entries = await raw_entries(core)
    (offset,) = [int(entry[0][:-2]) for entry in entries if entry[1][1] == b"part.put"]
    entries[offset - 1][1][11] = b"{"
    await write_stream(core, entries)
    assert await core.redis.hexists(core.keys.applied("ses_1"), "key:once")
    await repaired(core, machine)
    assert not await core.redis.hexists(core.keys.applied("ses_1"), "key:once")


async def test_where_the_beginning_is_nowhere_nothing_is_touched_and_it_is_said(
    core: Services, machine: Machine
) -> None:
    await core.redis.delete(core.keys.conversation("ses_1"))
    before = await contents(core)
    done = await machine.repairer.apply("ses_1")
    assert (done.steps, done.applied) == ([], False)
    assert "on a machine that has a copy" in done.lost[0]
    assert await contents(core) == before


async def test_a_repair_never_stands_above_a_newer_write(core: Services, machine: Machine) -> None:
    await core.redis.delete(core.keys.parts("ses_1"))
    real = RepairStore.replace
    tries = 0

    async def written_just_before(self: RepairStore, *arguments: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            await core.messages.append("ses_1", [said("newer", "m9")])
        return await real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RepairStore, "replace", written_just_before)
        done = await machine.repairer.apply("ses_1")
    assert (tries, done.applied) == (2, True)
    assert "m9" in [message.id for message in (await load(core)).conversation.messages]
    assert await machine.is_clean()


async def test_two_repairs_at_once_do_no_harm(core: Services, machine: Machine) -> None:
    await core.redis.hset(core.keys.metadata("ses_1"), "title", "damaged")
    other = Machine(core)
    await asyncio.gather(machine.repairer.apply("ses_1"), other.repairer.apply("ses_1"))
    assert await machine.is_clean()


async def test_what_is_left_of_a_deleted_session_is_moved_aside(
    core: Services, machine: Machine
) -> None:
    await core.sessions.delete("ses_1")
    await core.redis.hset(core.keys.of_session("parts", "ses_1"), "m1/p1", "1")
    assert await repaired(core, machine) == []
    assert not await core.redis.exists(core.keys.parts("ses_1"))


async def test_another_session_is_not_touched(core: Services, machine: Machine) -> None:
    await furnished(core, "ses_2")
    others = {k: v for k, v in (await contents(core)).items() if "{ses_2}" in k}
    for kind in HASHES[1:]:
        await core.redis.delete(core.keys.of_session(kind, "ses_1"))
    await repaired(core, machine)
    assert {k: v for k, v in (await contents(core)).items() if "{ses_2}" in k} == others


async def test_a_key_of_others_in_a_session_that_is_none_is_moved_aside(
    core: Services, machine: Machine
) -> None:
    name = f"{core.keys.namespace}:{{ses_none}}:foreign"
    await core.redis.set(name, "not ours")
    done = await machine.repairer.apply("ses_none")
    assert [step.key for step in done.steps] == [name]
    assert await core.redis.get(f"{done.quarantine}foreign0") == b"not ours"
    assert not await core.redis.exists(name)


async def test_a_session_that_is_not_there_cannot_be_repaired(machine: Machine) -> None:
    with pytest.raises(NotFound):
        await machine.repairer.plan("ses_none")


@pytest.mark.parametrize("damage", ["gone", "a bit changed", "of another type"])
@pytest.mark.parametrize("with_copy", [True, False])
async def test_a_damaged_block_is_replaced_by_the_log_as_a_stream(
    core: Services, machine: Machine, damage: str, *, with_copy: bool
) -> None:
    before, whole = await load(core), await raw_entries(core)
    machine.copy = await core.entries("ses_1") if with_copy else []
    await compress(core, 2, 3)
    blocks = await raw_entries(core, "blocks")
    match damage:
        case "gone":
            await write_stream(core, blocks[:1], "blocks")
        case "a bit changed":
            blocks[1][1][5] = flipped(blocks[1][1][5], 9)
            await write_stream(core, blocks, "blocks")
        case _:
            await core.redis.delete(core.keys.blocks("ses_1"))
            await core.redis.set(core.keys.blocks("ses_1"), "not ours")
    if damage == "of another type" and not with_copy:
        assert "beginning" in (await machine.repairer.apply("ses_1")).lost[0]
        return
    lost = await repaired(core, machine)
    assert not await core.redis.exists(core.keys.blocks("ses_1"))
    if with_copy:
        assert lost == []
        assert await raw_entries(core) == whole
        assert await load(core) == before
    else:
        assert any("operation 3" in each for each in lost)
        assert (await load(core)).position.endswith(f":{len(whole)}")


async def test_what_follows_from_a_compressed_log_is_made_anew(
    core: Services, machine: Machine
) -> None:
    before = await load(core)
    await compress(core, 2, 3)
    await core.redis.delete(core.keys.parts("ses_1"))
    assert await repaired(core, machine) == []
    assert await load(core) == before
    assert len(await raw_entries(core, "blocks")) == 2, "the log was whole"


async def test_a_block_of_a_newer_sessiond_is_not_touched(core: Services, machine: Machine) -> None:
    await compress(core, 2)
    ((stream_id, fields),) = await raw_entries(core, "blocks")
    fields[3] = b"zstd-2"
    await write_stream(core, [[stream_id, fields]], "blocks")
    before = await contents(core)
    with pytest.raises(StoreDamaged, match="zstd-2") as told:
        await machine.repairer.apply("ses_1")
    assert "newer" in told.value.hint
    assert await contents(core) == before


@pytest.mark.parametrize("stub", STUBS)
async def test_an_archived_session_is_not_repaired_and_the_error_says_so(
    core: Services, machine: Machine, stub: str
) -> None:
    await core.archiving.archive("ses_1", idle_seconds=0)
    assert (await machine.repairer.apply("ses_1")).steps == [], "it is healthy"
    await STUBS[stub](core)
    before = await contents(core)
    with pytest.raises(StoreDamaged, match="is archived, and a repair does not read") as told:
        await machine.repairer.apply("ses_1")
    assert "sessiond restore ses_1" in told.value.hint
    assert await contents(core) == before


async def test_an_archive_of_a_session_that_is_not_archived_is_moved_aside(
    core: Services, machine: Machine
) -> None:
    before = await load(core)
    await core.redis.hset(core.keys.archive("ses_1"), "packed", "x")
    assert await repaired(core, machine) == []
    assert await load(core) == before

"""The contract of the log: what a commit leaves in Redis, on every server."""

from __future__ import annotations

import asyncio
import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessiond.store.committer import Committer
from sessiond.store.draft import Draft
from sessiond.store.keys import Keys
from tests.store.support import (
    AT,
    Line,
    Services,
    StartServices,
    appending,
    assert_contract,
    changing,
    committer_on,
    contents,
    creating,
    deleting,
    editing,
    putting_part,
    removing,
    removing_part,
    until,
)

numbers = itertools.count()
texts = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12)
drafts = st.lists(st.tuples(texts, texts, texts, st.binary(max_size=40)), min_size=1, max_size=6)

EVERY_VERB = [
    creating("ses_1"),
    appending("m1"),
    appending("m2"),
    editing("m1"),
    putting_part("m1/p1"),
    removing_part("m1/p1"),
    removing("m2"),
    changing("context", {"working_directory": '"/tmp"'}),
]


async def test_entries_are_numbered_from_1_without_a_gap_by_their_stream_ids(
    core: Services,
) -> None:
    for draft in EVERY_VERB:
        await core.commit("ses_1", draft)
    raw = await core.redis.execute_command("XRANGE", core.keys.conversation("ses_1"), "-", "+")
    assert [stream_id for stream_id, _ in raw] == [b"%d-0" % n for n in range(1, 9)]
    assert [fields[1].decode() for _, fields in raw] == [draft.op for draft in EVERY_VERB]


async def test_every_verb_moves_the_epoch_by_the_same_fold_as_python(core: Services) -> None:
    told = [(await core.commit("ses_1", draft)).positions[0] for draft in EVERY_VERB]
    entries = await core.entries("ses_1")
    assert_contract(entries)
    assert [entry.position for entry in entries] == told


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drafts)
async def test_whatever_is_written_lua_and_python_agree_on_the_epoch(
    core: Services, given_drafts: list[tuple[str, str, str, bytes]]
) -> None:
    session_id = f"ses_{next(numbers)}"
    await core.commit(session_id, creating(session_id))
    group = [
        Draft("message.append", f"{index}{name}", f"{AT}{at}", body, client=client)
        for index, (name, at, client, body) in enumerate(given_drafts)
    ]
    await core.commit(session_id, *group)
    entries = await core.entries(session_id)
    assert_contract(entries)
    assert [(e.id, e.at, e.json) for e in entries[1:]] == [(d.id, d.at, d.json) for d in group]


async def test_an_entry_names_its_writer_its_number_and_its_client(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1", client="tui"), appending("m2"))
    writer = core.committer.writer
    assert [entry.origin for entry in await core.entries("ses_1")] == [
        f"{writer}:1",
        f"tui@{writer}:2",
        f"{writer}:3",
    ]


async def test_metadata_tells_the_position_the_counts_and_the_last_activity(
    core: Services,
) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1"), appending("m2"), appending("m3"))
    await core.commit("ses_1", appending("m4", at="2026-02-01T00:00:00.000Z"))
    await core.commit("ses_1", appending("m5", at="2026-01-20T00:00:00.000Z"))
    await core.commit("ses_1", removing("m2"))
    done = await core.commit("ses_1", editing("m1"))
    snapshot = await core.store.snapshot("ses_1")
    assert snapshot.position == done.positions[0]
    assert (snapshot.total_messages, snapshot.amendments) == (4, 2)
    assert snapshot.metadata["last_activity"] == "2026-02-01T00:00:00.000Z"


async def test_the_version_of_a_document_is_the_position_of_its_last_change(
    core: Services,
) -> None:
    created = await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1"))
    changed = await core.commit("ses_1", changing("preferences", {"theme": '"dark"'}))
    versions = (await core.store.snapshot("ses_1")).versions
    assert versions["preferences"] == str(changed.positions[0])
    assert versions["context"] == versions["metadata"] == str(created.positions[0])


async def test_a_group_takes_consecutive_offsets_while_others_write(start: StartServices) -> None:
    here, there = await start(), await start(instance="there")
    await here.commit("ses_1", creating("ses_1"))

    async def write(services: Services, name: str) -> None:
        for number in range(5):
            group = [appending(f"{name}-{number}-{index}") for index in range(4)]
            done = await services.commit("ses_1", *group)
            first = done.positions[0].offset
            assert [p.offset for p in done.positions] == list(range(first, first + 4))

    async with asyncio.TaskGroup() as tasks:
        for index in range(3):
            tasks.create_task(write(here, f"here{index}"))
            tasks.create_task(write(there, f"there{index}"))
    entries = await here.entries("ses_1")
    assert_contract(entries)
    names = [entry.id.rpartition("-")[0] for entry in entries[1:]]
    assert [name for name, _ in itertools.groupby(names)] == list(dict.fromkeys(names))
    assert len(entries) == 1 + 6 * 5 * 4


async def test_a_group_with_one_refused_operation_leaves_no_trace(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1"))
    before = await contents(core)
    for group in (
        [appending("m2"), appending("m1")],
        [appending("m2"), appending("m2")],
        [appending("m2"), editing("m1", expected="00000000000001:1")],
        [changing("context", {"state": "{}"}), editing("m9")],
        [editing("m1", key="k"), removing("m9")],
    ):
        try:
            await core.commit("ses_1", *group)
        except Exception:  # noqa: BLE001 - which error it is, other tests tell
            assert await contents(core) == before
        else:
            raise AssertionError([draft.op for draft in group])


async def test_a_part_may_join_a_message_of_its_own_group(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1"), putting_part("m1/p1"), putting_part("m1/p2"))
    assert list(await core.store.part_versions("ses_1", "m1")) == ["p1", "p2"]


async def test_groups_of_one_call_stand_or_fall_each_for_itself(core: Services) -> None:
    line = Line(core.redis.execute_command)
    committer = committer_on(core, line)
    await committer.commit("ses_1", [creating("ses_1")])
    line.open.clear()
    first = asyncio.create_task(committer.commit("ses_1", [appending("m0")]))
    await until(lambda: len(line.calls) == 2)
    groups = [
        [appending("m1"), appending("m2")],
        [appending("m3"), appending("m1")],
        [appending("m3")],
        [editing("m9")],
        [editing("m1")],
    ]
    tasks = [asyncio.create_task(committer.commit("ses_1", group)) for group in groups]
    await asyncio.sleep(0)
    line.open.set()
    outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert len(line.calls) == 3
    named = [
        type(o).__name__ if isinstance(o, Exception) else [p.offset for p in o.positions]
        for o in outcomes
        if not isinstance(o, BaseException) or isinstance(o, Exception)
    ]
    assert named == [[2], [3, 4], "AlreadyExists", [5], "NotFound", [6]]
    assert_contract(await core.entries("ses_1"))


async def test_groups_of_one_call_see_what_earlier_ones_did(core: Services) -> None:
    line = Line(core.redis.execute_command)
    committer = committer_on(core, line)
    await committer.commit("ses_1", [creating("ses_1")])
    line.open.clear()
    groups = [[appending("m0")], [appending("m1")], [removing("m1")], [editing("m1")]]
    groups += [[deleting("ses_1")], [appending("m2")], [creating("ses_1")]]
    tasks = [asyncio.create_task(committer.commit("ses_1", group)) for group in groups]
    await until(lambda: len(line.calls) == 2)
    line.open.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes] == [
        *("Committed", "Committed", "Committed", "NotFound"),
        *("Committed", "SessionDeleted", "SessionDeleted"),
    ]


async def test_sessions_do_not_share_their_logs(core: Services) -> None:
    for name in ("ses_1", "ses_2"):
        await core.commit(name, creating(name))
    await core.commit("ses_1", appending("m1"))
    other = await core.commit("ses_2", appending("m1"))
    assert other.positions[0].offset == 2
    for name in ("ses_1", "ses_2"):
        entries = await core.entries(name)
        assert_contract(entries)
        assert len(entries) == 2


async def test_namespaces_do_not_share_their_sessions(core: Services) -> None:
    await core.commit("ses_1", creating("ses_1"))
    before = await contents(core)
    elsewhere = Committer(
        core.redis.execute_command, Keys(f"{core.keys.namespace}-x"), writer="other.1"
    )
    assert (await elsewhere.commit("ses_1", [creating("ses_1")])).positions[0].offset == 1
    assert await contents(core) == before

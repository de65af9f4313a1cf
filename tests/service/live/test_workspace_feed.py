"""The feed of a workspace: where its sessions stand, then what happens in any of them."""

from __future__ import annotations

import asyncio

import pytest

from sessiond.errors import AlreadyExists
from tests.service.support import (
    Subscriber,
    body,
    create,
    cut,
    operation,
    said,
    watching_workspace,
)
from tests.store.support import Services, StartServices, roll_back, take_copy

MIB = 1024 * 1024


async def append(core: Services, session_id: str, *names: str) -> None:
    for name in names:
        await core.messages.append(session_id, [said("hi", name)])


async def ends(core: Services, *session_ids: str) -> dict[str, str]:
    return {name: str((await core.store.end(name)).position) for name in session_ids}


def numbers(subscriber: Subscriber) -> list[int]:
    return [int(event.id.partition(":")[2]) for event in subscriber.events]


async def test_the_first_event_tells_where_every_session_stands(core: Services) -> None:
    for name in ("ses_1", "ses_2"):
        await create(core, name)
    await create(core, "ses_3", workspace="other")
    await append(core, "ses_1", "m1")
    async with watching_workspace(core) as subscriber:
        (first,) = await subscriber.told(1)
    assert first.name == "positions"
    assert body(first) == {"reason": None, "sessions": await ends(core, "ses_1", "ses_2")}


async def test_what_happens_in_any_session_is_told_in_the_order_of_each(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    for name in ("ses_1", "ses_2", "ses_3"):
        await create(core, name)
    async with watching_workspace(core) as subscriber:
        await subscriber.told(1)

        async def write(services: Services, session_id: str) -> None:
            for number in range(20):
                await append(services, session_id, f"m{number}-{services.committer.writer}")

        await asyncio.gather(
            *(write(c, s) for c in (core, there) for s in ("ses_1", "ses_2", "ses_3"))
        )
        await subscriber.told(121)
    told = [operation(event) for event in subscriber.events[1:]]
    for name in ("ses_1", "ses_2", "ses_3"):
        entries = await core.entries(name)
        positions = [operation.position for operation in told if operation.session_id == name]
        assert positions == [str(entry.position) for entry in entries[1:]]
    assert numbers(subscriber) == list(range(121))


async def test_new_sessions_appear_with_their_creation(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    async with watching_workspace(core) as subscriber:
        await subscriber.told(1)
        await create(there, "ses_new", title="New")
        await append(there, "ses_new", "m1")
        await create(there, "ses_elsewhere", workspace="other")
        await append(there, "ses_new", "m2")
        await subscriber.told(4)
    told = [operation(event) for event in subscriber.events[1:]]
    assert [(o.session_id, o.op) for o in told] == [
        ("ses_new", "session.create"),
        ("ses_new", "message.append"),
        ("ses_new", "message.append"),
    ]


async def test_a_deletion_is_told_once_and_the_session_leaves_the_positions(
    core: Services,
) -> None:
    await create(core, "ses_1")
    await create(core, "ses_2")
    async with watching_workspace(core) as subscriber:
        await subscriber.told(1)
        await core.sessions.delete("ses_1")
        await subscriber.told(2)
        await cut(core)
        await append(core, "ses_2", "m1")
        await subscriber.told(3)
        async with watching_workspace(core) as other:
            (positions,) = await other.told(1)
    assert subscriber.names == ["positions", "session.delete", "message.append"]
    assert set(body(positions)["sessions"]) == {"ses_2"}


async def test_who_comes_back_with_the_last_id_is_told_what_it_missed(core: Services) -> None:
    await create(core, "ses_1")
    async with watching_workspace(core) as subscriber, watching_workspace(core) as witness:
        await append(core, "ses_1", "m1", "m2", "m3")
        await subscriber.told(4)
        await witness.told(4)
        for index in range(4):
            async with watching_workspace(core, last_id=subscriber.events[index].id) as resumed:
                await append(core, "ses_1", f"more{index}")
                await resumed.until(lambda r=resumed, i=index: r.ids[-1] == f"more{i}")  # type: ignore[misc]
                expected = ["m1", "m2", "m3", "more0", "more1", "more2", "more3"]
                assert resumed.ids == expected[index : 4 + index]
        await witness.told(8)
        assert numbers(witness) == list(range(8))


async def test_what_happened_while_nobody_listened_is_told_to_who_comes_back(
    core: Services,
) -> None:
    await create(core, "ses_1")
    async with watching_workspace(core) as subscriber:
        await append(core, "ses_1", "m1")
        await subscriber.told(2)
    await append(core, "ses_1", "m2")
    async with watching_workspace(core, last_id=subscriber.events[-1].id) as resumed:
        await append(core, "ses_1", "m3")
        await resumed.told(2)
    assert resumed.ids == ["m2", "m3"]


async def test_who_comes_back_when_what_it_missed_is_gone_is_reset(core: Services) -> None:
    await create(core, "ses_1")
    async with watching_workspace(core) as subscriber:
        await append(core, "ses_1", "m0")
        await subscriber.told(2)
        for number in range(5):
            await core.messages.append("ses_1", [said("x" * MIB, f"large{number}")])
        await subscriber.told(7)
        async with watching_workspace(core, last_id=subscriber.events[1].id) as late:
            (reset,) = await late.told(1)
            assert reset.name == "reset"
            assert body(reset) == {
                "reason": "history-lost",
                "sessions": await ends(core, "ses_1"),
            }
            await append(core, "ses_1", "m1")
            await late.told(2)
            assert late.ids == ["m1"]
        await subscriber.told(8)
        async with watching_workspace(core, last_id=subscriber.events[5].id) as recent:
            await recent.told(2)
            assert recent.ids == ["large4", "m1"]


@pytest.mark.parametrize(
    "made_up",
    [
        "x",
        "0",
        ":",
        "00000000000000:0",
        "{epoch}:",
        "{epoch}:-1",
        "{epoch}:99",
        "{epoch}:x",
        "{epoch}:1:1",
        "{epoch}:²",
        "{epoch}:" + "9" * 5000,
        "é:1",
    ],
)
async def test_an_id_that_this_feed_never_gave_is_answered_with_a_reset(
    core: Services, made_up: str
) -> None:
    await create(core, "ses_1")
    async with watching_workspace(core) as subscriber:
        await subscriber.told(1)
        epoch = subscriber.events[0].id.partition(":")[0]
        last_id = made_up.replace("{epoch}", epoch)
        async with watching_workspace(core, last_id=last_id) as other:
            (reset,) = await other.told(1)
    assert reset.name == "reset"
    assert body(reset)["sessions"] == await ends(core, "ses_1")


async def test_an_id_of_another_daemon_is_answered_with_a_reset(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    await create(core, "ses_1")
    async with watching_workspace(core) as here:
        await here.told(1)
        async with watching_workspace(there, last_id=here.events[0].id) as other:
            (reset,) = await other.told(1)
    assert reset.name == "reset"


async def test_nothing_is_missed_or_doubled_when_the_bus_is_cut(
    core: Services, start: StartServices
) -> None:
    there = await start(instance="there")
    await create(core, "ses_0")
    async with watching_workspace(core) as subscriber:
        await subscriber.told(1)
        for number in range(1, 8):
            await cut(core)
            await create(there, f"ses_{number}")
            await append(there, f"ses_{number}", "m1")
            await append(there, "ses_0", f"m{number}")
        await subscriber.told(22)
        await cut(core)
        await append(there, "ses_0", "last")
        await subscriber.told(23)
    told = [operation(event) for event in subscriber.events[1:]]
    for number in range(8):
        name = f"ses_{number}"
        entries = await core.entries(name)
        positions = [operation.position for operation in told if operation.session_id == name]
        assert positions == [str(e.position) for e in entries[0 if number else 1 :]], name


async def test_a_rollback_resets_the_session_and_tells_what_is_left_of_it(
    core: Services,
) -> None:
    await create(core, "ses_1")
    await create(core, "ses_2")
    kept = await take_copy(core, "ses_1")
    async with watching_workspace(core) as subscriber:
        await append(core, "ses_1", "lost")
        await subscriber.told(2)
        await roll_back(core, "ses_1", kept)
        await cut(core)
        await subscriber.told(4)
        await append(core, "ses_2", "m1")
        await subscriber.told(5)
    assert subscriber.names[2:] == ["reset", "session.create", "message.append"]
    assert body(subscriber.events[2])["session_id"] == "ses_1"


async def test_a_refused_creation_does_not_bring_a_session_into_another_workspace(
    core: Services,
) -> None:
    await create(core, "ses_1", workspace="private")
    with pytest.raises(AlreadyExists):
        await create(core, "ses_1", workspace="curious")
    async with watching_workspace(core, "curious") as subscriber:
        (first,) = await subscriber.told(1)
        assert body(first)["sessions"] == {}
        await append(core, "ses_1", "secret")
        await cut(core)
        await create(core, "ses_2", workspace="curious")
        await subscriber.until(lambda: "ses_2" in subscriber.ids)
    assert subscriber.ids == ["ses_2"]


async def test_a_damaged_session_does_not_silence_the_others(core: Services) -> None:
    for name in ("ses_bad", "ses_good"):
        await create(core, name)
    async with watching_workspace(core) as subscriber:
        await subscriber.told(1)
        stream = core.keys.conversation("ses_bad")
        await core.redis.execute_command("XADD", stream, "1-5", "hello", "world")
        await append(core, "ses_bad", "m1")
        await append(core, "ses_good", "m2")
        await subscriber.until(lambda: "m2" in subscriber.ids)
        await cut(core)
        await append(core, "ses_good", "m3")
        await subscriber.until(lambda: "m3" in subscriber.ids)


async def test_live_events_of_all_sessions_are_told_and_not_numbered(core: Services) -> None:
    await create(core, "ses_1")
    async with watching_workspace(core) as subscriber:
        await subscriber.told(1)
        await core.sessions.send_live("ses_1", "typing")
        await append(core, "ses_1", "m1")
        await subscriber.told(3)
    assert subscriber.names == ["positions", "live", "message.append"]
    assert subscriber.events[1].id == ""


async def test_notices_of_strangers_do_not_invent_sessions(core: Services) -> None:
    await create(core, "ses_1")
    channel = core.keys.workspace_events("default")
    async with watching_workspace(core) as subscriber:
        await subscriber.told(1)
        await core.redis.publish(channel, "{}")
        await core.redis.publish(channel, '{"session_id":"ses_none","position":"1"}')
        await append(core, "ses_1", "m1")
        await subscriber.told(2)
        async with watching_workspace(core) as other:
            (first,) = await other.told(1)
    assert set(body(first)["sessions"]) == {"ses_1"}

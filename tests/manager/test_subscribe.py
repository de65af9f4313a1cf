"""Who follows a session through the Python API sees everything, once and in order."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from sessiond import Session, SessionManager
from sessiond.model import Live, NewMessage, Operation, Reset
from tests.daemons import RunningDaemon
from tests.manager.programs import Connect, contents, following, log_of, state, text_part
from tests.opencode.waiting import until


async def test_who_follows_sees_everything_in_order_and_holds_what_a_load_gives(
    connect: Connect, session: Session
) -> None:
    follower = await connect().load(session.id)
    began = int(follower.position.partition(":")[2])
    async with following(follower) as events:
        await session.add_messages([NewMessage(role="tool", content=str(n)) for n in range(5)])
        await session.edit_message(session.messages[2].id, content="edited")
        await session.put_part("m", text_part("q", "more"))
        await session.remove_part("m", "p")
        await session.remove_message(session.messages[3].id)
        session.context.active_files.append("README.md")
        session.context.state["findings"] = [{"deep": [1]}]
        session.preferences["language"] = "en"
        del session.preferences["theme"]
        await session.save()
        await session._backend.change_document(session.id, "metadata", {"title": "named"})
        end = await session._backend.position(session.id)
        await until(lambda: follower.position == end)
    seen = [event for event in events if isinstance(event, Operation)]
    offsets = [int(event.position.partition(":")[2]) for event in seen]
    assert offsets == list(range(began + 1, int(end.partition(":")[2]) + 1))
    assert [event.op for event in seen][5:9] == [
        "message.edit",
        "part.put",
        "part.remove",
        "message.remove",
    ]
    assert follower.metadata.title == "named"
    assert state(follower) == state(await connect().load(session.id))


async def test_who_missed_more_than_a_page_holds_catches_up_to_the_end(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)
    for number in range(10):
        await other.add_message(role="tool", content=f"{number}" + "x" * 950_000)
    await session.add_message(role="user", content="mine")
    assert [message.content[0] for message in session.messages[1:]] == [*"0123456789", "m"]
    assert state(session) == state(await connect().load(session.id))


async def test_own_writes_while_following_are_held_once_and_in_the_common_order(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)

    async def write(into: Session, name: str) -> None:
        for number in range(10):
            await into.add_message(role="user", content=f"{name}-{number}")

    async with following(session) as events:
        await asyncio.gather(
            *[write(session, name) for name in "ab"], *[write(other, name) for name in "xy"]
        )
        end = await session._backend.position(session.id)
        await until(lambda: len(events) == 40)
        await until(lambda: session.position == end)
    loaded = await connect().load(session.id)
    assert len(loaded.messages) == 41
    assert session.messages == loaded.messages
    offsets = [int(event.position.partition(":")[2]) for event in events]  # type: ignore[union-attr]
    assert offsets == list(range(3, 43))


async def test_own_writes_alone_hold_what_a_load_gives(
    manager: SessionManager, session: Session
) -> None:
    await asyncio.sleep(0.002)  # another millisecond than that of the creation
    await session.add_message(role="user", content="last")
    assert state(session) == state(await manager.load(session.id))


async def test_following_begins_after_what_is_held_or_where_it_is_asked_to(
    connect: Connect, session: Session
) -> None:
    follower = await connect().load(session.id)
    await session.add_message(role="user", content="missed")
    async with following(follower) as events, following(session, after="0") as all_events:
        await until(lambda: events and len(all_events) == 3)
    assert [event.op for event in events if isinstance(event, Operation)] == ["message.append"]
    assert contents(follower) == ["said", "missed"]
    assert contents(session) == ["said", "missed"]
    first = all_events[0]
    assert isinstance(first, Operation)
    assert first.op == "session.create"


async def test_following_ends_when_the_session_is_deleted(
    manager: SessionManager, connect: Connect, session: Session
) -> None:
    follower = await connect().load(session.id)
    names: list[str] = []

    async def follow() -> None:
        names.extend(
            [event.op async for event in follower.subscribe() if isinstance(event, Operation)]
        )

    following = asyncio.create_task(follow())
    live = asyncio.create_task(session.send_live("on the way"))
    await live
    await manager.delete(session.id)
    await asyncio.wait_for(following, 15)
    assert names == ["session.delete"]
    assert follower.metadata.status == "deleted"


async def test_who_begins_to_follow_a_deleted_session_is_told_so_and_no_more(
    connect: Connect, manager: SessionManager, session: Session
) -> None:
    late = await connect().load(session.id)
    await manager.delete(session.id)
    events = [event async for event in late.subscribe()]
    last = events[-1]
    assert isinstance(last, Operation)
    assert last.op == "session.delete"
    assert late.metadata.status == "deleted"
    assert events[:-1] == [], events


async def test_live_events_reach_who_listens_and_are_not_stored(
    connect: Connect, session: Session
) -> None:
    follower = await connect().load(session.id)
    before = await log_of(session)
    body = {"typing": ["é", None, 1]}
    async with following(follower) as events:
        while not events:  # who does not listen yet hears nothing
            await session.send_live(body)
            await asyncio.sleep(0.01)
    first = events[0]
    assert isinstance(first, Live)
    assert (first.session_id, first.body) == (session.id, body)
    assert await log_of(session) == before
    assert state(follower) == state(await connect().load(session.id))


async def test_a_program_can_stop_following_and_begin_again(session: Session) -> None:
    for number in range(3):
        await session.add_message(role="user", content=str(number))
        async for event in session.subscribe(after="0"):
            assert isinstance(event, Operation)
            break
    assert contents(session) == ["said", "0", "1", "2"]


async def test_who_follows_a_history_that_was_set_back_holds_the_one_that_is_there(
    daemon: RunningDaemon, connect: Connect, session: Session
) -> None:
    redis = Redis(unix_socket_path=str(daemon.redis_socket))
    older = {key: await redis.dump(key) async for key in redis.scan_iter(f"*{{{session.id}}}*")}
    session.preferences["theme"] = "lost"
    session.context.working_directory = "/lost"
    await session.save()
    await session._backend.change_document(session.id, "metadata", {"title": "lost"})
    await session.add_message(role="user", content="lost")
    assert session.metadata.title == "lost"
    other = connect()
    async with following(session) as events:
        async with redis.pipeline(transaction=True) as at_once:  # as a server that was put back
            for key, content in older.items():
                at_once.restore(key, 0, content or b"", replace=True)
            await at_once.execute()
        await redis.aclose()
        written = await (await other.load(session.id)).add_message(role="user", content="new")
        await until(lambda: written in session.messages)
        async with asyncio.timeout(10):  # a daemon writes again what was lost
            while state(session) != state(await other.load(session.id)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert any(isinstance(event, Reset) for event in events)
    assert [text for text in contents(session) if text != "lost"] == ["said", "new"]

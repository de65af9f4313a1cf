"""A session's life, through a daemon or directly on Redis: one behaviour, the same errors."""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from sessiond import Session, SessionManager, __version__
from sessiond.errors import (
    AlreadyExists,
    NotFound,
    SessionDeleted,
    SessionInUse,
    VersionMismatch,
)
from sessiond.model import Context
from sessiond.store.keys import Keys
from tests.daemons import RunningDaemon
from tests.manager.programs import Connect, log_of, text_part
from tests.store.support import until_awaited


async def test_a_session_that_is_loaded_or_followed_counts_as_read(
    manager: SessionManager, daemon: RunningDaemon
) -> None:
    """Else a clean-up would take it for one that nobody needs."""

    async def load(session: Session) -> None:
        await manager.load(session.id)

    async def follow(session: Session) -> None:
        async with asyncio.timeout(10):
            async for _ in session.subscribe(after="0"):
                break

    async def is_noted(redis: Redis, session: Session) -> bool:
        return bool(await redis.exists(Keys().reads(session.id)))

    async with Redis(unix_socket_path=str(daemon.redis_socket)) as redis:
        for use in (load, follow):
            session = await manager.create()
            await session.add_message(role="user", content="x")
            await use(session)
            await until_awaited(partial(is_noted, redis, session))


FOLDER = str(Path.cwd())


async def test_a_session_lives_as_the_specification_says(manager: SessionManager) -> None:
    session = await manager.create(
        user_id="user123", preferences={"theme": "dark", "language": "en"}
    )
    assert session.id.startswith("ses_")
    assert session.metadata.user_id == "user123"
    asked = await session.add_message(role="user", content="Help me analyze this codebase")
    answer = await session.add_message(
        role="assistant", content="Here's the analysis...", tool_calls=["grep", "read"]
    )
    session.context.active_files.append("README.md")
    session.context.state["phase"] = "exploration"
    session.preferences["theme"] = "light"
    await session.save()

    again = await manager.load(session.id)
    assert again.messages == [asked, answer] == session.messages
    assert again.messages[1].tool_calls == ["grep", "read"]
    assert again.context == Context(
        working_directory=FOLDER,
        active_files=["README.md"],
        state={"phase": "exploration"},
    )
    assert again.preferences == {"theme": "light", "language": "en"}
    assert again.metadata.status == "active"


async def test_an_archived_session_comes_back_when_it_is_loaded(
    manager: SessionManager, session: Session
) -> None:
    with pytest.raises(SessionInUse):
        await manager.archive(session.id)
    archived = await manager.archive(session.id, idle_seconds=0)
    assert (archived.archived, archived.position) == (True, session.position)
    again = await manager.load(session.id)
    assert again.messages == session.messages
    await manager.archive(session.id, idle_seconds=0)
    assert not (await manager.restore(session.id)).archived
    await session.add_message(role="user", content="and on")
    with pytest.raises(NotFound):
        await manager.archive("ses_never_was")


async def test_what_is_saved_again_unchanged_writes_nothing(session: Session) -> None:
    before = await log_of(session)
    await session.save()
    assert await log_of(session) == before


async def test_a_session_created_with_an_id_keeps_it_and_another_cannot_take_it(
    manager: SessionManager,
) -> None:
    name = f"ses_{secrets.token_hex(4)}"
    created = await manager.create(session_id=name, title="mine", workspace="w", environment="test")
    assert created.id == name
    assert (created.metadata.title, created.metadata.workspace) == ("mine", "w")
    with pytest.raises(AlreadyExists) as refused:
        await manager.create(session_id=name, title="other")
    assert refused.value.code == "already-exists"
    assert (await manager.load(name)).metadata == created.metadata


async def test_listing_shows_what_the_filters_ask_for(manager: SessionManager) -> None:
    mine = f"user-{secrets.token_hex(4)}"
    made = [
        await manager.create(user_id=mine, workspace=workspace, environment=environment)
        for workspace, environment in (("one", "test"), ("two", "test"), ("two", "development"))
    ]
    names = [session.id for session in made]

    async def found(**filters: Any) -> set[str]:
        page = await manager.list(user_id=mine, **filters)
        return {summary.metadata.session_id for summary in page.sessions}

    assert await found() == set(names)
    assert await found(workspace="two") == set(names[1:])
    assert await found(environment="test") == set(names[:2])
    assert await found(workspace="two", environment="test") == {names[1]}
    assert await found(status="active") == set(names)
    assert await found(status="archived") == set()
    assert await found(workspace="three") == set()


async def test_pages_of_a_listing_show_every_session_once(manager: SessionManager) -> None:
    mine = f"user-{secrets.token_hex(4)}"
    names = {(await manager.create(user_id=mine)).id for _ in range(7)}
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await manager.list(user_id=mine, limit=3, cursor=cursor)
        assert len(page.sessions) <= 3
        seen += [summary.metadata.session_id for summary in page.sessions]
        cursor = page.cursor
        if cursor is None:
            break
    assert len(seen) == 7
    assert set(seen) == names


async def test_a_listing_begins_with_the_latest_activity(manager: SessionManager) -> None:
    mine = f"user-{secrets.token_hex(4)}"
    first = await manager.create(user_id=mine)
    await asyncio.sleep(0.002)  # the order is by milliseconds
    second = await manager.create(user_id=mine)

    async def order() -> list[str]:
        page = await manager.list(user_id=mine)
        return [summary.metadata.session_id for summary in page.sessions]

    assert await order() == [second.id, first.id]
    await first.add_message(role="user", content="awake")
    deadline = time.monotonic() + 5
    while await order() != [first.id, second.id]:
        assert time.monotonic() < deadline, "activity never reached the listing"
        await asyncio.sleep(0.05)
    (latest, _) = (await manager.list(user_id=mine)).sessions
    assert latest.total_messages == 1


async def test_a_deleted_session_is_gone_for_everybody_and_for_ever(
    manager: SessionManager, connect: Connect, session: Session
) -> None:
    elsewhere = await connect().load(session.id)
    await manager.delete(session.id)
    session.context.active_files.append("x")
    for attempt in (
        manager.load(session.id),
        manager.delete(session.id),
        manager.create(session_id=session.id),
        session.add_message(role="user", content="too late"),
        session.edit_message("m", role="tool"),
        session.remove_message("m"),
        session.put_part("m", text_part("p", "late")),
        session.remove_part("m", "p"),
        session.save(),
        session.refresh(),
        session.send_live("typing"),
        elsewhere.add_message(role="user", content="too late"),
    ):
        with pytest.raises(SessionDeleted) as refused:
            await attempt
        assert refused.value.code == "session-deleted"
    page = await manager.list(limit=500)
    assert session.id not in [summary.metadata.session_id for summary in page.sessions]


async def test_a_refused_creation_leaves_no_trace_in_the_index(
    manager: SessionManager, session: Session, daemon: RunningDaemon
) -> None:
    await manager.delete(session.id)
    with pytest.raises(SessionDeleted):
        await manager.create(session_id=session.id)
    redis = Redis(unix_socket_path=str(daemon.redis_socket))
    assert await redis.zscore("sessiond:sessions", session.id) is None
    await redis.aclose()


async def test_a_session_deleted_elsewhere_right_after_activity_leaves_the_index(
    manager: SessionManager, daemon: RunningDaemon
) -> None:
    redis = Redis(unix_socket_path=str(daemon.redis_socket))
    gone, other = await manager.create(), await manager.create()
    created = await redis.zscore("sessiond:sessions", other.id)
    for session in (gone, other):
        await asyncio.sleep(0.002)  # the index counts milliseconds
        await session.add_message(role="user", content="awake")
    async with SessionManager.on_redis(f"unix://{daemon.redis_socket}") as elsewhere:
        await elsewhere.delete(gone.id)
    deadline = time.monotonic() + 10
    while await redis.zscore("sessiond:sessions", other.id) == created:
        assert time.monotonic() < deadline, "activity never reached the index"
        await asyncio.sleep(0.02)
    assert await redis.zscore("sessiond:sessions", gone.id) is None
    await redis.aclose()


async def test_deleting_what_has_moved_on_is_refused(
    manager: SessionManager, session: Session
) -> None:
    seen = session.position
    await session.add_message(role="user", content="news")
    with pytest.raises(VersionMismatch) as refused:
        await manager.delete(session.id, expected=seen)
    assert refused.value.code == "version-mismatch"
    await manager.delete(session.id, expected=session.position)


async def test_an_unknown_session_is_not_found(manager: SessionManager) -> None:
    for attempt in (manager.load("ses_unknown"), manager.delete("ses_unknown")):
        with pytest.raises(NotFound) as refused:
            await attempt
        assert refused.value.code == "not-found"
        assert refused.value.hint


async def test_the_origin_of_a_write_names_the_program(connect: Connect, way: str) -> None:
    session = await connect(name="editor").create()
    await session.add_message(role="user", content="x")
    for operation in await log_of(session):
        name, _, number = operation.origin.rpartition(":")
        assert number.isdigit()
        assert name.startswith("editor@here." if way == "daemon" else "editor.")
    unnamed = await connect().create()
    (created,) = await log_of(unnamed)
    assert "@" not in created.origin


async def test_a_session_says_where_and_by_what_it_was_created(
    manager: SessionManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    session = await manager.create()
    assert session.context.working_directory == str(tmp_path)
    assert session.metadata.user_agent == f"sessiond-python/{__version__}"
    given = await manager.create(
        context=Context(active_files=["a"]), user_agent="editor/1", environment="production"
    )
    assert given.context == Context(active_files=["a"])
    assert (given.metadata.user_agent, given.metadata.environment) == ("editor/1", "production")
    tmp_path.rmdir()  # noqa: ASYNC240 - nobody waits
    assert (await manager.create()).context.working_directory == ""

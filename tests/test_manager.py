"""The Python API, through a daemon and directly on Redis: one behaviour, the same errors."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any, cast

import msgspec
import pytest
from redis.asyncio import Redis

from sessiond import Session, SessionManager
from sessiond.backend import Backend
from sessiond.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    SessionDeleted,
    SessiondError,
    StoreUnavailable,
    TooLarge,
    VersionMismatch,
)
from sessiond.manager import Event
from sessiond.model import (
    Context,
    Conversation,
    Live,
    Metadata,
    NewMessage,
    Operation,
    Part,
    Preferences,
    Reset,
)
from sessiond.sync.documents import merge_patch
from tests.daemons import RunningDaemon, running_daemon

Connect = Callable[..., SessionManager]

# The JSON of the specification, word for word.
METADATA = """
{
  "session_id": "ses_abc123",
  "created_at": "2026-01-13T10:30:00Z",
  "last_activity": "2026-01-13T11:45:00Z",
  "user_agent": "opencode/1.0.0",
  "environment": "development",
  "status": "active"
}
"""
CONVERSATION = """
{
  "messages": [
    {
      "id": "msg_001",
      "timestamp": "2026-01-13T10:30:00Z",
      "role": "user",
      "content": "Help me analyze this codebase",
      "tool_calls": [],
      "metadata": {}
    }
  ],
  "total_messages": 1,
  "context_window_used": 1000
}
"""
CONTEXT = """
{
  "working_directory": "/home/user/project",
  "active_files": ["src/main.js", "README.md"],
  "recent_commands": ["read", "grep", "bash"],
  "state": {
    "current_task": "codebase_analysis",
    "phase": "exploration",
    "findings": []
  }
}
"""
PREFERENCES = '{ "theme": "dark", "language": "en" }'


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with running_daemon("--instance", "here") as daemon:
        yield daemon


@pytest.fixture(params=["daemon", "redis"])
def way(request: pytest.FixtureRequest) -> str:
    """How programs reach their sessions: through a daemon, or on the same server directly."""
    return str(request.param)


@pytest.fixture
async def connect(way: str, daemon: RunningDaemon) -> AsyncIterator[Connect]:
    """Connects one more program."""
    managers: list[SessionManager] = []

    def connected(name: str = "") -> SessionManager:
        if way == "daemon":
            manager = SessionManager.connect(socket=str(daemon.socket), name=name)
        else:
            manager = SessionManager.on_redis(f"unix://{daemon.redis_socket}", name=name)
        managers.append(manager)
        return manager

    yield connected
    for manager in managers:
        await manager.close()


@pytest.fixture
async def manager(connect: Connect) -> SessionManager:
    return connect()


@pytest.fixture
async def session(manager: SessionManager) -> Session:
    """A session with the message `m`, which has the part `p`."""
    session = await manager.create(preferences={"theme": "dark"})
    await session.add_message(id="m", role="user", parts=[text_part("p", "said")])
    return session


def text_part(part_id: str, text: str, **more: Any) -> Part:
    return {"id": part_id, "type": "text", "text": text, **more}


def state(session: Session) -> list[Any]:
    """Everything that a program sees of a session."""
    return [
        msgspec.to_builtins(seen)
        for seen in (session.metadata, session.messages, session.context, session.preferences)
    ] + [session.position]


def contents(session: Session) -> list[str]:
    return [message.content for message in session.messages]


async def log_of(session: Session) -> list[Operation]:
    return (await session._backend.operations(session.id)).operations


async def until(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {condition}"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def following(session: Session, after: str | None = None) -> AsyncIterator[list[Event]]:
    """Subscribe, and give the list that events are added to."""
    events: list[Event] = []

    async def follow() -> None:
        async for event in session.subscribe(after=after):
            events.append(event)  # noqa: PERF401 - seen as they come

    task = asyncio.create_task(follow())
    try:
        yield events
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Slow:
    """A backend whose first answer of a call takes so long that something happens meanwhile."""

    def __init__(
        self,
        backend: Backend,
        call: str,
        meanwhile: Callable[[], Awaitable[object]] | None = None,
        *,
        loses: bool = False,
    ) -> None:
        self.backend = backend
        self.call = call
        self.meanwhile = meanwhile
        self.loses = loses

    def __getattr__(self, name: str) -> Any:
        if name != self.call:
            return getattr(self.backend, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            answer = await getattr(self.backend, name)(*args, **kwargs)
            if self.call == name:
                self.call = ""
                if self.meanwhile:
                    await self.meanwhile()
                if self.loses:
                    raise StoreUnavailable("the answer was lost")
            return answer

        return call


def slow(
    manager: SessionManager, call: str, meanwhile: Callable[[], Awaitable[object]]
) -> SessionManager:
    return SessionManager(cast("Backend", Slow(manager._backend, call, meanwhile)))


def forgetting(
    manager: SessionManager, call: str, meanwhile: Callable[[], Awaitable[object]] | None = None
) -> SessionManager:
    return SessionManager(cast("Backend", Slow(manager._backend, call, meanwhile, loses=True)))


# A session's life


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
    assert again.context == Context(active_files=["README.md"], state={"phase": "exploration"})
    assert again.preferences == {"theme": "light", "language": "en"}
    assert again.metadata.status == "active"


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


# What is refused


def deep(levels: int) -> dict[str, Any]:
    return {"x": deep(levels - 1)} if levels else {}


async def save_context(session: Session, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(session.context, name, value)
    await session.save()


Attempt = Callable[[SessionManager, Session], Awaitable[object]]
REFUSED: dict[str, tuple[type[SessiondError], Attempt]] = {
    "session id with a space": (InvalidInput, lambda m, _: m.create(session_id="a b")),
    "session id with braces": (InvalidInput, lambda m, _: m.create(session_id="{a}")),
    "workspace with a space": (InvalidInput, lambda m, _: m.create(workspace="a b")),
    "title too long": (InvalidInput, lambda m, _: m.create(title="x" * 1025)),
    "preferences not an object": (
        InvalidInput,
        lambda m, _: m.create(preferences=cast("Preferences", ["dark"])),
    ),
    "preference with a name of ours": (
        InvalidInput,
        lambda m, _: m.create(preferences={"_version": 1}),
    ),
    "page of no sessions": (InvalidInput, lambda m, _: m.list(limit=0)),
    "page of too many sessions": (InvalidInput, lambda m, _: m.list(limit=501)),
    "cursor of nobody": (InvalidInput, lambda m, _: m.list(cursor="x")),
    "filter of nobody": (InvalidInput, lambda m, _: m.list(colour="red")),
    "load id with a space": (InvalidInput, lambda m, _: m.load("a b")),
    "load another path": (InvalidInput, lambda m, _: m.load("../status")),
    "load with a query": (InvalidInput, lambda m, s: m.load(f"{s.id}?limit=1")),
    "load nothing": (InvalidInput, lambda m, _: m.load("")),
    "delete another path": (InvalidInput, lambda m, s: m.delete(f"x/../{s.id}")),
    "no role": (InvalidInput, lambda _, s: s.add_message(content="x")),
    "unknown role": (InvalidInput, lambda _, s: s.add_message(role="nobody")),
    "unknown field": (InvalidInput, lambda _, s: s.add_message(role="user", colour="red")),
    "content not a text": (InvalidInput, lambda _, s: s.add_message(role="user", content=5)),
    "message id with a slash": (InvalidInput, lambda _, s: s.add_message(role="user", id="a/b")),
    "message id with a slash, built by hand": (
        InvalidInput,
        lambda _, s: s.add_messages([NewMessage(role="user", id="a/b")]),
    ),
    "unknown role, built by hand": (
        InvalidInput,
        lambda _, s: s.add_messages([NewMessage(role=cast("Any", "nobody"))]),
    ),
    "nested too deep": (InvalidInput, lambda _, s: s.add_message(role="user", metadata=deep(99))),
    "half a character": (InvalidInput, lambda _, s: s.add_message(role="user", content="\ud800")),
    "not JSON": (InvalidInput, lambda _, s: s.add_message(role="user", metadata={"x": object()})),
    "no messages": (InvalidInput, lambda _, s: s.add_messages([])),
    "too many messages": (
        TooLarge,
        lambda _, s: s.add_messages([NewMessage(role="user") for _ in range(65)]),
    ),
    "content beside parts": (
        InvalidInput,
        lambda _, s: s.add_message(role="user", content="x", parts=[text_part("p", "y")]),
    ),
    "part twice": (
        InvalidInput,
        lambda _, s: s.add_message(role="user", parts=[text_part("p", "x"), text_part("p", "y")]),
    ),
    "edit of an unknown field": (InvalidInput, lambda _, s: s.edit_message("m", colour="red")),
    "edit of derived content": (InvalidInput, lambda _, s: s.edit_message("m", content="x")),
    "edit to no message": (InvalidInput, lambda _, s: s.edit_message("m", role="nobody")),
    "edit of no message": (NotFound, lambda _, s: s.edit_message("unknown", role="tool")),
    "removal of no message": (NotFound, lambda _, s: s.remove_message("unknown")),
    "removal through another path": (InvalidInput, lambda _, s: s.remove_message("m/parts/p")),
    "part without type": (InvalidInput, lambda _, s: s.put_part("m", {"id": "p"})),
    "part id of ours": (InvalidInput, lambda _, s: s.put_part("m", text_part("own-x", "x"))),
    "part id with a slash": (InvalidInput, lambda _, s: s.put_part("m", text_part("a/b", "x"))),
    "part of no message": (NotFound, lambda _, s: s.put_part("unknown", text_part("p", "x"))),
    "removal of no part": (NotFound, lambda _, s: s.remove_part("m", "unknown")),
    "version of nobody": (InvalidInput, lambda _, s: s.remove_message("m", expected="latest")),
    "position of nobody": (InvalidInput, lambda _, s: anext(s.subscribe(after="yesterday"))),
    "context of another shape": (
        InvalidInput,
        lambda _, s: save_context(s, active_files="README.md"),
    ),
    "live nested too deep": (InvalidInput, lambda _, s: s.send_live(deep(99))),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_not_right_is_refused_and_writes_nothing(
    manager: SessionManager, session: Session, what: str
) -> None:
    expected, attempt = REFUSED[what]
    before = await log_of(session)
    with pytest.raises(expected) as refused:
        await attempt(manager, session)
    assert refused.value.code == expected.code
    assert await log_of(session) == before


async def test_a_program_whose_name_cannot_be_an_origin_is_refused(connect: Connect) -> None:
    with pytest.raises(InvalidInput):
        await connect(name="a b:c").create()


# Messages and parts


async def test_a_group_stands_together_however_many_write(connect: Connect) -> None:
    session = await connect().create()

    async def write(name: str) -> None:
        mine = await connect().load(session.id)
        for number in range(5):
            await mine.add_messages(
                [NewMessage(role="tool", content=f"{name}-{number}-{place}") for place in range(4)]
            )

    await asyncio.gather(*[write(name) for name in "abc"])
    await session.refresh()
    found = contents(session)
    assert len(found) == 60
    for start in range(0, 60, 4):
        group = found[start].removesuffix("-0")
        assert found[start : start + 4] == [f"{group}-{place}" for place in range(4)]
    for name in "abc":
        mine = [content for content in found if content.startswith(name)]
        assert mine == [f"{name}-{number}-{place}" for number in range(5) for place in range(4)]


async def test_a_group_with_one_impossible_message_writes_none(session: Session) -> None:
    before = await log_of(session)
    group = [NewMessage(role="user", content="first"), NewMessage(role="user", id="m")]
    with pytest.raises(AlreadyExists):
        await session.add_messages(group)
    assert await log_of(session) == before
    assert contents(session) == ["said"]


async def test_the_same_message_twice_is_written_once_and_another_one_is_refused(
    session: Session,
) -> None:
    first = await session.add_message(id="once", role="user", content="the same")
    await asyncio.sleep(0.002)  # another millisecond
    second = await session.add_message(id="once", role="user", content="the same")
    assert second == first
    assert contents(session) == ["said", "the same"]
    with pytest.raises(AlreadyExists):
        await session.add_message(id="once", role="user", content="something else")


async def test_messages_given_twice_are_two_messages(session: Session) -> None:
    again = NewMessage(role="user", content="again")
    await session.add_messages([again])
    await session.add_messages([again])
    await session.refresh()
    assert contents(session) == ["said", "again", "again"]


async def test_content_and_tool_calls_follow_from_parts(session: Session) -> None:
    call: Part = {"id": "p2", "type": "tool", "tool": "grep", "state": {"input": {}}, "new": [1]}
    added = await session.add_message(
        role="assistant", parts=[text_part("p1", "one"), call, text_part("p3", "two")]
    )
    assert (added.content, added.tool_calls) == ("one\ntwo", ["grep"])
    await session.put_part(added.id, text_part("p1", "ONE", unknown={"deep": None}))
    await session.put_part(added.id, text_part("p4", "three"))
    await session.remove_part(added.id, "p3")
    mine = session.messages[-1]
    assert mine.content == "ONE\nthree"
    assert mine.parts == [
        text_part("p1", "ONE", unknown={"deep": None}),
        call,
        text_part("p4", "three"),
    ]
    before = state(session)
    await session.refresh()
    assert state(session)[1:] == before[1:]


async def test_a_conversation_of_opencode_is_held_without_loss(manager: SessionManager) -> None:
    recording = json.loads((files("sessiond") / "demo" / "conversation.json").read_bytes())
    metadata: dict[str, Any] = {}
    parts: dict[str, dict[str, Part]] = {}
    session = await manager.create(title=recording["title"])
    for step in recording["steps"]:
        match step["do"]:
            case "append":
                message = step["message"]
                metadata[message["id"]], parts[message["id"]] = message["metadata"], {}
                await session.add_message(**message)
            case "edit":
                name = step["message_id"]
                metadata[name] = merge_patch(metadata[name], step["metadata"])
                await session.edit_message(name, metadata=step["metadata"])
            case "put_part":
                parts[step["message_id"]][step["part"]["id"]] = step["part"]
                await session.put_part(step["message_id"], step["part"])
            case "live":
                await session.send_live(step["body"])
    for held in (session, await manager.load(session.id)):
        assert [message.id for message in held.messages] == list(metadata)
        for message in held.messages:
            assert message.metadata == metadata[message.id]
            assert message.parts == list(parts[message.id].values())
    assert "MOCK-REPLY[6]: B asks: which word?" in contents(session)[-1]
    assert session.messages[1].tool_calls == ["bash"]


async def test_changes_of_messages_are_seen_at_once_and_by_who_loads(
    manager: SessionManager, session: Session
) -> None:
    await session.add_message(id="plain", role="user", content="plain", metadata={"keep": 1})
    edited = await session.edit_message("plain", content="edited", metadata={"added": 2})
    assert edited == msgspec.structs.replace(edited, id="plain", version=session.position)
    assert contents(session) == ["said", "edited"]
    assert session.messages[1].metadata == {"keep": 1, "added": 2}
    assert (await manager.load(session.id)).messages == session.messages
    await session.remove_message("m")
    assert contents(session) == ["edited"]
    assert (await manager.load(session.id)).messages == session.messages


async def test_a_change_based_on_an_old_version_is_refused_and_on_the_newest_is_done(
    session: Session,
) -> None:
    await session.add_message(id="plain", role="user", content="plain")
    first = session.position
    second = (await session.edit_message("plain", content="second", expected=first)).version
    for attempt in (
        session.edit_message("plain", content="x", expected=first),
        session.remove_message("plain", expected=first),
    ):
        with pytest.raises(VersionMismatch) as refused:
            await attempt
        assert refused.value.code == "version-mismatch"
    assert contents(session)[-1] == "second"
    await session.remove_message("plain", expected=second)

    one = (await session.put_part("m", text_part("q", "one"))).version
    two = (await session.put_part("m", text_part("q", "two"), expected=one)).version
    for attempt in (
        session.put_part("m", text_part("q", "x"), expected=one),
        session.remove_part("m", "q", expected=one),
    ):
        with pytest.raises(VersionMismatch):
            await attempt
    assert contents(session) == ["said\ntwo"]
    await session.remove_part("m", "q", expected=two)
    assert contents(session) == ["said"]


# Documents


async def test_a_conflict_keeps_what_is_here_and_refresh_resolves_it(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)
    other.preferences["theme"] = "theirs"
    await other.save()
    session.preferences["theme"] = "mine"
    session.preferences["language"] = "en"
    with pytest.raises(VersionMismatch) as refused:
        await session.save()
    assert refused.value.code == "version-mismatch"
    assert session.preferences == {"theme": "mine", "language": "en"}
    with pytest.raises(VersionMismatch):
        await session.save()
    assert (await connect().load(session.id)).preferences == {"theme": "theirs"}

    await session.refresh()
    assert session.preferences == {"theme": "theirs"}
    session.preferences["language"] = "en"
    await session.save()
    assert (await connect().load(session.id)).preferences == {"theme": "theirs", "language": "en"}


async def test_a_conflict_is_met_by_who_follows_the_session_too(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)
    session.preferences["theme"] = "mine"
    async with following(session) as events:
        other.preferences["theme"] = "theirs"
        await other.save()
        await until(lambda: events)
    with pytest.raises(VersionMismatch):
        await session.save()


async def test_what_others_wrote_can_be_changed_in_place_and_saved(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)
    other.context.state["findings"] = []
    other.preferences["editor"] = {"tabs": 2}
    await other.save()
    await session.add_message(role="user", content="reads the log")
    assert session.context.state == {"findings": []}
    session.context.state["findings"].append("mine")
    session.preferences["editor"]["tabs"] = 4
    await session.save()
    again = await connect().load(session.id)
    assert again.context.state == {"findings": ["mine"]}
    assert again.preferences["editor"] == {"tabs": 4}


async def test_fields_of_documents_can_be_removed_and_have_any_value(
    manager: SessionManager, session: Session
) -> None:
    odd = {"none": None, "list": [1, "a", {"b": None}], "number": 1.5, "é ü": "☃", "": "empty"}
    session.preferences.clear()
    session.preferences.update(odd)
    session.context.state = odd
    await session.save()
    again = await manager.load(session.id)
    assert again.preferences == odd
    assert again.context.state == odd


# Following


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
        for key, content in older.items():
            await redis.restore(key, 0, content or b"", replace=True)
        await redis.aclose()
        written = await (await other.load(session.id)).add_message(role="user", content="new")
        await until(lambda: session.messages and session.messages[-1] == written)
    assert any(isinstance(event, Reset) for event in events)
    assert contents(session) == ["said", "new"]
    assert state(session) == state(await other.load(session.id))


# The specification's JSON


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (METADATA, Metadata),
        (CONVERSATION, Conversation),
        (CONTEXT, Context),
        (PREFERENCES, Preferences),
    ],
    ids=["metadata", "conversation", "context", "preferences"],
)
def test_the_specifications_json_passes_through_unchanged(text: str, kind: Any) -> None:
    """Same members, same order, same values."""
    passed = msgspec.json.encode(msgspec.json.decode(text, type=kind))
    assert passed.decode() == json.dumps(json.loads(text), separators=(",", ":"))


async def test_a_stored_session_has_the_specifications_json(manager: SessionManager) -> None:
    name = f"ses_{secrets.token_hex(4)}"
    created = await manager.create(
        session_id=name,
        user_agent="opencode/1.0.0",
        context=msgspec.json.decode(CONTEXT, type=Context),
        preferences=json.loads(PREFERENCES),
    )
    (message,) = json.loads(CONVERSATION)["messages"]
    await created.add_message(**message)
    session = await manager.load(name)
    assert json.loads(msgspec.json.encode(session.context)) == json.loads(CONTEXT)
    assert list(session.preferences.items()) == list(json.loads(PREFERENCES).items())
    assert json.loads(msgspec.json.encode(session.messages)) == [message]
    assert list(json.loads(msgspec.json.encode(session.messages[0]))) == list(message)
    written = json.loads(msgspec.json.encode(session.metadata))
    assert list(written) == [*json.loads(METADATA), "workspace"]
    assert written | json.loads(METADATA) == json.loads(METADATA) | {"workspace": "default"}


# Retries


WRITES: dict[str, Callable[[Session], Awaitable[object]]] = {
    "append": lambda session: session.add_message(role="user", content="new"),
    "edit": lambda session: session.edit_message("m", role="tool"),
    "remove": lambda session: session.remove_message("m"),
    "put_part": lambda session: session.put_part("m", text_part("q", "new")),
    "remove_part": lambda session: session.remove_part("m", "p"),
}


@pytest.mark.parametrize("call", WRITES)
async def test_a_write_whose_answer_was_lost_is_done_once(
    manager: SessionManager, session: Session, call: str
) -> None:
    before = await log_of(session)
    mine = await forgetting(manager, call).load(session.id)
    answer = await WRITES[call](mine)
    after = await log_of(session)
    assert len(after) == len(before) + 1
    assert mine.messages == (await manager.load(session.id)).messages
    if call != "append":
        assert cast("Any", answer).version == after[-1].position, "as without the loss"


async def test_a_creation_whose_answer_was_lost_is_done_once(manager: SessionManager) -> None:
    mine = f"user-{secrets.token_hex(4)}"
    created = await forgetting(manager, "create").create(user_id=mine)
    (found,) = (await manager.list(user_id=mine)).sessions
    assert found.metadata.session_id == created.id


async def test_a_deletion_whose_answer_was_lost_is_done_once(
    manager: SessionManager, session: Session
) -> None:
    await forgetting(manager, "delete").delete(session.id)
    with pytest.raises(SessionDeleted):
        await manager.load(session.id)


async def test_a_save_whose_answer_was_lost_is_done_once(
    manager: SessionManager, session: Session
) -> None:
    mine = await forgetting(manager, "change_document").load(session.id)
    before = await log_of(session)
    mine.preferences["theme"] = "light"
    await mine.save()
    assert len(await log_of(session)) == len(before) + 1
    await mine.save()
    assert len(await log_of(session)) == len(before) + 1


async def test_a_save_whose_answer_was_lost_does_not_hide_what_others_wrote_since(
    connect: Connect, session: Session
) -> None:
    async def meanwhile() -> None:
        other = await connect().load(session.id)
        other.preferences["language"] = "theirs"
        await other.save()

    forgetful = forgetting(connect(), "change_document", meanwhile)
    mine = await forgetful.load(session.id)
    mine.preferences["theme"] = "light"
    await mine.save()
    mine.preferences["theme"] = "lighter"
    try:
        await mine.save()
    except VersionMismatch:
        return  # told: fine, too
    after = (await connect().load(session.id)).preferences
    assert after == {"theme": "lighter", "language": "theirs"}


async def test_what_was_changed_during_a_save_is_sent_by_the_next(
    connect: Connect, session: Session
) -> None:
    async def meanwhile() -> None:
        mine.preferences["theme"] = "changed meanwhile"

    mine = await slow(connect(), "change_document", meanwhile).load(session.id)
    mine.preferences["theme"] = "light"
    await mine.save()
    await mine.save()
    assert (await connect().load(session.id)).preferences == {"theme": "changed meanwhile"}


async def test_what_others_wrote_during_a_save_is_not_lost_to_who_follows(
    connect: Connect, session: Session
) -> None:
    other = await connect().load(session.id)

    async def write(**preferences: str) -> None:
        await other.refresh()
        other.preferences.update(preferences)
        await other.save()
        end = await other._backend.position(session.id)
        await until(lambda: mine.position == end)

    async def meanwhile() -> None:
        await write(language="theirs")

    mine = await slow(connect(), "change_document", meanwhile).load(session.id)
    async with following(mine):
        mine.preferences["theme"] = "mine"
        await mine.save()
        await write(editor="theirs")
        mine.preferences["theme"] = "mine again"
        with suppress(VersionMismatch):  # told: fine, too
            await mine.save()
    written = (await connect().load(session.id)).preferences
    assert written | {"theme": ""} == {"theme": "", "language": "theirs", "editor": "theirs"}


# Names


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

"""Being at a session through the Python API: seen by others as long as it lasts, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sessiond import Session, SessionManager
from sessiond.errors import NotFound, SessionDeleted
from sessiond.model import Live
from tests.daemons import running_daemon
from tests.manager.programs import Connect, following
from tests.opencode.waiting import until


async def names(session: Session) -> list[str]:
    return [who.instance for who in (await session.presence()).present]


async def test_who_is_at_a_session_is_seen_by_others_until_it_leaves(
    connect: Connect, session: Session
) -> None:
    other = await connect(name="other").load(session.id)
    assert await names(other) == []
    async with session.present(active_files=["a.py", "b.py"], instance="ann"):
        (who,) = (await other.presence()).present
        assert (who.instance, who.active_files, who.has_turn) == ("ann", ["a.py", "b.py"], False)
        async with other.present(active_files=["b.py"], instance="bob") as bob:
            assert bob.seen.shared_files == {"b.py": ["ann", "bob"]}
            assert await names(session) == ["ann", "bob"]
            assert (await bob.work_on("c.py")).shared_files == {}
            assert bob.active_files == ["c.py"]
        assert await names(session) == ["ann"]
    assert await names(other) == []


async def test_a_program_says_which_one_it_is_and_where(connect: Connect, way: str) -> None:
    session = await connect(name="editor").create()
    async with session.present() as here:
        (who,) = here.seen.present
    assert who.instance == here.instance
    assert here.instance.startswith("py-")
    assert (who.machine, who.client) == (("here", "editor") if way == "daemon" else ("editor", ""))


async def test_who_follows_is_told_who_comes_and_goes(connect: Connect, session: Session) -> None:
    follower = await connect().load(session.id)
    async with following(follower) as events:
        while not events:  # who does not listen yet hears nothing
            await session.send_live("begin")
            await asyncio.sleep(0.01)
        async with session.present(active_files=["a.py"], instance="ann") as here:
            await here.work_on("a.py")
            await here.work_on()
        await until(lambda: "left" in changes(events))
    assert changes(events) == ["came", "changed", "left"]


def changes(events: Sequence[object]) -> list[str]:
    bodies = [event.body for event in events if isinstance(event, Live)]
    return [body["presence"]["change"] for body in bodies if isinstance(body, dict)]


async def test_an_error_inside_ends_it_too(session: Session) -> None:
    with pytest.raises(ZeroDivisionError):
        async with session.present():
            _ = 1 / 0
    assert await names(session) == []


async def test_what_is_refused_leaves_what_was_said_before(session: Session) -> None:
    async with session.present(active_files=["a.py"]) as here:
        with pytest.raises(Exception, match="256"):
            await here.work_on(*(f"f{number}" for number in range(257)))
        assert here.active_files == ["a.py"]
        assert (await session.presence()).present[0].active_files == ["a.py"]


async def test_nobody_is_at_a_session_that_is_gone(
    manager: SessionManager, session: Session
) -> None:
    async with session.present():
        await manager.delete(session.id)
    for attempt in (session.presence(), session.present().__aenter__()):
        with pytest.raises(SessionDeleted):
            await attempt
    session.metadata.session_id = "ses_never_was"
    with pytest.raises(NotFound):
        await session.presence()


async def test_it_goes_on_across_a_restart_of_the_daemon_and_ends_with_a_crash() -> None:
    with running_daemon(start=False) as daemon:
        daemon.environ["SESSIOND_SYNC_PRESENCE_SECONDS"] = "1"
        await asyncio.to_thread(daemon.start)
        async with (
            SessionManager.connect(socket=str(daemon.socket)) as one,
            SessionManager.connect(socket=str(daemon.socket)) as two,
        ):
            session = await one.create()
            other = await two.load(session.id)
            async with session.present(instance="ann") as here:
                first = here.seen.present[0]
                await until(lambda: here.seen.present[0].seen_ms > first.seen_ms + 1_500)
                assert here.seen.present[0].since_ms == first.since_ms, "there all the time"
                await asyncio.to_thread(daemon.kill)
                await asyncio.to_thread(daemon.start)
                await until(lambda: is_there(other, "ann"))
                crashed = two._backend
                await crashed.announce(session.id, "bob", [])
                async with asyncio.timeout(3):
                    while await is_there(other, "bob"):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                assert await names(other) == ["ann"]


async def is_there(session: Session, name: str) -> bool:
    return name in await names(session)

"""Copies follow their sessions: across lives of the process, gaps of the bus, and the bound."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sessiond.errors import StoreUnavailable
from tests.service.away import machine
from tests.service.support import create, cut, said
from tests.store.support import Services, StartServices, appending, until

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)


async def test_what_happened_between_two_lives_is_found_and_nothing_else_is_read(
    core: Services, tmp_path: Path
) -> None:
    async with machine(core, tmp_path) as here:
        for name in ("still", "grown", "gone"):
            await create(core, name)
            await here.copied(name)
    core.store.on_commit.clear()
    await core.messages.append("grown", [said("meanwhile", "m1")])
    await core.sessions.delete("gone")
    async with machine(core, tmp_path) as here:
        assert here.copier.behind == 3, "until Redis was asked"
        await here.copied("grown")
        await until(lambda: here.copier.behind == 0)
        assert here.replica.copies["gone"].position.offset == 2
        assert here.replica.copies["still"].position == (await core.store.end("still")).position


async def test_what_the_bus_did_not_tell_is_found_after_its_gap(
    core: Services, start: StartServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await start(instance="elsewhere")
    async with machine(core, tmp_path) as here:
        await create(core, "s")
        await here.copied("s")
        with monkeypatch.context() as deaf:
            deaf.setattr(core.bus, "_hand_on", lambda _reply: None)
            await other.messages.append("s", [said("unheard", "m1")])
            assert here.replica.copies["s"].position.offset == 1
        await cut(core)
        await here.copied("s")


async def test_an_archived_session_stays_archived_and_its_copy_counts_as_old(
    core: Services, tmp_path: Path
) -> None:
    await create(core, "s")
    await core.messages.append("s", [said("before", "m1")])
    async with machine(core, tmp_path) as here:
        core.clock.ms += 3_600_000
        assert (await core.archiving.archive("s")).archived
        here.copier.see("s")
        await until(lambda: here.copier.behind == 0)
        assert await core.redis.hexists(core.keys.metadata("s"), "archive")
        assert here.copier.stale_seconds("s") is None
        await core.sessions.load("s")
        here.copier.see("s")
        await here.copied("s")
        assert here.copier.stale_seconds("s") == 0.0


async def test_a_session_that_made_room_is_left_alone_for_a_while(
    core: Services, tmp_path: Path
) -> None:
    async with machine(core, tmp_path, limit_bytes=20_000) as here:
        for name in ("first", "second", "third"):
            core.clock.ms += 1
            await create(core, name)
            await core.messages.append(name, [said("x" * 6_000, "m1")])
            await until(lambda: here.copier.behind == 0)
        assert set(here.replica.copies) == {"second", "third"}
        await core.messages.append("first", [said("more", "m2")])
        here.copier.see("first")
        assert here.copier.behind == 0
        core.clock.ms += 600_001
        here.copier.see("first")
        await here.copied("first")


async def test_what_cannot_be_copied_is_told_and_keeps_nothing_else_up(
    core: Services, tmp_path: Path
) -> None:
    with capture_logs() as logs:
        async with machine(core, tmp_path, limit_bytes=20_000) as here:
            await create(core, "large")
            await core.messages.append("large", [said("x" * 30_000, "m1")])
            await create(core, "damaged")
            await core.redis.xadd(core.keys.conversation("damaged"), {"what": "rubbish"}, id="2-0")
            await core.redis.hset(core.keys.metadata("damaged"), "version", "2")
            await create(core, "sound")
            await here.copied("sound")
            await until(lambda: set(here.replica.copies) == {"sound"})
            await core.messages.append("large", [said("more", "m2")])
            await until(lambda: here.copier.behind == 0)
            assert set(here.replica.copies) == {"sound"}
            assert "large" not in here.copier.written.sessions
            here.lose_redis()
            with pytest.raises(StoreUnavailable):
                await here.reading.load("large")
    told = [log["session_id"] for log in logs if log["event"] == "replica.not_copied"]
    assert sorted(told) == ["damaged", "large"]


async def test_where_nothing_is_copied_any_more_nobody_listens(
    core: Services, tmp_path: Path
) -> None:
    async with machine(core, tmp_path) as here:
        await create(core, "one", workspace="first")
        await here.copied("one")
        await here.replica.drop(["one"])
        await create(core, "two", workspace="second")
        await here.copied("two")
        first, second = (core.keys.workspace_events(name) for name in ("first", "second"))
        await core.commit("two", appending("m1"))
        await here.copied("two")
        assert (first in core.bus._listeners, second in core.bus._listeners) == (False, True)

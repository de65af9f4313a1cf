"""Cleaning up: what was decided is done, unless somebody uses the session or took over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from sessiond.errors import CleanupHeld, InvalidInput, StoreUnavailable
from sessiond.model import Context, NewMessage, NewSession
from sessiond.policy.retention import DAY_MS, HOUR_MS, Limits
from sessiond.service.retention.cleanup import Cleanup
from sessiond.service.retention.schedule import FIRST_SECONDS, CleanupSchedule
from sessiond.service.status import CleanupReport, CleanupStatus
from sessiond.service.writing import Request
from sessiond.store.janitor import JanitorStore
from sessiond.store.leases import LeaseStore
from sessiond.store.presence import About, PresenceStore
from sessiond.store.use import UseStore
from tests.service.cleaning import MarkingArchiver, cleanup_on
from tests.service.contested import leave_open_conflict
from tests.store.support import Services, StartServices, keys_of, until

MONTH = Limits(max_sessions=50, max_age_days=30)
DELETING = Limits(max_sessions=50, max_age_days=30, delete_archived_days=60)


async def create(core: Services, *names: str, **more: Any) -> None:
    for name in names:
        await core.sessions.create(NewSession(session_id=name, **more))
        await core.messages.append(name, [NewMessage(role="user", content="x")])


def outcomes(report: CleanupReport) -> dict[str, str]:
    return {found.session_id: found.outcome for found in report.found}


async def status_of(core: Services, name: str) -> str:
    value: bytes = await core.redis.hget(core.keys.metadata(name), "status")
    return value.decode()


@pytest.fixture
def archiver(core: Services) -> MarkingArchiver:
    return MarkingArchiver(core)


async def test_from_inactive_to_archived_to_deleted(
    core: Services, archiver: MarkingArchiver
) -> None:
    cleanup = cleanup_on(core, DELETING, archiver)
    await create(core, "s")
    assert outcomes(await cleanup.run()) == {}
    core.clock.ms += 30 * DAY_MS
    await create(core, "young")
    assert outcomes(await cleanup.run()) == {"s": "archived"}
    assert await status_of(core, "s") == "archived"
    core.clock.ms += 59 * DAY_MS
    await create(core, "younger")
    assert outcomes(await cleanup.run()) == {"young": "archived"}
    core.clock.ms += DAY_MS
    assert outcomes(await cleanup.run()) == {"s": "deleted"}
    assert set(await keys_of(core, "s")) == {"metadata", "conversation", "applied"}
    assert await status_of(core, "s") == "deleted"
    deleted_by = await core.redis.hget(core.keys.metadata("s"), "deleted_by")
    assert deleted_by.startswith(b"janitor@here.")
    assert "s" not in await UseStore(core.redis, core.keys).sessions()


async def test_what_an_opencode_has_is_archived_and_stays_so(core: Services) -> None:
    """Deleted, it would vanish from the database of that opencode, too."""
    cleanup = cleanup_on(core, DELETING, core.archiving)
    await create(core, "s", context=Context(opencode={"id": "s"}))
    core.clock.ms += 30 * DAY_MS
    assert outcomes(await cleanup.run()) == {"s": "archived"}
    core.clock.ms += 60 * DAY_MS
    assert outcomes(await cleanup.run()) == {"s": "spared"}
    assert await status_of(core, "s") == "archived"
    await core.archiving.restore("s")
    assert not await core.redis.hexists(core.keys.metadata("s"), "of_opencode")


async def test_beyond_the_number_the_longest_unused_go_first(
    core: Services, archiver: MarkingArchiver
) -> None:
    for name in ("s1", "s2", "s3", "s4"):
        await create(core, name)
        core.clock.ms += 2 * HOUR_MS
    await cleanup_on(core, Limits(2, 30), archiver).run()
    assert archiver.names == ["s1", "s2"]


async def test_a_preview_says_what_would_be_and_changes_nothing(
    core: Services, archiver: MarkingArchiver
) -> None:
    await create(core, "s", "t")
    core.clock.ms += 31 * DAY_MS
    await LeaseStore(core.redis, core.keys, 60_000).ask("acquire", "t", "oc-1", "here")
    report = await cleanup_on(core, MONTH, archiver).preview()
    assert (report.dry_run, report.sessions) == (True, 2)
    assert outcomes(report) == {"s": "planned", "t": "spared"}
    assert archiver.names == []
    assert (await JanitorStore(core.redis, core.keys, 1).look()).finished_ms is None


async def test_what_is_in_use_in_any_way_is_spared(
    core: Services, archiver: MarkingArchiver
) -> None:
    names = ["read", "present", "turn", "waiting", "contested", "unused"]
    await create(core, *names)
    await leave_open_conflict(core, "contested")
    core.clock.ms += 31 * DAY_MS
    use = UseStore(core.redis, core.keys)
    use.note_read("read", core.clock.ms - HOUR_MS + 1)
    await use.settle()
    presence = PresenceStore(core.redis, core.keys, 60_000)
    await presence.announce("present", "oc-1", About("here", ""))
    await LeaseStore(core.redis, core.keys, 60_000).ask("acquire", "turn", "oc-1", "here")
    cleanup = cleanup_on(core, MONTH, archiver, has_waiting="waiting".__eq__)
    report = await cleanup.preview()
    assert outcomes(report) == {
        **dict.fromkeys(["present", "turn", "waiting", "contested"], "spared"),
        "unused": "planned",
    }, "what was read within the hour is not even over the limit"
    await cleanup.run()
    assert archiver.names == ["unused"]


async def test_what_was_read_is_not_old(core: Services, archiver: MarkingArchiver) -> None:
    await create(core, "s")
    core.clock.ms += 31 * DAY_MS
    use = UseStore(core.redis, core.keys)
    use.note_read("s", core.clock.ms - 2 * DAY_MS)
    await use.settle()
    assert outcomes(await cleanup_on(core, MONTH, archiver).run()) == {}


async def test_an_opencodes_session_is_archived_and_never_deleted(
    core: Services, archiver: MarkingArchiver
) -> None:
    await create(core, "s")
    await core.documents.change("s", "context", {"opencode": {"id": "s"}})
    cleanup = cleanup_on(core, DELETING, archiver)
    core.clock.ms += 31 * DAY_MS
    assert outcomes(await cleanup.run()) == {"s": "archived"}
    core.clock.ms += 600 * DAY_MS
    report = await cleanup.run()
    assert outcomes(report) == {"s": "spared"}
    assert "opencode" in report.found[0].reason


async def test_damage_is_told_and_keeps_nobody_else(
    core: Services, archiver: MarkingArchiver
) -> None:
    await create(core, "s", "bad", "odd", "none")
    core.clock.ms += 31 * DAY_MS
    await core.redis.delete(core.keys.metadata("bad"))
    await core.redis.zadd(core.keys.metadata("bad"), {"x": 1})
    await core.redis.hset(core.keys.metadata("odd"), "last_activity", "long ago")
    await core.redis.hset(core.keys.metadata("none"), "status", "asleep")
    await core.redis.zadd(core.keys.sessions, {"?": 1})
    report = await cleanup_on(core, MONTH, archiver).run()
    assert outcomes(report) == {"s": "archived"}
    assert set(report.damaged) == {"bad", "odd", "none"}


async def test_what_was_deleted_leaves_the_listings_and_what_may_be_about_to_come_does_not(
    core: Services,
) -> None:
    await create(core, "s", workspace="w")
    await core.sessions.delete("s")
    for index in (core.keys.sessions, core.keys.workspace("w")):
        await core.redis.zadd(index, {"s": 1, "coming": 1})  # as if its daemon had been killed
    with capture_logs() as logged:
        await cleanup_on(core, MONTH).run()
    assert logged[-1]["forgotten"] == 1
    for index in (core.keys.sessions, core.keys.workspace("w")):
        assert await core.redis.zrange(index, 0, -1) == [b"coming"]


class Interfering(MarkingArchiver):
    """Does something else before it archives its first session."""

    def __init__(self, core: Services, action: Any) -> None:
        super().__init__(core)
        self._action = action

    async def archive(self, session_id: str, request: Request) -> None:
        if not self.names:
            await self._action()
        await super().archive(session_id, request)


async def test_what_is_used_while_the_others_are_cleaned_up_is_left(core: Services) -> None:
    await create(core, "a", "b", "c")
    core.clock.ms += 31 * DAY_MS

    async def use_the_others() -> None:
        await core.messages.append("b", [NewMessage(role="user", content="y")])
        use = UseStore(core.redis, core.keys)
        use.note_read("c", core.clock.ms)
        await use.settle()

    report = await cleanup_on(core, MONTH, Interfering(core, use_the_others)).run()
    assert outcomes(report) == {"a": "archived", "b": "left", "c": "left"}


async def test_what_an_archiver_refuses_is_told_and_the_rest_goes_on(core: Services) -> None:
    await create(core, "a", "b")
    core.clock.ms += 31 * DAY_MS

    async def refuse() -> None:
        refusing.names.append("refused")
        raise InvalidInput("not this one")

    refusing = Interfering(core, refuse)
    with capture_logs() as logged:
        report = await cleanup_on(core, MONTH, refusing).run()
    assert outcomes(report) == {"a": "failed", "b": "archived"}
    events = [(entry["event"], entry.get("session_id")) for entry in logged]
    assert events == [
        ("retention.failed", "a"),
        ("retention.archived", "b"),
        ("retention.cleaned_up", None),
    ]
    assert (logged[-1]["archived"], logged[-1]["left"], logged[-1]["deleted"]) == (1, 1, 0)


async def test_when_redis_goes_away_the_rest_is_done_the_next_time(core: Services) -> None:
    await create(core, "a", "b")
    core.clock.ms += 31 * DAY_MS

    async def lose_redis() -> None:
        raise StoreUnavailable("away")

    cleanup = cleanup_on(core, MONTH, Interfering(core, lose_redis), life_ms=40)
    with pytest.raises(StoreUnavailable):
        await cleanup.run()
    assert (await cleanup.status()).finished_at is None


async def test_of_two_only_one_cleans_up(start: StartServices) -> None:
    here, there = await start(instance="here"), await start(instance="there")
    await create(here, "s")
    here.clock.ms += 31 * DAY_MS
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        await go_on.wait()

    first = asyncio.create_task(cleanup_on(here, MONTH, Interfering(here, wait)).run())
    await begun.wait()
    other = cleanup_on(there, MONTH, MarkingArchiver(there), instance="there")
    with pytest.raises(CleanupHeld, match="'here' cleans up"):
        await other.run()
    assert (await other.status()).running == "here"
    go_on.set()
    assert outcomes(await first) == {"s": "archived"}
    assert outcomes(await other.run()) == {}


async def test_a_janitor_whose_right_ended_does_nothing_more(core: Services) -> None:
    await create(core, "a", "b", "c")
    core.clock.ms += 31 * DAY_MS
    janitor = JanitorStore(core.redis, core.keys, 60_000)

    async def lose_the_right() -> None:
        """As if this process had been stopped: its loop does not run, and Redis's time passes."""
        await core.redis.hset(core.keys.janitor, "until_ms", "1")
        assert (await janitor.begin("other")).granted
        await asyncio.sleep(0.1)  # a renewal is refused

    archiver = Interfering(core, lose_the_right)
    cleanup = cleanup_on(core, MONTH, archiver, life_ms=60)
    with pytest.raises(CleanupHeld, match="took over"):
        await cleanup.run()
    assert archiver.names == ["a"], "its own step was under way; no other began"
    assert (await janitor.look()).instance == "other"


async def test_status_tells_when_it_was_done_and_when_it_is_due(
    core: Services, archiver: MarkingArchiver
) -> None:
    cleanup = cleanup_on(core, MONTH, archiver)
    before = await cleanup.status()
    assert before == CleanupStatus(running="", finished_at=None, next_at=None, last=None)
    assert await cleanup.due_in_ms() == 0
    await create(core, "s")
    core.clock.ms += 31 * DAY_MS
    await cleanup.run()
    status = await cleanup.status()
    assert status.last is not None
    assert (status.last.archived, status.last.deleted, status.last.left) == (1, 0, 0)
    assert status.finished_at is not None
    assert status.next_at is not None
    assert status.finished_at < status.next_at
    assert DAY_MS - 60_000 < await cleanup.due_in_ms() <= DAY_MS


async def test_who_comes_too_early_is_refused_and_who_wants_it_now_is_not(core: Services) -> None:
    cleanup = cleanup_on(core, MONTH)
    await cleanup.run(only_if_due=True)
    with pytest.raises(CleanupHeld, match="a while ago"):
        await cleanup.run(only_if_due=True)
    assert (await cleanup.run()).found == []


class Pauses:
    """Takes the place of sleeping: notes for how long, and goes on when the test says so."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._turns = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await self._turns.acquire()

    def end(self) -> None:
        self._turns.release()


async def pauses_of(cleanup: Cleanup, count: int) -> list[float]:
    """Return for how long a schedule pauses, without any chance in it."""
    pauses = Pauses()
    schedule = CleanupSchedule(cleanup, sleep=pauses, spread=lambda low, _: low)
    running = asyncio.create_task(schedule.run())
    for number in range(1, count + 1):
        await until(lambda wanted=number: len(pauses.seconds) == wanted)  # type: ignore[misc]
        pauses.end()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return pauses.seconds[:count]


async def test_the_first_time_is_some_minutes_after_the_start_then_it_is_looked_at_hourly(
    core: Services, archiver: MarkingArchiver
) -> None:
    await create(core, "s")
    core.clock.ms += 31 * DAY_MS
    seconds = await pauses_of(cleanup_on(core, MONTH, archiver), 3)
    assert seconds == [FIRST_SECONDS[0], 3600, 3600]
    assert archiver.names == ["s"]


async def test_a_restart_does_not_repeat_it(core: Services, archiver: MarkingArchiver) -> None:
    await cleanup_on(core, MONTH, archiver).run()
    await create(core, "s")
    core.clock.ms += 31 * DAY_MS
    await pauses_of(cleanup_on(core, MONTH, archiver), 2)
    assert archiver.names == []
    state = await core.redis.hget(core.keys.janitor, "finished_ms")
    await core.redis.hset(core.keys.janitor, "finished_ms", int(state) - DAY_MS)
    await pauses_of(cleanup_on(core, MONTH, archiver), 2)
    assert archiver.names == ["s"]


async def test_an_unexpected_failure_is_said_and_it_is_tried_again(core: Services) -> None:
    await create(core, "s")
    core.clock.ms += 31 * DAY_MS

    async def fail() -> None:
        raise RuntimeError("a bug")

    with capture_logs() as logged:
        seconds = await pauses_of(cleanup_on(core, MONTH, Interfering(core, fail)), 2)
    assert seconds == [FIRST_SECONDS[0], 300]
    assert "retention.broken" in [entry["event"] for entry in logged]


async def test_while_another_cleans_up_it_looks_again_soon(core: Services) -> None:
    assert (await JanitorStore(core.redis, core.keys, 60_000).begin("other")).granted
    seconds = await pauses_of(cleanup_on(core, MONTH), 2)
    assert seconds == [FIRST_SECONDS[0], 300]

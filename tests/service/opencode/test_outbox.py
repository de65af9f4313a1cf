"""What opencode logs is in the session's log: in order, once, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sessiond.errors import DatabaseUnreadable, NotFound, SessionDeleted, StoreUnavailable
from sessiond.opencode.database import STRETCH
from sessiond.opencode.mapping import FIELD
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.store import committer
from sessiond.store.draft import Draft
from tests.opencode.simulated import NOW
from tests.service.opencode.support import SESSION, Site, local_texts, logged_state, texts
from tests.store.support import Services, roll_back, take_copy

pytestmark = pytest.mark.parametrize("kind", ["fakeredis", "redis"], indirect=True)


@pytest.fixture
def site(core: Services) -> Iterator[Site]:
    site = Site(core)
    yield site
    site.close()


@pytest.fixture
def there(core: Services) -> Iterator[Site]:
    """Another machine that shares the same sessions."""
    site = Site(core, "oc-there", "/there")
    yield site
    site.close()


def converse(site: Site, first: int = 0, count: int = 3) -> None:
    """Messages with a part each, whose text is then written once more."""
    for number in range(first, first + count):
        site.opencode.message(SESSION, f"m{number}", text=f"message {number}")
        for text in ("", f"part {number}"):
            site.opencode.part(SESSION, f"m{number}", f"p{number}", text)


async def operations(core: Services, session_id: str = SESSION) -> list[tuple[str, str]]:
    return [(entry.op, entry.id) for entry in await core.entries(session_id)]


async def agreed(site: Site) -> bool:
    return local_texts(site) == await texts(site.core)


class Broken:
    """A store whose commits fail, from a certain one on, before or after they are done."""

    def __init__(self, core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
        self._commit = core.store.commit
        self.left = 10**6
        self.is_done = False
        self.error: BaseException = StoreUnavailable("cut")
        monkeypatch.setattr(core.store, "commit", self.commit)

    async def commit(self, session_id: str, group: list[Draft], now_ms: int) -> Any:
        self.left -= 1
        if self.left >= 0 or self.is_done:
            done = await self._commit(session_id, group, now_ms)
        if self.left < 0:
            raise self.error
        return done

    def mend(self) -> None:
        self.left = 10**6


@pytest.fixture
def broken(core: Services, monkeypatch: pytest.MonkeyPatch) -> Broken:
    return Broken(core, monkeypatch)


async def test_events_arrive_in_their_order(core: Services, site: Site) -> None:
    site.opencode.create(SESSION, title="A title")
    await site.outbox.flush(SESSION)
    converse(site, count=2)
    site.opencode.remove_part(SESSION, "m0", "p0")
    site.opencode.remove_message(SESSION, "m1")
    site.opencode.update(SESSION, title="Another")
    await site.outbox.flush(SESSION)
    assert await operations(core) == [
        ("session.create", SESSION),
        *(("message.append", "m0"), ("part.put", "m0/p0"), ("part.put", "m0/p0")),
        *(("message.append", "m1"), ("part.put", "m1/p1"), ("part.put", "m1/p1")),
        *(("part.remove", "m0/p0"), ("message.remove", "m1")),
        *(("document.change", "context"), ("document.change", "metadata")),
    ]
    assert await texts(core) == {"m0": "message 0"}
    assert {entry.origin.partition("@")[0] for entry in await core.entries(SESSION)} == {"oc-here"}


async def test_the_session_is_readable_for_every_program(core: Services, site: Site) -> None:
    site.opencode.create(SESSION, title="A title", version="1.18.33")
    converse(site, count=1)
    await site.outbox.flush(SESSION)
    site.opencode.update(SESSION, title="Another")
    await site.outbox.flush(SESSION)
    snapshot = await core.store.snapshot(SESSION)
    assert snapshot.metadata["title"] == "Another"
    assert snapshot.metadata["user_agent"] == "opencode 1.18.33"
    assert b'"${WORKTREE}"' in snapshot.context[FIELD]
    assert b"A title" not in snapshot.context[FIELD]
    page = await core.messages.page(SESSION, 0, 10)
    assert b'"content":"part 0"' in page


async def test_a_flush_up_to_an_event_stops_there(core: Services, site: Site) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    first = site.opencode.message(SESSION, "m1")
    site.opencode.message(SESSION, "m2")
    site.opencode.message(SESSION, "m3")
    await site.outbox.flush(SESSION, first)
    assert list(await texts(core)) == ["m1"]
    await site.outbox.flush(SESSION, 2)
    assert list(await texts(core)) == ["m1", "m2"]
    await site.outbox.flush(SESSION, "evt_that_nobody_knows")
    assert list(await texts(core)) == ["m1", "m2", "m3"]


async def test_a_log_of_several_stretches_is_written_whole(core: Services, site: Site) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    converse(site, count=STRETCH)
    await site.outbox.flush(SESSION)
    assert await agreed(site)
    assert len(await operations(core)) == 1 + 3 * STRETCH


# Once


@pytest.mark.parametrize("process", ["the same", "a new one"])
async def test_what_was_written_is_not_written_again(
    core: Services, site: Site, process: str
) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    converse(site)
    await site.outbox.flush(SESSION)
    before = await operations(core)
    if process == "a new one":
        site.restart()
    await site.outbox.flush(SESSION)
    assert await operations(core) == before
    converse(site, first=3)
    await site.outbox.flush(SESSION)
    assert len(await operations(core)) == len(before) + 9
    assert await agreed(site)


async def test_flushes_at_once_write_once(core: Services, site: Site) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    converse(site)
    await asyncio.gather(*(site.outbox.flush(SESSION) for _ in range(5)))
    assert len(await operations(core)) == 1 + 9


async def test_two_processes_at_once_lose_nothing_and_agree(core: Services, site: Site) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    other = site.new_outbox()
    await other.flush(SESSION)
    for first in range(0, 12, 3):
        converse(site, first=first)
        await asyncio.gather(
            site.outbox.flush(SESSION), other.flush(SESSION), return_exceptions=True
        )
        await flush_surely(site)
        assert await agreed(site)


async def flush_surely(site: Site) -> None:
    """Flush as the sidecar does: again, when it could not be done."""
    for _ in range(5):
        try:
            await site.outbox.flush(SESSION)
        except Exception as error:
            if not getattr(error, "temporary", False):
                raise
        else:
            return
    raise AssertionError("it never succeeds")


async def test_a_new_process_goes_on_where_the_lost_one_stopped(
    core: Services, site: Site, broken: Broken
) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    for done in (False, True):
        for commits in range(3):
            converse(site, first=len(await texts(core)) * 10, count=50)
            broken.left, broken.is_done = commits, done
            with pytest.raises(StoreUnavailable):
                await site.outbox.flush(SESSION)
            broken.mend()
            site.restart()
            await site.outbox.flush(SESSION)
            assert await agreed(site)


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("commits", range(4))
async def test_a_write_that_failed_is_made_up_for_by_the_next(
    site: Site, broken: Broken, commits: int, *, is_done: bool
) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    converse(site, count=60)
    site.opencode.update(SESSION, title="Another")
    broken.left, broken.is_done = commits, is_done
    with pytest.raises(StoreUnavailable):
        await site.outbox.flush(SESSION)
    broken.mend()
    await site.outbox.flush(SESSION)
    assert await agreed(site)
    assert (await site.core.store.snapshot(SESSION)).metadata["title"] == "Another"


async def test_a_push_that_was_broken_off_loses_nothing(site: Site) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    converse(site, count=60)
    for turns in range(1, 30, 3):
        flush = asyncio.create_task(site.outbox.flush(SESSION))
        for _ in range(turns):
            await asyncio.sleep(0)
        flush.cancel()
        await asyncio.wait([flush])
    await flush_surely(site)
    assert await agreed(site)


async def test_an_unreadable_database_loses_nothing(site: Site) -> None:
    site.opencode.create(SESSION)
    fails = 3

    async def read(question: Callable[..., Any]) -> Any:
        nonlocal fails
        fails -= 1
        if fails > 0:
            raise DatabaseUnreadable("locked")
        return question(site.opencode.database)

    outbox = site.new_outbox(read)
    converse(site)
    for _ in range(2):
        with pytest.raises(DatabaseUnreadable):
            await outbox.flush(SESSION)
    await outbox.flush(SESSION)
    assert await agreed(site)


# Redis forgets


async def test_what_redis_forgot_is_written_again(core: Services, site: Site) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    converse(site)
    await site.outbox.flush(SESSION)
    copy = await take_copy(core, SESSION)
    converse(site, first=3)
    await site.outbox.flush(SESSION)
    await roll_back(core, SESSION, copy)
    site.outbox.forget(SESSION)
    await site.outbox.flush(SESSION)
    assert await agreed(site)


async def test_what_redis_forgot_unheard_leaves_no_hole(core: Services, site: Site) -> None:
    """Something happens here before the sidecar hears that Redis has another history."""
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    converse(site)
    await site.outbox.flush(SESSION)
    copy = await take_copy(core, SESSION)
    converse(site, first=3)
    await site.outbox.flush(SESSION)
    await roll_back(core, SESSION, copy)
    converse(site, first=6)
    await flush_surely(site)
    assert await agreed(site)


async def test_a_session_that_redis_lost_is_brought_in_again(core: Services, site: Site) -> None:
    site.opencode.create(SESSION)
    converse(site)
    await site.outbox.flush(SESSION)
    await roll_back(core, SESSION, {})
    site.outbox.forget(SESSION)
    await site.outbox.flush(SESSION)
    assert await agreed(site)


async def test_without_the_mark_all_is_written_again_and_the_same(
    core: Services, site: Site
) -> None:
    site.opencode.create(SESSION)
    converse(site)
    site.opencode.remove_message(SESSION, "m1")
    await site.outbox.flush(SESSION)
    await core.redis.delete(core.keys.applied(SESSION))
    site.restart()
    await site.outbox.flush(SESSION)
    assert await agreed(site)


async def test_what_happens_in_an_older_copy_of_the_database_is_sent_too(
    core: Services, site: Site
) -> None:
    site.opencode.create(SESSION)
    converse(site, count=5)
    await site.outbox.flush(SESSION)
    site.opencode.close()
    site.opencode = Site(core).opencode  # restored from before the conversation
    site.opencode.create(SESSION)
    site.restart()
    await site.outbox.flush(SESSION)
    site.opencode.message(SESSION, "later", text="said afterwards")
    await site.outbox.flush(SESSION)
    assert (await texts(core))["later"] == "said afterwards"


# Several writers


async def test_a_message_that_another_machine_wrote_first_is_edited(
    core: Services, site: Site, there: Site
) -> None:
    for one in (site, there):
        one.opencode.create(SESSION, title=one.replica)
    await site.outbox.flush(SESSION)
    await there.outbox.flush(SESSION)
    site.opencode.message(SESSION, "m1", text="first")
    there.opencode.message(SESSION, "m1", text="second")
    there.opencode.part(SESSION, "m1", "p1", "of it")
    await site.outbox.flush(SESSION)
    await there.outbox.flush(SESSION)
    assert ("message.edit", "m1") in await operations(core)
    assert await texts(core) == {"m1": "second", "m1/p1": "of it"}


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_record_that_was_removed_stays_removed_and_holds_nothing_up(
    core: Services, site: Site, there: Site, *, is_new: bool
) -> None:
    for one in (site, there):
        one.opencode.create(SESSION, title=one.replica)
        for name in ("m0", "m1"):
            one.opencode.message(SESSION, name, text=name)
            one.opencode.part(SESSION, name, f"{name}p", "x")
        await one.outbox.flush(SESSION)
    site.opencode.remove_message(SESSION, "m0")
    site.opencode.remove_part(SESSION, "m1", "m1p")
    await site.outbox.flush(SESSION)
    if is_new:
        there.restart()
    there.opencode.message(SESSION, "m0", text="late")
    there.opencode.part(SESSION, "m0", "m0p", "late")
    there.opencode.part(SESSION, "m1", "m1p", "late")
    there.opencode.remove_part(SESSION, "m1", "m1p")
    there.opencode.message(SESSION, "m2", text="goes on")
    await there.outbox.flush(SESSION)
    assert await texts(core) == {"m1": "m1", "m2": "goes on"}
    await there.outbox.flush(SESSION)
    assert await texts(core) == {"m1": "m1", "m2": "goes on"}


async def test_what_came_from_others_is_not_sent_back(core: Services, site: Site) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    info = {"id": "m1", "role": "user", "time": {"created": NOW}}
    given = OpencodeEvent(id="evt_sd1x5", type="message.updated", properties={"info": info})
    site.opencode.replay(SESSION, [given])
    await site.outbox.flush(SESSION)
    assert await texts(core) == {}


# Deletion


async def test_a_deletion_is_for_everybody_and_nothing_comes_in_later(
    core: Services, site: Site, there: Site
) -> None:
    site.opencode.create(SESSION)
    converse(site)
    await site.outbox.flush(SESSION)
    there.opencode.create(SESSION)
    await there.outbox.flush(SESSION)
    await site.outbox.deleted(SESSION)
    await site.outbox.deleted(SESSION)
    converse(there, count=70)
    await there.outbox.flush(SESSION)
    await there.outbox.flush(SESSION)
    await there.outbox.deleted(SESSION)
    there.restart()
    await there.outbox.flush(SESSION)
    with pytest.raises(SessionDeleted):
        await core.store.end(SESSION)
    assert await operations(core) == [("session.delete", SESSION)]


async def test_what_opencode_logs_after_a_deletion_is_kept_as_it_was_last(
    core: Services, site: Site
) -> None:
    site.opencode.create(SESSION)
    converse(site, count=1)
    await site.outbox.flush(SESSION)
    await core.sessions.delete(SESSION)
    converse(site, first=1, count=2)
    site.opencode.part(SESSION, "m2", "p2", "the last of it")
    await site.outbox.flush(SESSION)
    kept = {each.id: each for each in await core.conflicts.of_session(SESSION)}
    assert kept.keys() == {"m1", "m1/p1", "m2", "m2/p2"}
    assert kept["m2"].ours.value["metadata"][FIELD]["text"] == "message 2"
    assert kept["m2/p2"].ours.value["text"] == "the last of it"
    assert {each.strategy for each in kept.values()} == {"deletion"}
    await site.outbox.flush(SESSION)
    assert len(await core.conflicts.of_session(SESSION)) == 4, "kept once"


async def test_a_deletion_here_keeps_what_others_had_said_unseen(
    core: Services, site: Site, there: Site
) -> None:
    site.opencode.create(SESSION)
    converse(site, count=1)
    await site.outbox.flush(SESSION)
    seen = (await core.store.end(SESSION)).position
    there.opencode.create(SESSION)
    await there.outbox.flush(SESSION)
    there.opencode.message(SESSION, "n1", text="unseen")
    await there.outbox.flush(SESSION)
    await site.outbox.deleted(SESSION, seen)
    kept = {(each.document, each.id): each for each in await core.conflicts.of_session(SESSION)}
    assert kept.keys() == {("message", "n1"), ("context", "")}
    assert kept["message", "n1"].outcome == "ours"
    assert kept["message", "n1"].theirs.origin.startswith("oc-there@")


async def test_two_who_rename_a_session_at_once_keep_the_title_that_is_replaced(
    core: Services, site: Site, there: Site, broken: Broken
) -> None:
    for each in (site, there):
        each.opencode.create(SESSION, title="first")
        await each.outbox.flush(SESSION)
    there.opencode.update(SESSION, title="theirs")
    await there.outbox.flush(SESSION)
    site.opencode.update(SESSION, title="ours")
    broken.left = 1  # the conflict is written, and the title is not
    with pytest.raises(StoreUnavailable):
        await site.outbox.flush(SESSION)
    broken.mend()
    await site.outbox.flush(SESSION)
    (conflict,) = await core.conflicts.of_session(SESSION)
    assert (conflict.document, conflict.path, conflict.outcome) == ("metadata", ["title"], "ours")
    assert (conflict.base, conflict.ours.value, conflict.theirs.value) == (
        *("first", "ours", "theirs"),
    )
    assert conflict.ours.origin.startswith("oc-here@")
    assert conflict.theirs.origin.startswith("oc-there@")
    assert (await core.store.snapshot(SESSION)).metadata["title"] == "ours"


async def test_two_who_edit_a_part_at_once_keep_the_one_that_is_replaced(
    core: Services, site: Site, there: Site
) -> None:
    for each in (site, there):
        each.opencode.create(SESSION)
    for each in (site, there):
        each.opencode.message(SESSION, "m1")
        each.opencode.part(SESSION, "m1", "p1", "first")
        await each.outbox.flush(SESSION)
    there.opencode.part(SESSION, "m1", "p1", "theirs")
    await there.outbox.flush(SESSION)
    site.opencode.part(SESSION, "m1", "p1", "ours")
    await site.outbox.flush(SESSION)
    (conflict,) = await core.conflicts.of_session(SESSION)
    assert (conflict.document, conflict.id, conflict.path) == ("part", "m1/p1", [])
    sides = (conflict.base, conflict.ours.value, conflict.theirs.value)
    assert [side["text"] for side in sides] == ["first", "ours", "theirs"]
    await site.catch_up()
    site.opencode.part(SESSION, "m1", "p1", "ours again")
    await site.outbox.flush(SESSION)
    assert len(await core.conflicts.of_session(SESSION)) == 1, "what is known is replaced"


async def test_who_knows_a_title_may_change_it(core: Services, site: Site) -> None:
    site.opencode.create(SESSION, title="first")
    await site.outbox.flush(SESSION)
    for title in ("second", "second", "third"):
        site.opencode.update(SESSION, title=title)
        await site.outbox.flush(SESSION)
    assert await core.conflicts.of_session(SESSION) == []


async def test_deleting_what_was_never_shared_is_nothing(core: Services, site: Site) -> None:
    await site.outbox.deleted("ses_none")
    with pytest.raises(NotFound):
        await core.store.end("ses_none")


async def test_a_deletion_that_could_not_be_told_is_told_the_next_time(
    core: Services, site: Site, broken: Broken
) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    broken.left = 0
    with pytest.raises(StoreUnavailable):
        await site.outbox.deleted(SESSION)
    broken.mend()
    await site.outbox.deleted(SESSION)
    with pytest.raises(SessionDeleted):
        await core.store.end(SESSION)


# Sessions from before opencode had a log


@pytest.mark.parametrize("count", [0, 1, 100])
async def test_a_session_without_a_log_is_brought_in_from_its_tables(
    core: Services, site: Site, count: int
) -> None:
    site.opencode.create(SESSION, title="old")
    converse(site, count=count)
    site.opencode.forget_events(SESSION)
    await site.outbox.flush(SESSION)
    assert await agreed(site)
    site.opencode.message(SESSION, "new", text="goes on")
    await site.outbox.flush(SESSION)
    assert (await texts(core))["new"] == "goes on"
    assert await agreed(site)


@pytest.mark.parametrize("commits", range(4))
async def test_a_crash_while_an_old_session_is_brought_in_loses_nothing(
    site: Site, broken: Broken, commits: int
) -> None:
    site.opencode.create(SESSION, title="old")
    converse(site, count=100)
    site.opencode.forget_events(SESSION)
    broken.left = commits
    with pytest.raises(StoreUnavailable):
        await site.outbox.flush(SESSION)
    broken.mend()
    site.restart()
    await site.outbox.flush(SESSION)
    assert await agreed(site)


async def test_an_old_session_that_another_machine_has_too_keeps_the_records_of_both(
    core: Services, site: Site, there: Site
) -> None:
    for one, name in ((site, "m1"), (there, "m2")):
        one.opencode.create(SESSION, title=one.replica)
        one.opencode.message(SESSION, name, text=name)
        one.opencode.forget_events(SESSION)
        await one.outbox.flush(SESSION)
    assert sorted(await texts(core)) == ["m1", "m2"]


async def test_a_session_that_is_gone_by_the_time_it_is_read_is_nothing(
    core: Services, site: Site
) -> None:
    await site.outbox.flush("ses_gone")
    with pytest.raises(NotFound):
        await core.store.end("ses_gone")


# Private sessions


async def test_nothing_of_a_private_session_is_sent(core: Services, site: Site) -> None:
    site.private.add(SESSION)
    site.opencode.create(SESSION)
    converse(site)
    await site.outbox.flush(SESSION)
    with pytest.raises(NotFound):
        await core.store.end(SESSION)


async def test_a_session_that_became_private_sends_nothing_any_more(
    core: Services, site: Site
) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    site.private.add(SESSION)
    converse(site)
    await site.outbox.flush(SESSION)
    state = site.opencode.database.state(SESSION)
    assert state is not None
    await site.outbox.put_records(SESSION, state.messages, state.parts)
    assert await texts(core) == {}
    site.private.clear()
    await site.outbox.flush(SESSION)
    assert await agreed(site)


# What is not as expected


@pytest.mark.parametrize(
    "time", [None, {}, {"created": None}, {"created": "soon"}, {"created": 10**18}, [], 5]
)
async def test_an_odd_time_of_a_message_stops_nothing(
    core: Services, site: Site, time: Any
) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    site.opencode.message(SESSION, "m1", text="odd")
    replaced = '{"id":"m1","role":"user","text":"odd","time":' + _json(time) + "}"
    site.opencode.connection.execute(
        "UPDATE event SET data = ? WHERE type = 'message.updated.1'", (f'{{"info":{replaced}}}',)
    )
    site.opencode.message(SESSION, "m2", text="goes on")
    await site.outbox.flush(SESSION)
    assert await texts(core) == {"m1": "odd", "m2": "goes on"}


@pytest.mark.parametrize(
    "data",
    [
        *("{}", "[]", "5", '{"info": null, "part": null}', '{"info": [], "part": []}'),
        *('{"info": {"id": 5}, "part": {"id": 5}}', '{"time": 1e300, "info": {"id": "a"}}'),
        '{"time": 1e300, "part": {"id": "a", "messageID": "m0"}}',
        '{"time": "soon", "part": {"id": "a", "messageID": "m0"}}',
    ],
)
@pytest.mark.parametrize(
    "kind_of_event", ["session.updated.1", "message.updated.1", "message.part.updated.1"]
)
async def test_an_odd_event_is_passed_over(
    core: Services, site: Site, kind_of_event: str, data: str
) -> None:
    site.opencode.create(SESSION)
    site.opencode.message(SESSION, "m0", text="before")
    await site.outbox.flush(SESSION)
    site.opencode.update(SESSION, title="odd")
    site.opencode.connection.execute(
        "UPDATE event SET data = ?, type = ? WHERE seq = 2", (data, kind_of_event)
    )
    site.opencode.message(SESSION, "m2", text="goes on")
    await site.outbox.flush(SESSION)
    assert (await texts(core))["m2"] == "goes on"


async def test_events_of_an_unknown_kind_are_passed_over(core: Services, site: Site) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    site.opencode.happen(SESSION, "session.compacted", {})
    site.opencode.message(SESSION, "m1", text="goes on")
    await site.outbox.flush(SESSION)
    assert await texts(core) == {"m1": "goes on"}


async def test_records_larger_than_what_may_wait_are_written_in_several_calls(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "_WAITING_BYTES", 3 * 1024 * 1024)
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    site.opencode.message(SESSION, "m0", text="large")
    for number in range(40):
        site.opencode.part(SESSION, "m0", f"p{number}", 200_000 * "x")
    await site.outbox.flush(SESSION)
    assert await agreed(site)


async def test_an_edit_in_the_same_stretch_as_the_message_is_written(
    core: Services, site: Site
) -> None:
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    for text in ("one", "two", "three"):
        site.opencode.message(SESSION, "m1", text=text)
        site.opencode.part(SESSION, "m1", "p1", text)
    site.opencode.remove_message(SESSION, "m1")
    site.opencode.message(SESSION, "m2", text="after")
    await site.outbox.flush(SESSION)
    assert await texts(core) == {"m2": "after"}
    logged, _ = await logged_state(core)
    assert list(logged.removed) == ["m1"]


def _json(value: Any) -> str:

    return json.dumps(value)

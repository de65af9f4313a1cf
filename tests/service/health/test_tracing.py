"""The trace of debug mode: each stage of each operation, from all daemons, and nothing when off."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from sessiond.errors import AlreadyExists, JournalUnavailable, NotFound, StoreUnavailable
from sessiond.model import NewSession
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.service.durable.tries import Refused
from sessiond.service.health.tracing import Hooks, SessionTrace, Tracer
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    ChangePreferences,
    Create,
    PutPart,
    Remove,
    lane_of_user,
)
from sessiond.store.traces import TraceStore
from tests.service.support import create, said, text
from tests.store.support import Services, until, until_awaited


@dataclass
class Traced:
    """One daemon's tracer on its services; its clock counts calls."""

    hooks: Hooks
    tracer: Tracer

    def stages(self, trace: SessionTrace) -> list[tuple[str, str, str]]:
        return [(event.daemon, event.stage, event.id) for event in trace.events]


def traced(core: Services, daemon: str, began_ms: float = 0.0) -> Traced:
    hooks = Hooks([], [], core.store.on_send, core.store.on_commit, core.feeds.on_seen, [])
    now = iter(range(100_000))
    tracer = Tracer(
        TraceStore(core.redis, core.keys), daemon, hooks, now_ms=lambda: began_ms + next(now)
    )
    return Traced(hooks, tracer)


async def written(core: Services) -> None:
    """A message and a part of it."""
    await core.messages.append("ses_1", [said("secret words", "m1")])
    await core.records.put_part("ses_1", "m1", "p1", text("secret part"))


async def test_a_write_is_traced_from_sent_to_committed_with_its_position(core: Services) -> None:
    await create(core)
    here = traced(core, "laptop")
    here.tracer.switch(on=True)
    await written(core)
    trace = await here.tracer.read("ses_1")
    assert (trace.tracing, trace.complete) == (True, True)
    assert here.stages(trace) == [
        ("laptop", "sent", "m1"),
        ("laptop", "committed", "m1"),
        ("laptop", "sent", "m1/p1"),
        ("laptop", "committed", "m1/p1"),
    ]
    entries = await core.entries("ses_1")
    assert trace.events[1].position == str(entries[1].position)


async def test_a_trace_never_holds_a_body(core: Services) -> None:
    await create(core)
    here = traced(core, "laptop")
    here.tracer.switch(on=True)
    await written(core)
    await here.tracer.read("ses_1")
    kept = await core.redis.xrange(core.keys.trace("ses_1"))
    assert kept
    assert b"secret" not in b"".join(repr(kept).encode().splitlines())


async def test_another_daemon_tells_what_it_saw_and_to_how_many_it_passed_it(
    core: Services, start: Any
) -> None:
    other = await start(instance="desktop")
    await create(core)
    here, there = traced(core, "laptop"), traced(other, "desktop", began_ms=1_000.0)
    for each in (here, there):
        each.tracer.switch(on=True)
    async with other.feeds.session("ses_1", (await core.entries("ses_1"))[0].position) as events:
        first = asyncio.ensure_future(anext(events))
        await until(lambda: other.feeds.subscribers == 1)
        await core.messages.append("ses_1", [said("hello", "m1")])
        await first
    await there.tracer.read("ses_1")
    trace = await here.tracer.read("ses_1", "m1")
    assert ("desktop", "seen", "m1") in here.stages(trace)
    assert here.stages(trace)[:2] == [("laptop", "sent", "m1"), ("laptop", "committed", "m1")]
    (seen,) = [event for event in trace.events if event.stage == "seen"]
    assert seen.detail == "passed to 1 reader"


async def test_what_is_taken_in_is_received_and_then_journaled_or_not(core: Services) -> None:
    here = traced(core, "laptop")
    here.tracer.switch(on=True)
    (hear,) = here.hooks.on_write
    loop = asyncio.get_running_loop()
    durable, failed = loop.create_future(), loop.create_future()
    hear(Append(session_id="ses_1", messages=[said("x", "m1"), said("y", "m2")]), durable)
    hear(PutPart(session_id="ses_1", message_id="m1", part_id="p1", part=text("z")), failed)
    hear(ChangeDocument(session_id="ses_1", name="context", patch={}), loop.create_future())
    hear(Create(session_id="ses_1", new=NewSession()), loop.create_future())
    durable.set_result(None)
    failed.set_exception(JournalUnavailable("full"))
    await asyncio.sleep(0)
    assert here.stages(await here.tracer.read("ses_1")) == [
        *(("laptop", "received", name) for name in ("m1", "m2", "m1/p1", "context", "ses_1")),
        *(("laptop", "journaled", name) for name in ("m1", "m2")),
        ("laptop", "not journaled", "m1/p1"),
    ]


async def test_what_is_refused_says_why_and_whether_it_is_kept(core: Services) -> None:
    here = traced(core, "laptop")
    here.tracer.switch(on=True)
    (hear,) = here.hooks.on_refused
    group = Append(session_id="ses_1", messages=[said("secret x", "m1"), said("y", "m2")])
    hear(Refused(group, AlreadyExists("message 'm1' is taken"), is_kept=False))
    removal = Remove(session_id="ses_1", message_id="m3")
    hear(Refused(removal, NotFound("there is no m3"), is_kept=True))
    theirs = ChangePreferences(session_id=lane_of_user("ann"), user_id="ann", patch={})
    hear(Refused(theirs, AlreadyExists("not of a session"), is_kept=False))
    events = (await here.tracer.read("ses_1")).events
    assert [(event.stage, event.op, event.id, event.detail) for event in events] == [
        ("refused", "message.append", "m1", "already-exists: message 'm1' is taken"),
        ("refused", "message.append", "m2", "already-exists: message 'm1' is taken"),
        ("refused", "message.remove", "m3", "not-found: there is no m3; kept as a conflict"),
    ]


@pytest.mark.parametrize(
    ("properties", "record_id"),
    [
        ({"info": {"id": "msg_1"}}, "msg_1"),
        ({"part": {"id": "prt_1", "messageID": "msg_1"}}, "msg_1/prt_1"),
        ({"messageID": "msg_1"}, "msg_1"),
        ({"messageID": "msg_1", "partID": "prt_1"}, "msg_1/prt_1"),
        ({}, "ses_1"),
    ],
)
async def test_what_an_opencode_was_given_is_told_with_what_it_made_of_it(
    core: Services, properties: dict[str, Any], record_id: str
) -> None:
    here = traced(core, "laptop")
    here.tracer.switch(on=True)
    (hear,) = here.hooks.on_applied
    hear("ses_1", [OpencodeEvent(type="message.updated", properties=properties)], "held")
    (event,) = (await here.tracer.read("ses_1")).events
    assert (event.stage, event.id, event.detail) == ("applied", record_id, "held")


async def test_switched_off_nobody_listens_and_nothing_is_kept(core: Services) -> None:
    await create(core)
    here = traced(core, "laptop")
    lists: list[list[Any]] = [
        core.store.on_send,
        core.store.on_commit,
        core.feeds.on_seen,
        here.hooks.on_write,
        here.hooks.on_refused,
    ]
    before = [list(each) for each in lists]
    here.tracer.switch(on=True)
    here.tracer.switch(on=True)
    assert all(len(each) == len(was) + 1 for each, was in zip(lists, before, strict=True))
    here.tracer.switch(on=False)
    assert [list(each) for each in lists] == before
    await written(core)
    trace = await here.tracer.read("ses_1")
    assert (trace.tracing, trace.events) == (False, [])
    assert not await core.redis.exists(core.keys.trace("ses_1"))


async def test_a_trace_is_short_and_passes_away(core: Services) -> None:
    await create(core)
    here = traced(core, "laptop")
    here.tracer.switch(on=True)
    await written(core)
    assert len((await here.tracer.read("ses_1", limit=2)).events) == 2
    assert 0 < await core.redis.pttl(core.keys.trace("ses_1")) <= 24 * 3600 * 1000


async def test_while_redis_is_away_a_daemon_tells_its_own_and_brings_it_later(
    core: Services,
) -> None:
    await create(core)
    here = traced(core, "laptop")
    here.tracer.switch(on=True)
    await written(core)
    with pytest.MonkeyPatch.context() as patch:

        async def away(*_: Any) -> Any:
            raise StoreUnavailable("away")

        patch.setattr(TraceStore, "add", away)
        patch.setattr(TraceStore, "read", away)
        trace = await here.tracer.read("ses_1")
        assert not trace.complete
        assert len(trace.events) == 4
    running = asyncio.create_task(here.tracer.run())
    other = traced(core, "desktop")

    async def is_told() -> bool:
        return len((await other.tracer.read("ses_1")).events) == 4

    await until_awaited(is_told)
    running.cancel()


async def test_another_session_is_not_part_of_a_trace(core: Services) -> None:
    await create(core)
    await create(core, "ses_2")
    here = traced(core, "laptop")
    here.tracer.switch(on=True)
    await written(core)
    assert (await here.tracer.read("ses_2")).events == []
    assert here.stages(await here.tracer.read("ses_1", "m")) == []

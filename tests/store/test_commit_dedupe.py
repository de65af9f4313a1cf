"""The same call twice is one write: how the script knows what it already applied.

Every test sends raw calls again, as a network does that loses replies and delays requests.
"""

from __future__ import annotations

import asyncio

import pytest

from sessiond.errors import AlreadyExists, SequenceReused, SessionDeleted, Superseded
from sessiond.store.committer import Committer
from sessiond.store.draft import Draft
from sessiond.store.outcome import Committed
from tests.store.support import (
    Line,
    Services,
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
)

WINDOW = 2048


@pytest.fixture
def line(core: Services) -> Line:
    return Line(core.redis.execute_command)


@pytest.fixture
async def writer(core: Services, line: Line) -> Committer:
    """A writer behind the line, in a session with message m1."""
    await core.commit("ses_1", creating("ses_1"))
    await core.commit("ses_1", appending("m1"))
    return committer_on(core, line)


async def again(
    core: Services, writer: Committer, sequence: int, *group: Draft
) -> Committed | BaseException:
    """The same writer sends a group under these sequence numbers, as a restored journal might."""
    twin = committer_on(core, Line(core.redis.execute_command), sequence=sequence - 1)
    assert twin.writer == writer.writer
    (outcome,) = await asyncio.gather(twin.commit("ses_1", list(group)), return_exceptions=True)
    return outcome


@pytest.mark.parametrize(
    "group",
    [
        [appending("m2")],
        [appending("m2"), appending("m3"), putting_part("m3/p1")],
        [editing("m1")],
        [editing("m1", key="k")],
        [removing("m1")],
        [changing("context", {"state": "{}"})],
        [deleting("ses_1")],
    ],
    ids=lambda group: ", ".join(draft.op for draft in group),
)
async def test_a_call_whose_reply_was_lost_is_written_once_and_found(
    core: Services, line: Line, writer: Committer, group: list[Draft]
) -> None:
    line.lose_replies = 1
    done = await writer.commit("ses_1", group)
    assert len(line.calls) == 2
    assert line.calls[0][2:] == line.calls[1][2:]
    assert done.duplicate
    entries = await core.entries("ses_1")
    assert [entry.position for entry in entries[-len(group) :]] == done.positions
    assert_contract(entries, first=entries[0].offset)
    assert done.positions[-1].offset == 2 + len(group)


async def test_a_creation_whose_reply_was_lost_is_found(core: Services, line: Line) -> None:
    line.lose_replies = 2
    done = await committer_on(core, line).commit("ses_9", [creating("ses_9", workspace="w")])
    assert done.duplicate
    assert done.workspace == "w"
    assert len(await core.entries("ses_9")) == 1


async def test_a_lost_request_is_written_when_it_is_sent_again(
    core: Services, line: Line, writer: Committer
) -> None:
    line.lose_requests = 3
    done = await writer.commit("ses_1", [appending("m2")])
    assert not done.duplicate
    assert len(line.calls) == 4
    assert [entry.id for entry in await core.entries("ses_1")] == ["ses_1", "m1", "m2"]


async def test_a_resent_call_is_found_behind_what_others_wrote_meanwhile(
    core: Services, line: Line, writer: Committer
) -> None:
    first = await writer.commit("ses_1", [appending("m2"), appending("m3")])
    for number in range(20):
        await core.commit("ses_1", appending(f"other{number}"))
    found = await again(core, writer, 1, appending("m2"), appending("m3"))
    assert isinstance(found, Committed)
    assert found.duplicate
    assert found.positions == first.positions


async def test_every_group_of_a_resent_call_gets_the_answer_it_had(
    core: Services, line: Line, writer: Committer
) -> None:
    line.lose_replies = 2
    groups = [
        [appending("m2")],
        [appending("m3"), appending("m4")],
        [appending("m1")],
        [editing("m3")],
    ]
    outcomes = await asyncio.gather(
        *(writer.commit("ses_1", group) for group in groups), return_exceptions=True
    )
    assert len(line.calls) == 3
    assert line.calls[0][2:] == line.calls[1][2:] == line.calls[2][2:]
    shown = [
        [p.offset for p in outcome.positions] if isinstance(outcome, Committed) else type(outcome)
        for outcome in outcomes
    ]
    assert shown == [[3], [4, 5], AlreadyExists, [6]]
    assert_contract(await core.entries("ses_1"))


async def test_a_sequence_used_for_other_content_is_refused_and_nothing_is_written(
    core: Services, writer: Committer
) -> None:
    await writer.commit("ses_1", [appending("m2", b'{"a":1}'), appending("m3")])
    before = await contents(core)
    for group in (
        [appending("m2", b'{"a":2}'), appending("m3")],
        [appending("m9", b'{"a":1}'), appending("m3")],
        [appending("m2", b'{"a":1}'), editing("m3", b"{}")],
        [changing("context", {"state": "{}"})],
    ):
        outcome = await again(core, writer, 1, *group)
        assert isinstance(outcome, SequenceReused), group
        assert "other.1:" in outcome.detail
    assert await contents(core) == before


async def test_a_call_that_arrives_after_a_later_one_is_superseded_and_writes_nothing(
    core: Services, line: Line, writer: Committer
) -> None:
    line.lose_requests = 1000
    late = committer_on(core, line, retry_seconds=0)
    with pytest.raises(Exception, match="does not answer"):
        await late.commit("ses_1", [appending("m2")])
    delayed = line.calls[-1]
    line.lose_requests = 0
    await late.commit("ses_1", [appending("m3")])
    before = await contents(core)

    reply = await core.redis.execute_command(*delayed)
    assert reply == [b"default", b"error", b"superseded", b"other.1:1"]
    assert await contents(core) == before
    assert isinstance(await again(core, writer, 1, appending("m2")), Superseded)


async def test_a_group_applied_in_part_only_is_never_completed(
    core: Services, writer: Committer
) -> None:
    await writer.commit("ses_1", [appending("m2")])
    await writer.commit("ses_1", [appending("m3")])
    before = await contents(core)
    assert not isinstance(await again(core, writer, 2, appending("m3"), appending("m4")), Committed)
    assert await contents(core) == before


async def test_a_late_call_to_a_session_deleted_meanwhile_says_so(
    core: Services, writer: Committer
) -> None:
    await writer.commit("ses_1", [appending("m2")])
    await core.commit("ses_1", deleting("ses_1"))
    assert isinstance(await again(core, writer, 1, appending("m2")), SessionDeleted)
    assert isinstance(await again(core, writer, 2, appending("m3")), SessionDeleted)


async def test_sequences_of_a_writer_may_have_gaps_between_its_calls(
    core: Services, writer: Committer
) -> None:
    assert isinstance(await again(core, writer, 7, appending("m2")), Committed)
    assert isinstance(await again(core, writer, 900, appending("m3")), Committed)
    found = await again(core, writer, 900, appending("m3"))
    assert isinstance(found, Committed)
    assert found.duplicate


async def test_writers_do_not_share_their_sequences(core: Services, writer: Committer) -> None:
    await writer.commit("ses_1", [appending("m2")])
    other = committer_on(core, Line(core.redis.execute_command), writer="other.2")
    done = await other.commit("ses_1", [appending("m3")])
    assert not done.duplicate


@pytest.mark.parametrize("remembered", ["writer{}.1", "key:{}"])
async def test_over_2048_remembered_the_older_half_is_forgotten(
    core: Services, writer: Committer, remembered: str
) -> None:
    applied = core.keys.applied("ses_1")
    await core.redis.delete(applied)
    await core.redis.hset(
        applied,
        mapping={remembered.format(n): f"d {n}" for n in range(1, WINDOW)},
    )
    await core.redis.hset(core.keys.metadata("ses_1"), "version", WINDOW)
    await writer.commit("ses_1", [appending("m2")])
    assert await core.redis.hlen(applied) == WINDOW
    other = committer_on(core, Line(core.redis.execute_command), writer="newest.1")
    await other.commit("ses_1", [appending("m3")])

    left = {name.decode() for name in await core.redis.hkeys(applied)}
    newest = {remembered.format(n) for n in range(WINDOW - 1, WINDOW - 1023, -1)}
    assert left == newest | {"newest.1", "other.1"}


async def test_a_new_key_prunes_what_is_remembered_as_a_new_writer_does(
    core: Services, writer: Committer
) -> None:
    applied = core.keys.applied("ses_1")
    await writer.commit("ses_1", [appending("m2")])
    await core.redis.hset(applied, mapping={f"key:{n}": "d 1" for n in range(WINDOW)})
    await writer.commit("ses_1", [appending("m3")])
    assert await core.redis.hlen(applied) > WINDOW
    await writer.commit("ses_1", [editing("m1", key="new")])
    left = {name.decode() for name in await core.redis.hkeys(applied)}
    assert len(left) == WINDOW // 2
    assert {"other.1", "key:new"} <= left

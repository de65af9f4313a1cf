"""What was acknowledged and is refused is kept as a conflict, once, and where that is, is told."""

from __future__ import annotations

import pytest

from sessiond.errors import NotFound
from sessiond.service.durable.refusals import Refusals
from sessiond.service.writes import PutPart
from sessiond.service.writing import Request, Surroundings
from sessiond.store.conflicts import ConflictStore
from sessiond.store.outcome import SessionMissing
from tests.service.support import create, said, text
from tests.store.support import Services

REFUSED = PutPart(
    session_id="ses_1",
    message_id="m1",
    part_id="p1",
    part=text("x", id="p1"),
    request=Request(key="once"),
)
REASON = NotFound("'m1' is not there")


@pytest.fixture
def refusals(core: Services) -> Refusals:
    conflicts = ConflictStore(core.redis, core.keys)
    return Refusals(Surroundings(core.store, conflicts, clock=core.clock))


async def test_a_refusal_is_kept_once_and_its_place_is_told_again(
    core: Services, refusals: Refusals
) -> None:
    await create(core)
    place = await refusals.keep(REFUSED, REASON)
    assert await refusals.keep(REFUSED, REASON) == place
    (last,) = [entry for entry in await core.entries("ses_1") if entry.op == "conflict.record"]
    assert last.position == place
    (conflict,) = await core.conflicts.of_session("ses_1")
    assert (conflict.number, conflict.ours.value) == (str(last.offset), text("x", id="p1"))


async def test_of_a_deleted_session_the_log_has_nothing_of_it(
    core: Services, refusals: Refusals
) -> None:
    await create(core)
    await core.sessions.delete("ses_1")
    assert await refusals.keep(REFUSED, REASON) is None
    (conflict,) = await core.conflicts.of_session("ses_1")
    assert conflict.ours.value == text("x", id="p1")


async def test_nothing_is_kept_of_a_session_that_is_missing(refusals: Refusals) -> None:
    with pytest.raises(SessionMissing):
        await refusals.keep(REFUSED, REASON)


async def test_a_write_to_a_session_that_is_missing_says_that_it_is(core: Services) -> None:
    """A message that is missing is another matter: that is the last word about its parts."""
    part = REFUSED.part
    with pytest.raises(SessionMissing):
        await core.records.put_part("ses_1", "m1", "p1", part)
    with pytest.raises(SessionMissing):
        await core.messages.append("ses_1", [said("x")])
    await create(core)
    with pytest.raises(NotFound) as missing:
        await core.records.put_part("ses_1", "m1", "p1", part)
    assert not isinstance(missing.value, SessionMissing)

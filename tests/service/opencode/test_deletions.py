"""What somebody deleted is gone for everybody; what only vanished comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sessiond.errors import SessionDeleted, StoreUnavailable
from sessiond.opencode.protocol import OpencodeEvent
from tests.opencode.waiting import until
from tests.service.opencode.sharing import Sharer
from tests.service.opencode.support import SESSION
from tests.store.support import Services, roll_back, take_copy

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)


@pytest.fixture
async def here(core: Services, tmp_path: Path) -> AsyncIterator[Sharer]:
    here = Sharer(core, tmp_path / "here", "here")
    yield here
    here.close()


@pytest.fixture
async def there(core: Services, tmp_path: Path, here: Sharer) -> AsyncIterator[Sharer]:
    """Another machine; both know the session, which began there."""
    there = Sharer(core, tmp_path / "there", "there")
    there.opencode.create(SESSION)
    await until(lambda: here.has(SESSION))
    await here.looked()
    yield there
    there.close()


async def is_deleted(core: Services) -> bool:
    try:
        await core.store.end(SESSION)
    except SessionDeleted:
        return True
    return False


async def gone_for_all(core: Services, *sharers: Sharer) -> None:
    """Return when a session is gone everywhere, and stays so."""

    async def is_gone() -> bool:
        return await is_deleted(core) and not any(one.has(SESSION) for one in sharers)

    await until(is_gone)
    for one in sharers:
        one.seconds.now += 60
        await one.looked()
        await one.looked()
    assert await is_gone()


async def test_a_look_between_the_deletion_and_its_note_brings_nothing_back(
    core: Services, here: Sharer, there: Sharer
) -> None:
    here.opencode.delete(SESSION)
    await here.looked()
    await here.looked()
    assert not here.has(SESSION)
    assert not await is_deleted(core)
    here.note(SESSION)
    await gone_for_all(core, here, there)


async def test_a_session_that_vanished_for_long_comes_back(
    core: Services, here: Sharer, there: Sharer
) -> None:
    here.opencode.delete(SESSION)
    await here.looked()
    here.seconds.now += 4.9
    await here.looked()
    assert here.share.catalogue.is_waiting
    assert not here.has(SESSION)
    here.seconds.now += 0.2
    await until(lambda: here.has(SESSION))
    assert there.has(SESSION)
    assert not await is_deleted(core)


async def test_a_note_that_comes_when_the_session_came_back_already_counts(
    core: Services, here: Sharer, there: Sharer
) -> None:
    here.opencode.delete(SESSION)
    await here.looked()
    here.seconds.now += 6
    await until(lambda: here.has(SESSION))
    here.note(SESSION)
    await here.looked()
    await gone_for_all(core, here, there)


async def test_a_sidecar_started_between_the_deletion_and_its_note_brings_nothing_back(
    core: Services, here: Sharer, there: Sharer
) -> None:
    here.stop()
    here.opencode.delete(SESSION)
    here.start()
    await here.looked()
    there.opencode.message(SESSION, "m1")
    await here.looked()
    here.note(SESSION)
    await gone_for_all(core, here, there)


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_what_comes_in_for_a_session_that_vanished_waits_until_it_is_known_why(
    core: Services, here: Sharer, there: Sharer, *, is_deleted: bool
) -> None:
    here.opencode.delete(SESSION)
    await here.looked()
    there.opencode.update(SESSION, title="later")
    await until(lambda: here.share.lag)
    assert not here.has(SESSION)
    if is_deleted:
        here.note(SESSION)
        await gone_for_all(core, here, there)
    else:
        here.seconds.now += 6
        await until(lambda: here.has(SESSION))
        assert (here.opencode.database.info(SESSION) or {})["title"] == "later"


async def test_a_session_that_was_brought_back_before_anybody_looked_goes_again(
    core: Services, here: Sharer, there: Sharer
) -> None:
    record = here.opencode.info(SESSION)
    here.opencode.delete(SESSION)
    event = OpencodeEvent(id="evt_sd1x1", type="session.updated", properties={"info": record})
    here.opencode.replay(SESSION, [event])
    here.note(SESSION)
    await gone_for_all(core, here, there)


async def test_a_deleted_session_that_lives_on_in_redis_is_deleted_there_too(
    core: Services, here: Sharer, there: Sharer
) -> None:
    """Its deletion was never told: nothing else is remembered of it here."""
    here.stop()
    here.opencode.delete(SESSION)
    here.note(SESSION)
    here.saved.cursors.clear()
    here.start()
    await gone_for_all(core, here, there)


async def test_a_redis_that_forgot_a_deletion_is_told_again(
    core: Services, here: Sharer, there: Sharer
) -> None:
    copy = await take_copy(core, SESSION)
    there.stop()
    here.opencode.delete(SESSION)
    here.note(SESSION)
    await gone_for_all(core, here)
    await roll_back(core, SESSION, copy)
    there.start()
    there.opencode.message(SESSION, "m1")
    await gone_for_all(core, here, there)


async def test_a_deletion_waits_for_redis(
    core: Services, here: Sharer, there: Sharer, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    async def fails(*_: Any) -> None:
        nonlocal failures
        failures += 1
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(core.sessions, "delete", fails)
        here.opencode.delete(SESSION)
        here.note(SESSION)
        await until(lambda: failures >= 2)
        assert there.has(SESSION)
    await gone_for_all(core, here, there)


async def test_what_a_person_took_back_from_an_export_stays_with_them(
    core: Services, here: Sharer, there: Sharer
) -> None:
    here.opencode.delete(SESSION)
    here.note(SESSION)
    await gone_for_all(core, here, there)
    here.opencode.create(SESSION)
    here.opencode.message(SESSION, "m1")
    for _ in range(3):
        await here.looked()
    assert here.has(SESSION)
    assert await is_deleted(core)
    assert not there.has(SESSION)


async def test_a_private_session_that_was_deleted_stays_with_the_others(
    core: Services, here: Sharer, there: Sharer
) -> None:
    await here.share.set_sharing(SESSION, shared=False)
    here.opencode.delete(SESSION)
    here.note(SESSION)
    await until(lambda: SESSION not in here.saved.cursors)
    assert there.has(SESSION)
    assert not await is_deleted(core)

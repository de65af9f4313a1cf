"""What opencode logs of a session that somebody else deleted is kept: all of it, and once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from sessiond.errors import SessionDeleted, StoreUnavailable
from sessiond.opencode.database import STRETCH
from sessiond.opencode.mapping import FIELD
from sessiond.opencode.protocol import OpencodeEvent
from sessiond.opencode.saved import SavedShare
from sessiond.service.content.merging import Subject
from sessiond.service.writing import Request
from tests.opencode.simulated import NOW
from tests.opencode.waiting import until
from tests.service.opencode.sharing import Sharer
from tests.service.opencode.support import SESSION, Site, local_texts, texts
from tests.store.support import Services, roll_back, take_copy

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)


@pytest.fixture
async def site(core: Services) -> AsyncIterator[Site]:
    """A machine that has a session which somebody else deleted."""
    site = Site(core)
    site.opencode.create(SESSION)
    say(site, 0)
    await site.outbox.flush(SESSION)
    await core.sessions.delete(SESSION)
    yield site
    site.close()


def say(site: Site, *numbers: int) -> None:
    """Messages with a part each, which is then written once more."""
    for number in numbers:
        site.opencode.message(SESSION, f"m{number}", text=f"message {number}")
        for text in ("", f"part {number}"):
            site.opencode.part(SESSION, f"m{number}", f"p{number}", text)


def said(*numbers: int) -> Counter[str]:
    """The records of messages, each once."""
    return Counter(f"m{number}{part}" for number in numbers for part in ("", f"/p{number}"))


async def kept(core: Services) -> Counter[str]:
    """The records that were kept, and how often each was."""
    return Counter(conflict.id for conflict in await core.conflicts.of_session(SESSION))


async def kept_texts(core: Services) -> dict[str, Any]:
    """The last text that was kept of each part."""
    found = await core.conflicts.of_session(SESSION)
    found.sort(key=lambda one: int(one.number.partition("-")[2] or 0))
    return {one.id: one.ours.value["text"] for one in found if one.document == "part"}


class Keeping:
    """Keeping in which something happens once, at a certain record."""

    def __init__(self, core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
        self._keep = core.sessions.keep
        self.left = -1
        self.is_done = False
        """Whether the record is kept before it happens."""
        self.happens: Callable[[], Awaitable[None]] = self._fails
        monkeypatch.setattr(core.sessions, "keep", self.keep)

    async def keep(self, request: Request, came: list[tuple[Subject, Any]]) -> list[str]:
        self.left -= len(came)
        if self.left == -1:
            if self.is_done:
                await self._keep(request, came)
            await self.happens()
        return await self._keep(request, came)

    async def _fails(self) -> None:
        raise StoreUnavailable("cut")


@pytest.fixture
def keeping(core: Services, monkeypatch: pytest.MonkeyPatch) -> Keeping:
    return Keeping(core, monkeypatch)


# What is logged after the refusal


async def test_what_is_logged_after_the_refusal_is_kept_too(core: Services, site: Site) -> None:
    """A turn that still runs holds back the deletion here."""
    for number in range(1, 4):
        say(site, number)
        await site.outbox.flush(SESSION)
    assert await kept(core) == said(1, 2, 3)
    site.opencode.part(SESSION, "m3", "p3", "the last of it")
    await site.outbox.flush(SESSION)
    assert await kept(core) == said(1, 2, 3) + Counter(["m3/p3"])
    assert (await kept_texts(core))["m3/p3"] == "the last of it"


async def test_of_a_session_in_which_nothing_happens_nothing_is_kept_or_told(
    core: Services, site: Site
) -> None:
    say(site, 1)
    await site.outbox.flush(SESSION)
    with capture_logs() as logs:
        for _ in range(3):
            await site.outbox.flush(SESSION)
    assert logs == []
    assert await kept(core) == said(1)


async def test_what_comes_too_late_in_many_stretches_is_kept(core: Services, site: Site) -> None:
    numbers = range(1, STRETCH)
    say(site, *numbers)
    await site.outbox.flush(SESSION)
    assert said(*numbers) - await kept(core) == Counter()
    assert await kept_texts(core) == {f"m{n}/p{n}": f"part {n}" for n in numbers}


async def test_what_came_from_others_is_not_kept(core: Services, site: Site) -> None:
    info = {"id": "m1", "role": "user", "time": {"created": NOW}}
    given = OpencodeEvent(id="evt_sd1x5", type="message.updated", properties={"info": info})
    site.opencode.replay(SESSION, [given])
    say(site, 2)
    await site.outbox.flush(SESSION)
    assert await kept(core) == said(2)


async def test_of_a_session_that_was_deleted_here_nothing_is_kept(
    core: Services, site: Site
) -> None:
    await site.outbox.deleted(SESSION)
    say(site, 1)
    await site.outbox.flush(SESSION)
    assert await kept(core) == Counter()


async def test_the_rest_of_an_answer_is_kept_before_its_session_goes(
    core: Services, tmp_path: Path
) -> None:
    here, there = (Sharer(core, tmp_path / name, name) for name in ("here", "there"))
    there.opencode.create(SESSION)
    await until(lambda: here.has(SESSION))
    assert (await here.share.turn(here.instance, SESSION, 10.0)).granted
    there.opencode.delete(SESSION)
    there.note(SESSION)
    await until(lambda: _is_deleted(core))
    here.opencode.message(SESSION, "m1")
    await here.looked()
    await here.share.outbox.flush(SESSION)
    assert await kept(core) == Counter(["m1"])
    assert here.has(SESSION)
    here.opencode.message(SESSION, "m2")
    here.share.end_turn(here.instance.name, SESSION)
    await until(lambda: not here.has(SESSION))
    assert await kept(core) == Counter(["m1", "m2"])
    here.close()
    there.close()


async def _is_deleted(core: Services) -> bool:
    try:
        await core.store.end(SESSION)
    except SessionDeleted:
        return True
    return False


# Once


@pytest.mark.parametrize("count", [0, 1, 150, 300])
async def test_after_an_error_in_the_middle_it_goes_on_from_there(
    core: Services, site: Site, keeping: Keeping, count: int
) -> None:
    numbers = range(1, STRETCH)
    for number in numbers:
        site.opencode.message(SESSION, f"m{number}", text="late")
        site.opencode.part(SESSION, f"m{number}", f"p{number}", "late")
    keeping.left = count
    with pytest.raises(StoreUnavailable):
        await site.outbox.flush(SESSION)
    assert (await kept(core)).total() == count
    await site.outbox.flush(SESSION)
    assert await kept(core) == said(*numbers)


async def test_an_answer_that_was_lost_repeats_one_record_only(
    core: Services, site: Site, keeping: Keeping
) -> None:
    say(site, 1, 2, 3)
    keeping.left, keeping.is_done = 2, True
    with pytest.raises(StoreUnavailable):
        await site.outbox.flush(SESSION)
    await site.outbox.flush(SESSION)
    assert await kept(core) == said(1, 2, 3) + Counter(["m2"])


async def test_an_error_between_two_writings_of_a_record_loses_neither(
    core: Services, site: Site, keeping: Keeping
) -> None:
    """The message was written first, and last."""
    site.opencode.message(SESSION, "m1", text="begun")
    site.opencode.part(SESSION, "m1", "p1", "in between")
    site.opencode.message(SESSION, "m1", text="complete")
    keeping.left = 1
    with pytest.raises(StoreUnavailable):
        await site.outbox.flush(SESSION)
    assert await kept(core) == Counter(["m1/p1"])
    await site.outbox.flush(SESSION)
    assert await kept(core) == said(1)
    found = {one.id: one.ours.value for one in await core.conflicts.of_session(SESSION)}
    assert found["m1"]["metadata"][FIELD]["text"] == "complete"


async def test_what_was_kept_is_kept_once_however_often_the_daemon_is_started(
    core: Services, tmp_path: Path
) -> None:
    """No opencode is attached, so that the session stays here."""
    here = Sharer(core, tmp_path / "here", "here")
    here.opencode.create(SESSION)
    here.opencode.message(SESSION, "m0")
    await until(lambda: here.is_written(SESSION))
    here.stop()
    await core.sessions.delete(SESSION)
    for number in range(1, 4):
        here.opencode.message(SESSION, f"m{number}")
        here.start(attached=False)
        await until(lambda: _is_saved(here))
        here.crash()
    here.start(attached=False)
    await here.looked()
    await here.share.outbox.flush(SESSION)
    assert await kept(core) == Counter(["m1", "m2", "m3"])
    here.close()


def _is_saved(sharer: Sharer) -> bool:
    """Tell whether it is on disk that all opencode logged is done with."""
    saved = msgspec.json.decode(sharer.disk, type=SavedShare)
    return saved.written[SESSION].seq == sharer.opencode.database.seq(SESSION)


# A Redis that forgot the deletion


@pytest.mark.parametrize("count", [None, 0, 3])
async def test_what_comes_too_late_is_written_after_all_where_redis_forgot_the_deletion(
    core: Services, keeping: Keeping, count: int | None
) -> None:
    """It forgets it after all was kept, or while a record is being kept."""
    site = Site(core)
    site.opencode.create(SESSION)
    await site.outbox.flush(SESSION)
    copy = await take_copy(core, SESSION)
    await core.sessions.delete(SESSION)

    async def forgets() -> None:
        await roll_back(core, SESSION, copy)

    say(site, 1, 2, 3)
    keeping.left, keeping.happens = -1 if count is None else count, forgets
    await site.outbox.flush(SESSION)
    if count is None:
        await forgets()
        say(site, 4)
        await site.outbox.flush(SESSION)
    assert local_texts(site) == await texts(core)
    site.close()

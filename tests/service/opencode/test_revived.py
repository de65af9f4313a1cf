"""What Redis lost of an opencode's session comes back from a copy: nothing is written once more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sessiond.service.durable.reviving import Revival
from tests.service.away import Machine, machine
from tests.service.opencode.support import SESSION, Site, local_texts, texts
from tests.store.support import Services, roll_back, take_copy


@pytest.fixture
def site(core: Services) -> Iterator[Site]:
    site = Site(core)
    site.opencode.create(SESSION)
    yield site
    site.close()


@pytest.fixture
async def copies(core: Services, site: Site, tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(core, tmp_path) as copies:
        revival = Revival(core.sessions._around, copies.copies, copies.replica)
        site.revivals.append(revival.revive)
        yield copies


def say(site: Site, number: int) -> None:
    site.opencode.message(SESSION, f"m{number}")
    site.opencode.part(SESSION, f"m{number}", f"p{number}", f"text {number}")


@pytest.mark.parametrize("lost", ["all", "some"])
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_nobody_begins_anew_and_what_others_wrote_since_stays(
    core: Services, site: Site, copies: Machine, lost: str, *, is_restarted: bool
) -> None:
    say(site, 1)
    await site.outbox.flush(SESSION)
    copy = {} if lost == "all" else await take_copy(core, SESSION)
    say(site, 2)
    await site.outbox.flush(SESSION)
    await core.records.put_part(
        SESSION, "m2", "p2", {"id": "p2", "messageID": "m2", "type": "text", "text": "theirs"}
    )
    copies.copier.see(SESSION)
    await copies.copied(SESSION)
    before = await core.entries(SESSION)
    await roll_back(core, SESSION, copy)
    if is_restarted:
        site.restart()
    assert [name async for name in site.outbox.behind()] == []
    say(site, 3)
    await site.outbox.flush(SESSION)
    log = await core.entries(SESSION)
    assert log[: len(before)] == before
    assert [entry.id for entry in log[len(before) :]] == ["m3", "m3/p3"]
    assert (await texts(core))["m2/p2"] == "theirs"


async def test_what_no_copy_has_is_written_once_more(
    core: Services, site: Site, copies: Machine
) -> None:
    say(site, 1)
    await site.outbox.flush(SESSION)
    copies.copier.see(SESSION)
    await copies.copied(SESSION)
    before = await core.entries(SESSION)
    await copies.copier.close()
    say(site, 2)
    await site.outbox.flush(SESSION)
    await roll_back(core, SESSION, {})
    assert [name async for name in site.outbox.behind()] == [SESSION]
    await site.outbox.flush(SESSION)
    log = await core.entries(SESSION)
    assert log[: len(before)] == before
    assert [entry.id for entry in log[len(before) :]] == ["m2", "m2/p2"]
    assert await texts(core) == local_texts(site)

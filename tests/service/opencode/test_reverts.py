"""A revert takes out what was there when it was made; what others wrote after it stays."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sessiond.errors import StoreUnavailable
from sessiond.sync.position import START
from tests.service.opencode.support import SESSION, Site, local_texts, texts
from tests.store.support import Services

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)


@pytest.fixture
async def site(core: Services) -> AsyncIterator[Site]:
    """Where somebody goes back: a session with two messages, the first from here."""
    site = Site(core)
    site.opencode.create(SESSION)
    say(site, "m1")
    await site.outbox.flush(SESSION)
    yield site
    site.close()


@pytest.fixture
async def there(core: Services, site: Site) -> AsyncIterator[Site]:
    """Where nobody knows of that."""
    there = Site(core, "oc-there", "/there")
    await there.catch_up()
    say(there, "m2")
    await there.outbox.flush(SESSION)
    await site.catch_up()
    yield there
    there.close()


def say(site: Site, name: str, *parts: str) -> None:
    """Write a message with parts; with one if none are named."""
    site.opencode.message(SESSION, name, text=name)
    for part in parts or (f"{name}p",):
        site.opencode.part(SESSION, name, part, f"{part} by {site.replica}")


async def go_on(there: Site, site: Site, *names: str) -> None:
    """Say something there, and have it come in."""
    for name in names:
        say(there, name)
    await there.outbox.flush(SESSION)
    await site.catch_up()


async def agreed(site: Site, there: Site, *names: str) -> None:
    """All have these messages, with their parts."""
    for one in (site, there):
        await one.outbox.flush(SESSION)
        await one.catch_up()
    found = await texts(site.core)
    assert {name for name in found if "/" not in name} == set(names)
    assert {name.partition("/")[0] for name in found if "/" in name} == set(names)
    for one in (site, there):
        assert local_texts(one) == found, one.replica


async def test_what_others_wrote_after_a_revert_stays(site: Site, there: Site) -> None:
    site.opencode.revert(SESSION, "m2")
    await go_on(there, site, "m3", "m4")
    site.opencode.clean_up(SESSION)
    assert list(local_texts(site)) == ["m1", "m1/m1p"]
    say(site, "m5")
    await agreed(site, there, "m1", "m3", "m4", "m5")


async def test_it_is_back_before_a_turn_is_granted(site: Site, there: Site) -> None:
    """As the plugin asks: what was logged is written, then the lane catches up."""
    site.opencode.revert(SESSION, "m2")
    await go_on(there, site, "m3")
    site.opencode.clean_up(SESSION)
    await site.outbox.flush(SESSION)
    await site.catch_up()
    assert "m3" in local_texts(site)


async def test_a_revert_without_others_takes_out_what_it_did_before(
    site: Site, there: Site
) -> None:
    site.opencode.revert(SESSION, "m2")
    site.opencode.clean_up(SESSION)
    await agreed(site, there, "m1")
    assert site.reconciled == 0


async def test_a_message_that_is_older_goes_with_the_parts_that_came_later(
    site: Site, there: Site
) -> None:
    site.opencode.revert(SESSION, "m2")
    there.opencode.part(SESSION, "m2", "m2q", "one more")
    await go_on(there, site)
    site.opencode.clean_up(SESSION)
    await agreed(site, there, "m1")


async def test_a_part_that_others_added_after_a_revert_to_a_part_stays(
    site: Site, there: Site
) -> None:
    say(site, "m3", "a", "b")
    await site.outbox.flush(SESSION)
    await there.catch_up()
    site.opencode.revert(SESSION, "m3", "b")
    there.opencode.part(SESSION, "m3", "c", "one more")
    await go_on(there, site)
    site.opencode.clean_up(SESSION)
    await agreed(site, there, "m1", "m2", "m3")
    assert {"m3/a", "m3/c"} <= local_texts(site).keys()
    assert "m3/b" not in local_texts(site)


async def test_what_was_seen_by_a_later_revert_goes(site: Site, there: Site) -> None:
    site.opencode.revert(SESSION, "m2")
    await go_on(there, site, "m3")
    site.opencode.revert(SESSION, "m3")
    site.opencode.clean_up(SESSION)
    await agreed(site, there, "m1", "m2")


async def test_a_revert_written_again_is_as_old_as_it_was(site: Site, there: Site) -> None:
    site.opencode.revert(SESSION, "m2")
    await go_on(there, site, "m3")
    site.opencode.update(SESSION, title="the same revert, in a record with another title")
    site.opencode.clean_up(SESSION)
    await agreed(site, there, "m1", "m3")


async def test_a_revert_taken_back_and_made_again_is_a_new_one(site: Site, there: Site) -> None:
    site.opencode.revert(SESSION, "m2")
    await go_on(there, site, "m3")
    site.opencode.update(SESSION, revert=None)
    site.opencode.revert(SESSION, "m2")
    site.opencode.clean_up(SESSION)
    await agreed(site, there, "m1")


async def test_a_message_removed_without_a_revert_goes(site: Site, there: Site) -> None:
    site.opencode.revert(SESSION, "m2")
    await go_on(there, site, "m3")
    site.opencode.update(SESSION, revert=None)
    site.opencode.remove_message(SESSION, "m3")
    await agreed(site, there, "m1", "m2")


@pytest.mark.parametrize("is_noted", [True, False], ids=["on disk", "not even noticed"])
async def test_a_sidecar_that_ends_before_it_is_back_brings_it_back_later(
    site: Site, there: Site, *, is_noted: bool
) -> None:
    site.opencode.revert(SESSION, "m2")
    await go_on(there, site, "m3")
    site.opencode.clean_up(SESSION)
    say(site, "m4")
    site.failures = 10**6  # the lane cannot write
    if is_noted:
        await site.outbox.flush(SESSION)
    assert (site.position == START) == is_noted
    site.restart()
    site.failures = 0
    await site.outbox.flush(SESSION)
    await site.lane.ask("reconcile" if site.position == START else "catch-up")
    await agreed(site, there, "m1", "m3", "m4")


async def test_it_is_noted_before_anything_behind_it_is_written(
    site: Site, there: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.opencode.revert(SESSION, "m2")
    await go_on(there, site, "m3")
    site.opencode.clean_up(SESSION)
    seen = []

    async def fails(*_: object) -> None:
        seen.append(site.position)
        raise StoreUnavailable("cut")

    with monkeypatch.context() as patched:
        patched.setattr(site.core.store, "commit", fails)
        with pytest.raises(StoreUnavailable):
            await site.outbox.flush(SESSION)
    assert seen == [START]
    await agreed(site, there, "m1", "m3")


async def test_during_a_turn_it_comes_back_at_its_end(site: Site, there: Site) -> None:
    """The sidecar was away when the turn began."""
    site.opencode.revert(SESSION, "m2")
    await go_on(there, site, "m3")
    site.restart()
    site.opencode.clean_up(SESSION)
    site.busy = True
    say(site, "m4")
    await site.outbox.flush(SESSION)
    assert "m3" not in local_texts(site)
    site.busy = False
    await agreed(site, there, "m1", "m3", "m4")


async def test_what_comes_in_meanwhile_moves_no_position_past_it(site: Site, there: Site) -> None:
    site.opencode.revert(SESSION, "m2")
    await go_on(there, site, "m3")
    site.opencode.clean_up(SESSION)
    site.busy = True
    await site.outbox.flush(SESSION)
    say(there, "m4")
    await there.outbox.flush(SESSION)
    assert site.position == START
    site.busy = False
    await agreed(site, there, "m1", "m3", "m4")
    assert site.position == (await site.core.store.end(SESSION)).position

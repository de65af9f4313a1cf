"""A message that was removed stays removed, also where opencode wrote it once more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sessiond.sync.position import START
from tests.service.opencode.support import SESSION, Site, local_texts, texts
from tests.store.support import Services

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)


@pytest.fixture
async def site(core: Services) -> AsyncIterator[Site]:
    site = Site(core)
    site.opencode.create(SESSION)
    for name in ("m1", "m2"):
        site.opencode.message(SESSION, name)
        site.opencode.part(SESSION, name, f"{name}p", name)
    await site.outbox.flush(SESSION)
    yield site
    site.close()


@pytest.fixture
async def there(core: Services, site: Site) -> AsyncIterator[Site]:
    there = Site(core, "oc-there", "/there")
    await there.catch_up()
    there.opencode.remove_message(SESSION, "m1")
    await there.outbox.flush(SESSION)
    yield there
    there.close()


async def agreed(*sites: Site) -> None:
    for site in sites:
        await site.outbox.flush(SESSION)
        await site.catch_up()
        assert local_texts(site) == await texts(site.core)
        assert "m2" in local_texts(site)
        assert "m1" not in local_texts(site)


async def test_a_message_that_opencode_sums_up_after_its_removal_goes_again(
    site: Site, there: Site
) -> None:
    await site.catch_up()
    assert "m1" not in local_texts(site)
    site.opencode.message(SESSION, "m1", summary={"diffs": []})
    await agreed(site, there)


async def test_it_goes_though_the_sidecar_ended_before_it_was_compared(
    site: Site, there: Site
) -> None:
    await site.catch_up()
    site.opencode.message(SESSION, "m1", summary={"diffs": []})
    site.opencode.message(SESSION, "m3")
    await site.outbox.flush(SESSION)
    site.restart()
    assert site.position == START
    await site.lane.ask("reconcile")  # what a sidecar does first without a position
    await agreed(site, there)
    assert "m3" in local_texts(there)


async def test_a_text_that_is_changed_before_the_removal_is_known_goes_too(
    site: Site, there: Site
) -> None:
    site.opencode.part(SESSION, "m1", "m1p", "changed")
    await agreed(site, there)

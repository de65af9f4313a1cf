"""The context of an opencode's session: what its tools did, once, for all who join."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sessiond.model import Context
from tests.service.opencode.support import SESSION, Site
from tests.service.support import load
from tests.store.support import Services

pytestmark = pytest.mark.parametrize("kind", ["fakeredis", "redis"], indirect=True)


@pytest.fixture
def site(core: Services) -> Iterator[Site]:
    site = Site(core)
    yield site
    site.close()


@pytest.fixture
def there(core: Services) -> Iterator[Site]:
    site = Site(core, "oc-there", "/there")
    yield site
    site.close()


def use(site: Site, name: str, tool: str, status: str = "completed", **given: Any) -> None:
    """Call a tool, as far as a status."""
    for reached in ("pending", "running", status):
        state = {"status": reached, "input": {} if reached == "pending" else given}
        site.opencode.part(SESSION, "m1", name, "", type="tool", tool=tool, state=state)
        if reached == status:
            break


async def context(core: Services) -> Context:
    return (await load(core, SESSION)).context


async def begun(site: Site) -> None:
    site.opencode.create(SESSION)
    site.opencode.message(SESSION, "m1", role="assistant")
    await site.outbox.flush(SESSION)


async def test_files_and_commands_are_those_of_the_tools_that_ended(
    core: Services, site: Site
) -> None:
    await begun(site)
    use(site, "p1", "read", filePath="/here/src/main.js")
    use(site, "p2", "grep", pattern="x")
    use(site, "p3", "bash", "running", command="sleep 9")
    await site.outbox.flush(SESSION)
    use(site, "p4", "edit", "error", filePath="/here/README.md")
    await site.outbox.flush(SESSION)
    found = await context(core)
    assert found.active_files == ["src/main.js", "README.md"]
    assert found.recent_commands == ["read", "grep", "edit"]
    assert found.working_directory == "${WORKTREE}"
    assert found.opencode


async def test_a_session_that_is_brought_in_has_the_context_of_what_happened_before(
    core: Services, site: Site
) -> None:
    site.opencode.create(SESSION)
    site.opencode.message(SESSION, "m1", role="assistant")
    use(site, "p1", "read", filePath="/here/a.py")
    await site.outbox.flush(SESSION)
    use(site, "p2", "write", filePath="/here/b.py")
    await site.outbox.flush(SESSION)
    found = await context(core)
    assert (found.active_files, found.recent_commands) == (["a.py", "b.py"], ["read", "write"])


async def test_nothing_counts_twice_when_it_is_written_again(core: Services, site: Site) -> None:
    await begun(site)
    use(site, "p1", "read", filePath="/here/a.py")
    await site.outbox.flush(SESSION)
    before = await context(core)
    site.restart()
    await site.outbox.flush(SESSION)
    state = {"status": "completed", "input": {"filePath": "/here/a.py"}, "time": {"compacted": 1}}
    site.opencode.part(SESSION, "m1", "p1", "", type="tool", tool="read", state=state)
    await site.outbox.flush(SESSION)
    found = await context(core)
    assert found.recent_commands == before.recent_commands == ["read"]
    assert found.active_files == ["a.py"]


async def test_an_instance_that_joins_finds_it_and_adds_to_it(
    core: Services, site: Site, there: Site
) -> None:
    await begun(site)
    use(site, "p1", "read", filePath="/here/a.py")
    await site.outbox.flush(SESSION)
    await there.catch_up()
    await there.outbox.flush(SESSION)
    assert (await context(core)).recent_commands == ["read"], "what came from here is no use there"
    use(there, "p2", "edit", filePath="/there/b.py")
    await there.outbox.flush(SESSION)
    found = await context(core)
    assert found.active_files == ["a.py", "b.py"]
    assert found.recent_commands == ["read", "edit"]


async def test_what_others_noted_in_the_context_stays(core: Services, site: Site) -> None:
    await begun(site)
    patch = {"active_files": ["own.txt"], "state": {"phase": "exploration"}}
    await core.documents.change(SESSION, "context", patch)
    use(site, "p1", "read", filePath="/here/a.py")
    await site.outbox.flush(SESSION)
    found = await context(core)
    assert found.active_files == ["own.txt", "a.py"]
    assert found.state == {"phase": "exploration"}

"""A session that Redis lost is written again from a copy, once, whoever does it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sessiond.errors import NotFound
from sessiond.service.content.sessions import Filter
from sessiond.service.durable.reviving import Revival
from sessiond.service.writing import Request
from tests.service.away import machine
from tests.service.support import create, load, said, text
from tests.store.support import Services, until


async def furnish(core: Services) -> None:
    """A session in which everything happened that a log can tell of."""
    await create(core, title="before", preferences={"theme": "dark"})
    await core.messages.append("ses_1", [said("a", "m1"), said("b", "m2"), said("c", "m3")])
    await core.records.edit("ses_1", "m1", {"content": "edited"})
    await core.records.put_part("ses_1", "m2", "p1", text("a part"))
    await core.records.put_part("ses_1", "m2", "p2", text("no more"))
    await core.records.remove_part("ses_1", "m2", "p2")
    await core.records.remove("ses_1", "m3")
    base = (await core.documents.read("ses_1", "context")).version
    for value in ("/theirs", "/ours"):
        patch = {"working_directory": value, "state": {"n": value}}
        await core.documents.change("ses_1", "context", patch, Request(base=base))
    await core.documents.change("ses_1", "preferences", {"theme": None, "language": "en"})
    await core.documents.change("ses_1", "metadata", {"title": "after"})


async def lose(core: Services) -> None:
    """Take all of the session out of Redis."""
    found = [key async for key in core.redis.scan_iter(match="*{ses_1}*")]
    await core.redis.delete(*found)
    with pytest.raises(NotFound):
        await load(core)


async def content(core: Services) -> Any:
    """What the session is, whatever its positions are."""
    loaded = msgspec.to_builtins(await load(core))
    del loaded["position"], loaded["versions"]
    return loaded


async def test_what_is_revived_is_what_was_lost(core: Services, tmp_path: Path) -> None:
    async with machine(core, tmp_path) as here:
        await furnish(core)
        await here.copied("ses_1")
        before = await content(core)
        await lose(core)
        assert await Revival(core.sessions._around, here.replica).revive("ses_1")
        assert await content(core) == before
        listed = (await core.sessions.list_page(Filter())).sessions
        assert [each.metadata.session_id for each in listed] == ["ses_1"]
        await core.messages.append("ses_1", [said("on", "m4")])
        await here.copied("ses_1")


async def test_machines_that_revive_at_once_and_again_come_to_one_session(
    core: Services, tmp_path: Path
) -> None:
    async with machine(core, tmp_path / "a") as here, machine(core, tmp_path / "b") as there:
        await furnish(core)
        there.copier.see("ses_1")
        await here.copied("ses_1")
        await there.copied("ses_1")
        before = await content(core)
        await here.copier.close()
        await there.copier.close()
        await lose(core)
        revivals = [Revival(core.sessions._around, each.replica) for each in (here, there)]
        assert await asyncio.gather(*(each.revive("ses_1") for each in revivals)) == [True, True]
        assert await content(core) == before
        assert await revivals[0].revive("ses_1")
        assert await content(core) == before


async def test_a_copy_outlives_its_session_but_no_deletion(core: Services, tmp_path: Path) -> None:
    async with machine(core, tmp_path) as here:
        revival = Revival(core.sessions._around, here.replica)
        assert not await revival.revive("never-seen")
        await furnish(core)
        await here.copied("ses_1")
        await lose(core)
        here.copier._hear("default", None)  # something may have been missed: it looks
        await until(lambda: here.copier.behind == 0)
        assert here.replica.copies["ses_1"].position.offset > 1
        assert await revival.revive("ses_1")
        end = await core.sessions.delete("ses_1")
        await until(lambda: here.replica.copies["ses_1"].position == end)
        assert not await revival.revive("ses_1")

"""A scan tells of damaged files, too, and leaves them healed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sessiond.errors import InvalidInput
from sessiond.files.layout import FILES
from sessiond.service.health.scanning import Scanner, ScanPage
from sessiond.service.health.whole_scan import WholeScan
from sessiond.store.keyspace import Keyspace
from tests.service.mirrors import Mirrored, mirrored
from tests.service.support import create, said
from tests.store.support import Services

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)


def scan_of(core: Services, here: Mirrored | None) -> WholeScan:
    scanner = Scanner(Keyspace(core.redis, core.keys), core.clock)
    return WholeScan(scanner, here.mirror if here else None)


async def pages(scan: WholeScan, limit: int) -> list[ScanPage]:
    found = [await scan.page("", limit)]
    while cursor := found[-1].cursor:
        found.append(await scan.page(cursor, limit))
    return found


@pytest.mark.parametrize("name", FILES)
async def test_a_damaged_file_is_told_once_with_where_it_is_now_and_is_written_anew(
    core: Services, tmp_path: Path, name: str
) -> None:
    await create(core)
    async with mirrored(core, tmp_path) as here:
        right = here.path(name).read_bytes()
        here.flip(name)
        wrong = here.path(name).read_bytes()
        scan = scan_of(core, here)
        (damage,) = (await scan.sessions(["ses_1"])).damage
        assert (damage.key, damage.severity) == (str(here.path(name)), "damaged")
        assert damage.is_file
        (kept,) = (tmp_path / ".quarantine").iterdir()
        assert kept.read_bytes() == wrong
        assert str(kept) in damage.remedy
        await here.step()
        assert here.path(name).read_bytes() == right
        assert (await scan.sessions(["ses_1"])).damage == []


async def test_an_edit_that_cannot_be_taken_is_a_warning_and_stays(
    core: Services, tmp_path: Path
) -> None:
    await create(core)
    async with mirrored(core, tmp_path) as here:
        here.edit("context", "{")
        (damage,) = (await scan_of(core, here).sessions(["ses_1"])).damage
        assert (damage.severity, damage.key) == ("warning", str(here.path("context")))
        assert "not valid JSON" in damage.finding
        assert here.path("context").read_text(encoding="utf-8") == "{"


async def test_damage_that_cannot_be_moved_aside_is_told_as_long_as_it_is_there(
    core: Services, tmp_path: Path
) -> None:
    await create(core)
    async with mirrored(core, tmp_path) as here:
        here.flip("context")
        (tmp_path / ".quarantine").write_text("in the way", encoding="utf-8")
        scan = scan_of(core, here)
        for _ in range(2):
            (damage,) = (await scan.sessions(["ses_1"])).damage
            assert (damage.severity, damage.key) == ("damaged", str(tmp_path / "ses_1"))
            assert "cannot be moved aside" in damage.finding
        (tmp_path / ".quarantine").unlink()
        (damage,) = (await scan.sessions(["ses_1"])).damage
        assert damage.key == str(here.path("context"))


async def test_all_files_come_after_all_keys_some_sessions_a_page(
    core: Services, tmp_path: Path
) -> None:
    names = [f"ses_{number}" for number in range(5)]
    for name in names:
        await create(core, name)
    async with mirrored(core, tmp_path) as here:
        for name in names:
            path = here.path("metadata", name)
            path.write_bytes(b"")
        found = await pages(scan_of(core, here), limit=2)
        assert sum(page.sessions for page in found) == 5, "each is counted once"
        damaged = [[damage.session_id for damage in page.damage] for page in found]
        assert [page for page in damaged if page] == [names[:2], names[2:4], names[4:]]


async def test_a_scan_meets_no_file_in_the_middle_of_a_write(
    core: Services, tmp_path: Path
) -> None:
    await create(core)
    async with mirrored(core, tmp_path) as here:
        scan = scan_of(core, here)
        for number in range(20):
            await core.messages.append("ses_1", [said("one", f"m{number}")])
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(here.step())
                scanned = tasks.create_task(scan.sessions(["ses_1"]))
            assert scanned.result().damage == []
        assert here.read("conversation")["total_messages"] == 20


async def test_without_files_a_scan_is_of_redis_alone(core: Services, tmp_path: Path) -> None:
    await create(core)
    scan = scan_of(core, None)
    assert (await scan.sessions(["ses_1"])).damage == []
    assert [page.damage for page in await pages(scan, 10)] == [[]] * len(await pages(scan, 10))
    with pytest.raises(InvalidInput, match="not a cursor"):
        await scan.page("files:", 10)

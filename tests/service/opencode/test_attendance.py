"""At which sessions opencodes are said to be, and which files they are said to work on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sessiond.errors import StoreUnavailable
from sessiond.model import Presence
from sessiond.opencode.activity import written_files
from sessiond.opencode.mapping import Machine
from sessiond.opencode.protocol import Attachment, OpencodeEvent
from sessiond.service.content.presence import Presences
from sessiond.service.opencode.attendance import ATTENTION_SECONDS, Attendance
from sessiond.service.opencode.instance import Instance
from sessiond.store.leases import LeaseStore
from sessiond.store.presence import PresenceStore
from tests.service.support import body, create, live_from_now
from tests.store.support import PATIENCE_SECONDS, Services
from tests.store.travel import later

pytestmark = pytest.mark.parametrize("kind", ["fakeredis"], indirect=True)

SESSION = "ses_1"
LIFE_MS = 20_000


class Desk:
    """One machine's attendance, and a clock that the test turns."""

    def __init__(self, core: Services, worktree: str, machine: str) -> None:
        self.seconds = 1_000.0
        self.private: set[str] = set()
        self.presences = Presences(
            PresenceStore(core.redis, core.keys, LIFE_MS), core.store, machine=machine
        )
        place = Machine("project", worktree)
        self.attendance = Attendance(
            self.presences,
            neutral=lambda path: str(place.neutral(path)),
            is_shared=lambda session_id: session_id not in self.private,
            now=lambda: self.seconds,
        )
        self.worktree = worktree

    def opencode(self, name: str, *turns: str) -> Instance:
        attachment = Attachment(
            version="1.18.33",
            plugin="0.1.0",
            pid=1,
            database="/db",
            project_id="project",
            directory=f"{self.worktree}/src",
            worktree=self.worktree,
            turns=list(turns),
        )
        return Instance(name, attachment, 1_000_000)

    def note(self, instance: Instance, kind: str, event_id: str = "", **given: Any) -> None:
        event = OpencodeEvent(id=event_id, type=kind, properties={"sessionID": SESSION} | given)
        self.attendance.note(instance, SESSION, [event])

    def writes(self, instance: Instance, *paths: str) -> None:
        for path in paths:
            self.note(instance, "message.part.updated", part=tool("write", filePath=path))

    async def seen(self) -> list[Presence]:
        """Who is there, when everything was told."""
        await self.attendance.tell()
        return (await self.presences.present(SESSION)).present

    async def files(self) -> list[str]:
        (who,) = await self.seen()
        return who.active_files


def tool(name: str, **given: str) -> dict[str, Any]:
    return {"type": "tool", "tool": name, "state": {"status": "completed", "input": given}}


def status(kind: str) -> dict[str, Any]:
    return {"status": {"type": kind}}


@pytest.fixture
async def desk(core: Services) -> Desk:
    await create(core, SESSION)
    return Desk(core, "/home/ann/project", "laptop")


@pytest.fixture
def oc(desk: Desk) -> Instance:
    return desk.opencode("oc-1")


async def test_who_prompts_is_at_the_session_for_some_minutes(desk: Desk, oc: Instance) -> None:
    desk.attendance.prompted(oc, SESSION)
    (who,) = await desk.seen()
    assert (who.instance, who.machine, who.client, who.active_files) == (
        *("oc-1", "laptop", "opencode"),
        [],
    )
    desk.seconds += ATTENTION_SECONDS - 1
    assert await desk.seen()
    desk.seconds += 1
    assert await desk.seen() == []


async def test_a_prompt_in_the_log_is_one_and_an_answer_is_none(desk: Desk, oc: Instance) -> None:
    desk.note(oc, "message.updated", info={"id": "m1", "role": "assistant"})
    desk.note(oc, "message.part.updated", part=tool("write", filePath="a.py"))
    desk.note(oc, "session.idle")
    desk.note(oc, "session.updated", info={"id": SESSION})
    assert await desk.seen() == []
    desk.note(oc, "message.updated", info={"id": "m1", "role": "user"})
    assert len(await desk.seen()) == 1


async def test_an_opencode_whose_turn_runs_is_there_as_long_as_it_runs(
    core: Services, desk: Desk, oc: Instance
) -> None:
    desk.note(oc, "session.status", **status("busy"))
    await LeaseStore(core.redis, core.keys, 60_000).ask("acquire", SESSION, "oc-1", "laptop")
    desk.seconds += 10 * ATTENTION_SECONDS
    assert [who.has_turn for who in await desk.seen()] == [True]
    desk.note(oc, "session.status", **status("retry"))
    desk.seconds += 10 * ATTENTION_SECONDS
    assert await desk.seen()
    desk.note(oc, "session.idle")
    assert await desk.seen()
    desk.seconds += ATTENTION_SECONDS
    assert await desk.seen() == []


async def test_an_opencode_that_attaches_in_the_middle_of_a_turn_is_there(desk: Desk) -> None:
    desk.attendance.came_back(desk.opencode("oc-1", SESSION))
    desk.seconds += 2 * ATTENTION_SECONDS
    assert await desk.seen()


async def test_files_are_named_alike_on_machines_with_the_project_elsewhere(
    core: Services, desk: Desk, oc: Instance
) -> None:
    other = Desk(core, "/srv/clone", "desktop")
    oc_2 = other.opencode("oc-2")
    for place, instance in ((desk, oc), (other, oc_2)):
        place.attendance.prompted(instance, SESSION)
        place.writes(instance, f"{place.worktree}/src/a.py", "b.py", "../c.py", "/etc/hosts")
    await desk.seen()
    one, two = await other.seen()
    assert one.active_files == two.active_files == ["/etc/hosts", "c.py", "src/a.py", "src/b.py"]
    found = await desk.presences.present(SESSION)
    assert found.shared_files["src/a.py"] == ["oc-1", "oc-2"]


async def test_the_newest_20_files_are_kept(desk: Desk, oc: Instance) -> None:
    desk.attendance.prompted(oc, SESSION)
    desk.writes(oc, *(f"f{number:02}" for number in range(20)), "f00", "new")
    files = await desk.files()
    assert len(files) == 20
    assert "src/f00" in files, "it was written again"
    assert "src/new" in files
    assert "src/f01" not in files
    desk.writes(oc, "x" * 2_000)
    assert await desk.files() == files


async def test_what_others_wrote_is_nobodys_work_here(desk: Desk, oc: Instance) -> None:
    desk.note(oc, "session.status", "evt_sd1", **status("busy"))
    desk.note(oc, "message.updated", "evt_sd2", info={"id": "m1", "role": "user"})
    assert await desk.seen() == []
    desk.attendance.prompted(oc, SESSION)
    part = tool("write", filePath="a.py")
    desk.note(oc, "message.part.updated", "evt_sd3", part=part)
    assert await desk.files() == []


async def test_nothing_is_said_of_private_sessions(desk: Desk, oc: Instance) -> None:
    desk.private.add(SESSION)
    desk.attendance.prompted(oc, SESSION)
    assert await desk.seen() == []
    desk.private.clear()
    assert await desk.seen()
    desk.private.add(SESSION)
    assert await desk.seen() == []


async def test_an_opencode_that_is_gone_is_at_no_session(desk: Desk, oc: Instance) -> None:
    desk.attendance.prompted(oc, SESSION)
    desk.attendance.prompted(desk.opencode("oc-2"), SESSION)
    assert len(await desk.seen()) == 2
    desk.attendance.gone("oc-1")
    assert [who.instance for who in await desk.seen()] == ["oc-2"]


async def test_at_the_end_all_leave(desk: Desk, oc: Instance) -> None:
    desk.attendance.prompted(oc, SESSION)
    assert await desk.seen()
    await desk.attendance.close()
    assert await desk.seen() == []


async def test_a_session_that_is_deleted_has_nobody_and_harms_nobody(
    core: Services, desk: Desk, oc: Instance
) -> None:
    desk.attendance.prompted(oc, SESSION)
    desk.attendance.prompted(oc, "ses_2")
    await core.sessions.delete(SESSION)
    await desk.attendance.tell()
    await create(core, "ses_2")
    await desk.attendance.tell()
    assert (await desk.presences.present("ses_2")).present


async def test_a_visit_is_told_when_redis_is_back_and_renewed_in_time(
    core: Services, desk: Desk, oc: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(desk.presences, "announce", away)
        desk.attendance.prompted(oc, SESSION)
        assert await desk.seen() == []
    assert await desk.seen()
    for _ in range(3):
        await later(core, LIFE_MS // 2, SESSION)
        desk.seconds += LIFE_MS / 2_000
        assert await desk.seen()


async def test_what_did_not_change_is_not_told_all_the_time(
    core: Services, desk: Desk, oc: Instance
) -> None:
    desk.attendance.prompted(oc, SESSION)
    (before,) = await desk.seen()
    desk.writes(oc, "a.py")
    (changed,) = await desk.seen()
    assert changed.active_files == ["src/a.py"]
    desk.writes(oc, "a.py")
    assert await desk.seen() == [changed]
    async with live_from_now(core, SESSION) as subscriber:
        desk.seconds += LIFE_MS / 2_000
        await desk.attendance.tell()
        await core.sessions.send_live(SESSION, "end")
        (event,) = await subscriber.told(1)
    assert body(event)["body"] == "end", "a renewal is no news"
    assert changed.since_ms == before.since_ms


async def test_news_are_told_at_once(desk: Desk, oc: Instance) -> None:
    keeping = asyncio.create_task(desk.attendance.keep())
    desk.attendance.prompted(oc, SESSION)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (await desk.presences.present(SESSION)).present:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        desk.attendance.gone("oc-1")
        while (await desk.presences.present(SESSION)).present:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


PATCH = """*** Begin Patch
*** Update File: src/a.py
*** Move to: src/b.py
@@
-*** Update File: not this
+x
*** Add File: new file.py
*** Delete File: old.py
*** End Patch"""


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (tool("write", filePath="/w/a.py", content="x"), ["/w/a.py"]),
        (tool("edit", filePath="a.py", oldString="x", newString="y"), ["a.py"]),
        (tool("multiedit", filePath="a.py"), ["a.py"]),
        (tool("apply_patch", patchText=PATCH), ["src/a.py", "src/b.py", "new file.py", "old.py"]),
        (tool("read", filePath="a.py"), []),
        (tool("bash", command="touch a.py"), []),
        (tool("write"), []),
        (tool("write", filePath=""), []),
        ({"type": "tool", "tool": "write"}, []),
        ({"type": "tool", "tool": "write", "state": {"input": None}}, []),
        ({"type": "tool", "tool": "write", "state": {"input": {"filePath": 1}}}, []),
        ({"type": "tool", "tool": ["write"], "state": 1}, []),
        ({"type": "text", "text": "write a.py"}, []),
        ({}, []),
    ],
)
def test_the_files_of_a_tool_call_are_those_that_it_writes(
    kind: str, part: dict[str, Any], expected: list[str]
) -> None:
    assert written_files(part) == expected

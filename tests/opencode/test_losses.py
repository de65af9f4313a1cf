"""What could be lost and is not: by Redis, by a database, or because one did not see another."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.opencode.instance import Opencode
from tests.opencode.machines import PLUGIN, Machine, Team, gone, known, same_history
from tests.opencode.model import Model
from tests.opencode.waiting import until


def redis(machine: Machine, *command: str) -> str:
    """Ask the Redis that a machine's sidecar owns."""
    asked = ["redis-cli", "-s", str(machine.sidecar.redis_socket), *command]
    return subprocess.run(
        asked, capture_output=True, check=True, text=True, timeout=10
    ).stdout.strip()


async def test_a_redis_that_lost_everything_gets_it_back(team: Team, model: Model) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ana.opencode.create_session("flushed")
    await known(ben, session)
    await ana.opencode.prompt(session, "one")
    await ben.opencode.prompt(session, "two")
    await same_history(session, ana, ben)
    redis(ana, "FLUSHALL")
    await ben.opencode.prompt(session, "three")
    await same_history(session, ana, ben)
    redis(ana, "FLUSHALL")

    async def is_back() -> bool:
        return redis(ana, "HGET", f"sessiond:{{{session}}}:metadata", "total_messages") == "6"

    await until(is_back, 30)
    assert len(model.turn_requests()) == 3
    assert len(await ana.turns(session)) == 6


async def test_a_redis_that_was_put_back_gets_what_it_lost(team: Team, model: Model) -> None:
    ana, ben = await team.start("ana", "ben")
    data = ana.sidecar.folder / "sessiond" / "redis"
    session = await ana.opencode.create_session("rolled back")
    await known(ben, session)
    await ana.opencode.prompt(session, "kept")
    await same_history(session, ana, ben)
    await asyncio.to_thread(ana.sidecar.stop)
    await asyncio.to_thread(shutil.copytree, data, team.folder / "copy")
    await ana.start_sidecar()
    await ana.attached()
    await ana.opencode.prompt(session, "lost")
    await ben.opencode.prompt(session, "lost too")
    await same_history(session, ana, ben)
    await asyncio.to_thread(ana.sidecar.stop)
    await asyncio.to_thread(shutil.rmtree, data)
    await asyncio.to_thread(shutil.copytree, team.folder / "copy", data)
    await ana.start_sidecar()
    await ana.attached()
    await ben.opencode.prompt(session, "after it")
    history = await same_history(session, ana, ben, seconds=40)
    assert all(text in history for text in ("kept", "lost too", "after it"))
    assert len(model.turn_requests()) == 4
    assert len(await ana.turns(session)) == 8


@pytest.mark.parametrize("is_away", [True, False])
async def test_a_database_put_back_from_a_backup_deletes_nothing(
    team: Team,
    *,
    is_away: bool,
) -> None:
    ana, ben = await team.start("ana", "ben")
    first = await ben.opencode.create_session("in the backup")
    await known(ana, first)
    await asyncio.sleep(1.0)
    await ben.opencode.stop()
    database = ben.opencode.database
    backup = await asyncio.to_thread(database.read_bytes)
    await ben.opencode.start()
    await ben.attached()
    second = await ben.opencode.create_session("not in it")
    await known(ana, second)
    await ben.opencode.stop()
    if is_away:
        await asyncio.to_thread(ben.sidecar.stop)
    for end in ("-wal", "-shm"):
        database.with_name(database.name + end).unlink(missing_ok=True)
    await asyncio.to_thread(database.write_bytes, backup)  # the same file, older
    if is_away:
        await ben.start_sidecar()
    await ben.opencode.start()
    await ben.attached()
    await known(ben, second)
    await known(ana, second)


async def test_a_session_deleted_while_the_sidecar_was_away_is_deleted_everywhere(
    team: Team,
) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ben.opencode.create_session("short")
    await known(ana, session)
    await asyncio.to_thread(ben.sidecar.stop)
    await ben.opencode.request("DELETE", f"/session/{session}")
    await ben.opencode.kill()
    await ben.start_sidecar()
    await gone(ana, session)


async def test_many_quick_deletions_are_for_good(team: Team) -> None:
    ana, ben = await team.start("ana", "ben")
    sessions = [await ana.opencode.create_session(f"number {number}") for number in range(120)]

    async def listed(machine: Machine) -> int:
        return len(await machine.opencode.request("GET", "/session?limit=500"))

    async def all_there() -> bool:
        return await listed(ben) == len(sessions)

    async def all_gone() -> bool:
        alive = int(redis(ana, "ZCARD", "sessiond:sessions"))
        return [alive, await listed(ana), await listed(ben)] == [0, 0, 0]

    await until(all_there)
    for place, session in enumerate(sessions):
        await (ana, ben)[place % 2].opencode.request("DELETE", f"/session/{session}")
    await until(all_gone, 30)
    await asyncio.sleep(8.0)  # longer than a session may be missing
    assert await all_gone()


async def test_a_deletion_on_the_command_line_is_for_everybody(team: Team) -> None:
    ana, ben = await team.start("ana", "ben")
    sessions = [await ana.opencode.create_session(f"number {number}") for number in range(5)]
    await known(ben, sessions[-1])
    for session in sessions:
        await ben.opencode.run("session", "delete", session)
        await gone(ana, session)
    await asyncio.sleep(6.0)
    for machine in (ana, ben):
        assert await machine.opencode.request("GET", "/session") == []


async def test_a_project_folder_that_was_moved_goes_on(team: Team) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ben.opencode.create_session("moved")
    await ben.opencode.prompt(session, "hello")
    await same_history(session, ana, ben)
    await ben.opencode.stop()
    elsewhere = ben.project.with_name("elsewhere")
    ben.project.rename(elsewhere)
    ben.project = ben.opencode.project = elsewhere
    await ben.opencode.start()
    await ben.attached()

    async def is_here() -> bool:
        return bool((await ben.opencode.session(session))["directory"] == str(elsewhere))

    await until(is_here)
    await ben.opencode.prompt(session, "goes on")
    await ana.opencode.prompt(session, "here too")
    assert str(elsewhere) not in await ana.history(session)


async def test_a_session_deleted_while_an_opencode_was_closed_is_gone_there_too(
    team: Team,
) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ana.opencode.create_session("short")
    await known(ben, session)
    await asyncio.sleep(1.0)
    await ben.opencode.stop()
    await asyncio.sleep(4.0)  # until the sidecar knows that it is closed
    await ana.opencode.request("DELETE", f"/session/{session}")
    await gone(ana, session)
    await ben.opencode.start()
    await ben.attached()
    await gone(ben, session)


async def test_a_suspended_opencode_does_not_hold_up_another_on_the_same_home(
    team: Team, binary: Path, model: Model
) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ana.opencode.create_session("suspended")
    await known(ben, session)
    second = Opencode(
        ben.opencode.folder,
        ben.project,
        binary=binary,
        model_url=model.url,
        plugins=[PLUGIN],
        environ={"SESSIOND_SOCKET": str(ben.sidecar.socket)},
    )
    await second.start()

    async def are_both_attached() -> bool:
        attached = (await ben.overview())["instances"]
        return [each["machine"] for each in attached].count("ben") == 2

    await until(are_both_attached)
    ben.opencode.suspend()
    try:
        await ana.opencode.prompt(session, "is anybody there?")
        await until(lambda: second.texts(session), 15)
        await second.prompt(session, "I am")
        assert "is anybody there?" in model.turn_requests("I am")[-1].said
    finally:
        ben.opencode.suspend(on=False)
        await second.stop()


async def go_back(ana: Machine, ben: Machine) -> str:
    """Return a session in which ana went back to before its second turn, and ben then went on."""
    session = await ana.opencode.create_session("reverted")
    await ana.opencode.prompt(session, "first")
    await ana.opencode.prompt(session, "second")
    await same_history(session, ana, ben)
    second = (await ana.opencode.messages(session))[2]["info"]["id"]
    await ana.opencode.request("POST", f"/session/{session}/revert", {"messageID": second})
    await ben.opencode.prompt(session, "ben's later")
    await same_history(session, ana, ben)
    return session


async def asked(machine: Machine, session: str) -> list[str]:
    """What people said in a session."""
    return [text for role, text in await machine.turns(session) if role == "user"]


async def test_what_others_said_after_a_revert_outlives_it(team: Team, model: Model) -> None:
    ana, ben = await team.start("ana", "ben")
    events = await ana.events()
    session = await go_back(ana, ben)
    toast = await events.wait_for_type("tui.toast.show")
    assert "where you went back" in toast.properties["message"]
    await ana.opencode.prompt(session, "ana's new")
    said = [each.get("content") for each in model.turn_requests("ana's new")[-1].messages]
    assert "ben's later" in said
    assert "second" not in said
    await same_history(session, ana, ben)
    for machine in (ana, ben):
        assert await asked(machine, session) == ["first", "ben's later", "ana's new"]
    assert len(await ana.turns(session)) == 6
    assert len(events.of("tui.toast.show")) == 1
    assert len(model.turn_requests()) == 4
    events.close()


async def test_it_outlives_a_revert_though_the_sidecar_was_away(team: Team, model: Model) -> None:
    ben, ana = await team.start("ben", "ana")  # the Redis is ben's
    session = await go_back(ana, ben)
    await asyncio.to_thread(ana.sidecar.kill)
    await ana.opencode.prompt(session, "ana's new")
    await ana.start_sidecar()
    await ana.attached()
    await same_history(session, ana, ben)
    for machine in (ana, ben):
        assert await asked(machine, session) == ["first", "ben's later", "ana's new"]
    assert len(model.turn_requests()) == 4


async def test_a_turn_that_runs_elsewhere_outlives_a_prompt_after_a_revert(
    team: Team, model: Model
) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await go_back(ana, ben)
    with model.holding("SLOW:8", pieces=4) as gate:
        await ben.opencode.prompt_async(session, "SLOW:8")
        await until(lambda: gate.held)
        await until(lambda: _said(ana, session, "SLOW:8"))
        events = await ana.events()
        prompt = asyncio.ensure_future(ana.opencode.prompt(session, "ana's new"))
        await events.wait_for_type("message.removed", session)
    await prompt
    await same_history(session, ana, ben)
    for machine in (ana, ben):
        assert await asked(machine, session) == ["first", "ben's later", "SLOW:8", "ana's new"]
    assert len(await ana.turns(session)) == 8
    assert len(model.turn_requests()) == 5
    events.close()


async def _said(machine: Machine, session: str, text: str) -> bool:
    return text in await asked(machine, session)

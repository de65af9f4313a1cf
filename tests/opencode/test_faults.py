"""What goes wrong while opencodes share a session, and that it comes right again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.opencode.machines import Machine, Team, known, lengthen, same_history
from tests.opencode.model import Model
from tests.opencode.waiting import until

AWAY_SECONDS = 60
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


async def test_three_instances_prompt_at_once(team: Team, model: Model) -> None:
    machines = await team.start("ana", "ben", "cleo")
    session = await machines[0].opencode.create_session("three")
    for machine in machines:
        await known(machine, session)
    await asyncio.gather(
        *(machine.opencode.prompt(session, f"from {machine.name}") for machine in machines)
    )
    await same_history(session, *machines)
    assert len(model.turn_requests()) == 3


async def test_an_opencode_killed_in_its_turn_loses_nothing_that_was_complete(
    team: Team, model: Model
) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ana.opencode.create_session("killed")
    await known(ben, session)
    with model.holding("TOOL:echo done"):
        await ana.opencode.prompt_async(session, "TOOL:echo done")
        await until(model.turn_requests)
    with model.holding("Tool said"):
        await until(lambda: len(model.turn_requests()) == 2)
        await ana.opencode.kill()
    await ben.opencode.prompt(session, "go on without her", seconds=30)
    parts = [part for message in await ben.opencode.messages(session) for part in message["parts"]]
    assert any(
        part["type"] == "tool" and "done" in part["state"].get("output", "") for part in parts
    )
    await ana.opencode.start()
    await ana.attached()
    await same_history(session, ana, ben)


async def test_a_sidecar_killed_in_a_turn_catches_up(team: Team, model: Model) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ben.opencode.create_session("sidecar")
    await known(ana, session)
    with model.holding("SLOW:6", pieces=3) as gate:
        await ben.opencode.prompt_async(session, "SLOW:6")
        await until(lambda: gate.held)
        await asyncio.to_thread(ben.sidecar.kill)
    await until(lambda: _idle(ben, session))
    await ben.start_sidecar()
    await same_history(session, ana, ben)
    await ana.opencode.prompt(session, "and now?")
    assert len(model.turn_requests()) == 2
    await same_history(session, ana, ben)


async def test_a_redis_killed_in_a_turn_is_caught_up_with(team: Team, model: Model) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ben.opencode.create_session("redis")
    await known(ana, session)
    with model.holding("SLOW:6", pieces=3) as gate:
        await ben.opencode.prompt_async(session, "SLOW:6")
        await until(lambda: gate.held)
        os.kill(_redis_pid(ana), signal.SIGKILL)
    await until(lambda: _idle(ben, session))
    await same_history(session, ana, ben, seconds=40)
    await ana.opencode.prompt(session, "and now?")
    await same_history(session, ana, ben)
    assert len(model.turn_requests()) == 2


@pytest.mark.timeout(300)
async def test_two_work_on_while_redis_is_away_for_a_minute_and_no_turn_is_lost(
    team: Team, model: Model
) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ana.opencode.create_session("a minute")
    await known(ben, session)
    redis = _redis_pid(ana)
    os.kill(redis, signal.SIGSTOP)
    began = time.monotonic()
    said: list[str] = []
    try:
        for number in range(3):
            for machine in (ana, ben):
                said.append(f"{machine.name} alone {number}")
                await machine.opencode.prompt(session, said[-1], seconds=30)
        new = await ben.opencode.create_session("made meanwhile")
        await ben.opencode.prompt(new, "in the new one", seconds=30)
        await asyncio.sleep(max(0.0, began + AWAY_SECONDS - time.monotonic()))
    finally:
        os.kill(redis, signal.SIGCONT)
    await known(ana, new)
    await same_history(new, ana, ben)
    history = await same_history(session, ana, ben, seconds=60)
    for text in said:
        assert history.count(f'"text": "{text}"') == 1, text
        assert f"]: {text}" in history, f"the answer to {text}"
    await ana.opencode.prompt(session, "together again")
    await same_history(session, ana, ben)


async def test_work_without_a_sidecar_is_sent_later(team: Team, model: Model) -> None:
    ana, ben = await team.start("ana", "ben")
    old = await ben.opencode.create_session("before")
    await known(ana, old)
    await asyncio.to_thread(ben.sidecar.kill)
    began = time.monotonic()
    await ben.opencode.prompt(old, "alone")
    assert time.monotonic() - began < 10
    fresh = await ben.opencode.create_session("while it was away")
    await ben.opencode.prompt(fresh, "alone too")
    await ben.start_sidecar()
    await same_history(old, ana, ben)
    await known(ana, fresh)
    await same_history(fresh, ana, ben)


async def test_a_run_that_exits_at_once_is_sent_whole(team: Team) -> None:
    ana, ben = await team.start("ana", "ben")
    await ben.opencode.run("run", "a single question")
    sessions = await ben.opencode.request("GET", "/session")
    (session,) = [each["id"] for each in sessions]
    await known(ana, session)
    history = await same_history(session, ana, ben)
    assert "a single question" in history


@pytest.mark.parametrize("is_away", [False, True])
async def test_what_an_opencode_with_sharing_off_begins_stays_here(
    team: Team,
    is_away: bool,  # noqa: FBT001 - a parameter
) -> None:
    ana, ben = await team.start("ana", "ben")
    await ben.opencode.stop()
    if is_away:
        await asyncio.to_thread(ben.sidecar.stop)
    ben.opencode.environ["SESSIOND_SHARE"] = "off"
    await ben.opencode.start()
    private = await ben.opencode.create_session("mine")
    await ben.opencode.prompt(private, "for nobody else")
    await ben.opencode.stop()
    del ben.opencode.environ["SESSIOND_SHARE"]
    if is_away:
        await ben.start_sidecar()
    await ben.opencode.start()
    await ben.attached()
    public = await ben.opencode.create_session("ours")
    await known(ana, public)
    sessions = await ana.opencode.request("GET", "/session")
    assert [each["id"] for each in sessions] == [public]
    states = {each["session_id"]: each["state"] for each in (await ben.overview())["sessions"]}
    assert states[private] == "private"


async def test_both_sides_restart_in_any_order(team: Team) -> None:
    ana, ben = await team.start("ana", "ben")
    session = await ana.opencode.create_session("restarts")
    await known(ben, session)
    for first, second in ((ana, ben), (ben, ana)):
        await ana.opencode.prompt(session, f"{first.name} goes first")
        for machine in (first, second):
            await machine.opencode.kill()
        await asyncio.to_thread(ben.sidecar.stop)
        await first.opencode.start()
        await first.opencode.prompt(session, "alone")
        await ben.start_sidecar()
        await second.opencode.start()
        await asyncio.gather(ana.attached(), ben.attached())
        await same_history(session, ana, ben)


@pytest.mark.parametrize("offset", ["+1h", "-1h"])
async def test_a_clock_that_is_an_hour_off_makes_nobody_ignore_a_prompt(
    team: Team, model: Model, offset: str
) -> None:
    assert FAKETIME, "this test needs libfaketime (Debian: apt-get install faketime)"
    wrong = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": offset}
    (ana,) = await team.start("ana")
    ben = team.add("ben", environ=wrong)
    ben.sidecar.environ |= wrong
    await ben.start()
    session = await ana.opencode.create_session("clocks")
    await known(ben, session)
    for number, machine in enumerate((ana, ben, ana, ben)):
        await machine.opencode.prompt(session, f"prompt {number}")
        await until(lambda: _same_texts(session, ana, ben))
    assert len(model.turn_requests()) == 4
    assert [role for role, _ in await ben.turns(session)] == ["user", "assistant"] * 4
    off = abs(_created(ben, session) - time.time())
    assert 3000 < off < 4000, "the clock of one machine was to be wrong"
    assert abs(_created(ana, session) - time.time()) < 300


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_is_set_during_work_makes_nobody_ignore_a_prompt(
    team: Team, model: Model, hours: int
) -> None:
    assert FAKETIME, "this test needs libfaketime (Debian: apt-get install faketime)"
    (ben,) = await team.start("ben")
    clock = team.folder / "clock"
    clock.write_text("+0\n")
    settable = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # else each change of threads takes 20 ms
    }
    ana = team.add("ana", environ=settable)
    ana.sidecar.environ |= settable
    await ana.start()
    session = await ana.opencode.create_session("set")
    await known(ben, session)
    prompts: list[str] = []
    for offset in (0, hours, 0):
        await until(lambda: _rests(ana))
        clock.with_name("next").write_text(f"{offset * 3600:+d}\n")
        clock.with_name("next").replace(clock)
        for machine in (ana, ben, ana):
            prompts.append(f"prompt {len(prompts)}")
            await machine.opencode.prompt(session, prompts[-1])
            assert len(model.turn_requests()) == len(prompts)
            assert model.turn_requests()[-1].said == prompts
    await until(lambda: _same_texts(session, ana, ben))
    assert [text for role, text in await ben.turns(session) if role == "user"] == prompts


async def test_a_thousand_messages_reach_one_that_joins_late(team: Team, model: Model) -> None:
    (ana,) = await team.start("ana")
    session = await ana.opencode.create_session("long")
    await ana.opencode.prompt(session, "hello")
    await same_history(session, ana)  # so that nothing else is logged meanwhile
    await lengthen(ana, session, 1000)
    ben = team.add("ben")
    await ben.start()
    began = time.monotonic()
    await known(ben, session)
    assert time.monotonic() - began < 1.0
    await same_history(session, ana, ben, seconds=30)
    assert len(await ben.opencode.messages(session)) == 1002


def _redis_pid(machine: Machine) -> int:
    told = subprocess.run(
        ["redis-cli", "-s", machine.sidecar.redis_socket, "info", "server"],
        capture_output=True,
        check=True,
        text=True,
        timeout=10,
    ).stdout
    return int(next(line for line in told.splitlines() if line.startswith("process_id:"))[11:])


def _created(machine: Machine, session: str) -> float:
    """When a session's last message was written, by that machine's own clock (s)."""
    query = "SELECT max(time_created) AS at FROM message WHERE session_id = ?"
    (row,) = machine.opencode.sql(query, session)
    return float(row["at"]) / 1000


async def _rests(machine: Machine) -> bool:
    """Whether a machine's sidecar knows that every turn has ended."""
    return not any(each["turns"] for each in (await machine.overview())["instances"])


async def _idle(machine: Machine, session: str) -> bool:
    messages = await machine.opencode.messages(session)
    last = messages[-1]["info"]
    return last["role"] == "assistant" and "completed" in last["time"]


async def _same_texts(session: str, *machines: Machine) -> bool:
    texts = [await machine.turns(session) for machine in machines]
    return all(each == texts[0] for each in texts)

"""Presence across two daemons: who dies with its machine is missed by the other one."""

from __future__ import annotations

import asyncio
import time

import msgspec

from sessiond.client import DaemonClient
from sessiond.model import Live, NewSession
from tests.daemons import RunningDaemon, running_daemon

LIFE_SECONDS = 1.0
SWEEP_SECONDS = 5.0


async def test_a_machine_that_dies_is_told_of_though_nobody_asks(
    laptop: RunningDaemon, here: DaemonClient
) -> None:
    session_id = (await here.create(NewSession())).metadata.session_id
    url = f"unix://{laptop.redis_socket}"
    with running_daemon("--instance", "desktop", "--redis-url", url, start=False) as desktop:
        desktop.environ["SESSIOND_SYNC_PRESENCE_SECONDS"] = str(LIFE_SECONDS)
        await asyncio.to_thread(desktop.start)
        there = DaemonClient(socket=str(desktop.socket), name="there")
        async with here.events(session_id, "0") as events:
            assert (await anext(events)).name == "session.create"
            await there.announce(session_id, "ann", ["a.py"])
            desktop.kill()
            died = time.monotonic()
            told = [msgspec.json.decode((await anext(events)).data, type=Live) for _ in range(2)]
            took = time.monotonic() - died
        await there.close()
    assert [live.body["presence"]["change"] for live in told] == ["came", "lost"]
    assert told[1].body["presence"]["who"]["machine"] == "desktop"
    assert took < LIFE_SECONDS + SWEEP_SECONDS + 2
    assert (await here.presence(session_id)).present == []

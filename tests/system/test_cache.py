"""The cache through real daemons: shared by two of them, and no error while Redis is away."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from sessiond.client import DaemonClient
from sessiond.manager.session_cache import SessionCache
from sessiond.model import Context, NewSession
from tests.api.servers import DurableServer
from tests.daemons import running_daemon
from tests.system.observing import until

OLD = str(Path(os.__file__).parent)
"""A folder of files that nobody changes: those of Python itself."""


async def test_two_daemons_share_it_and_without_redis_nothing_is_found_at_once(
    server: DurableServer,
) -> None:
    url = ("--redis-url", server.url)
    with (
        running_daemon(*url, "--instance", "here") as one,
        running_daemon(*url, "--instance", "there") as other,
    ):
        here, there = DaemonClient(socket=str(one.socket)), DaemonClient(socket=str(other.socket))
        worked_on = Context(active_files=["${WORKTREE}/abc.py", "/elsewhere"])
        await here.create(NewSession(session_id="s", context=worked_on))
        caches = SessionCache(here, "s", OLD), SessionCache(there, "s", OLD)
        for path in ("abc.py", "os.py"):
            assert (await caches[0].put(await caches[0].get("cat", path=path), "text")).stored
        found = await caches[1].get("cat", path="os.py")
        assert (found.value, found.answer.machine) == ("text", "here")

        await asyncio.sleep(1)  # nobody is told when what may be asked for next was loaded
        server.kill()
        began = time.monotonic()
        for number in range(20):
            missed = await caches[0].get("cat", number, path="os.py")
            assert (missed.answer.outcome, missed.answer.reason) == (
                "miss",
                "Redis does not answer",
            )
            assert not (await caches[0].put(missed, "text")).stored
        assert time.monotonic() - began < 5
        for path in ("os.py", "abc.py"):  # the second was never asked for there
            assert (await caches[1].get("cat", path=path)).value == "text", "from its memory"

        server.start()

        async def works_again() -> bool:
            return (await caches[0].put(await caches[0].get("wc", path="os.py"), 1)).stored

        await until(works_again)
        await here.close()
        await there.close()

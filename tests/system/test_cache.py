"""The cache through real daemons: shared by two of them, and no error while Redis is away."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sessiond.client import DaemonClient
from sessiond.model import NewSession
from sessiond.session_cache import SessionCache
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
        await here.create(NewSession(session_id="s"))
        caches = SessionCache(here, "s", OLD), SessionCache(there, "s", OLD)
        assert (await caches[0].put(await caches[0].get("cat", path="os.py"), "text")).stored
        found = await caches[1].get("cat", path="os.py")
        assert (found.value, found.answer.machine) == ("text", "here")

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
        assert (await caches[1].get("cat", path="os.py")).value == "text", "from its memory"

        server.start()

        async def works_again() -> bool:
            return (await caches[0].put(await caches[0].get("wc", path="os.py"), 1)).stored

        await until(works_again)
        await here.close()
        await there.close()

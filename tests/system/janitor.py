"""A janitor process: `python -m tests.system.janitor URL INSTANCE LIFE_MS`.

It waits for a line on its input, cleans up once, deleting what was archived for a day, and prints
how many it deleted, or the code of the error.
"""

from __future__ import annotations

import asyncio
import sys

import structlog

from sessiond.config.options import Configuration
from sessiond.core import Core
from sessiond.errors import SessiondError
from sessiond.policy.retention import HOUR_MS, Limits
from sessiond.service.retention.cleanup import Cleanup, Stores
from sessiond.store.janitor import JanitorStore

LIMITS = Limits(max_sessions=1, max_age_days=1, delete_archived_days=1)


def cleanup_of(core: Core, instance: str, life_ms: int) -> Cleanup:
    stores = Stores(
        around=core.around,
        conflicts=core.conflicts,
        use=core.use,
        janitor=JanitorStore(core.redis, core.keys, life_ms),
        has_waiting=lambda _: False,
        archiver=core.archiving,
    )
    return Cleanup(stores, LIMITS, interval_ms=HOUR_MS, instance=instance)


async def main(url: str, instance: str, life_ms: int) -> None:
    core = Core(url, Configuration(), instance=instance)
    await core.redis_answers()
    _say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    try:
        report = await cleanup_of(core, instance, life_ms).run()
        _say(str([found.outcome for found in report.found].count("deleted")))
    except SessiondError as error:
        _say(error.code)
    await core.close()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))

"""How much a journal may hold, and what it is given instead of reaching for it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from msgspec import Struct, field

from sessiond.journal.connection import Connect, connect
from sessiond.journal.executor import Executor, OwnThread

MIB = 1024 * 1024


def _system_clock() -> int:
    return time.time_ns() // 1_000_000


class JournalOptions(Struct, frozen=True):
    """Bounds, and the journal's surroundings.

    Args:
        limit_bytes: unconfirmed entries, in all; beyond them `append` is refused.
        kept_bytes: confirmed entries that are kept, for replay after a rollback of Redis.
        kept_seconds: how long they are kept at most, counted from their confirmation.
        clock: milliseconds since 1970.
        entropy: returns that many random bytes.
        connect: opens the SQLite file; tests put a failing disk below it.
        executor: begins what does all work on the file, beside the event loop.
    """

    limit_bytes: int = 256 * MIB
    kept_bytes: int = 64 * MIB
    kept_seconds: float = 86_400.0
    clock: Callable[[], int] = _system_clock
    entropy: Callable[[int], bytes] = secrets.token_bytes
    connect: Connect = field(default=connect)
    executor: Callable[[], Executor] = OwnThread

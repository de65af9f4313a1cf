"""What tests of cleaning up share: a clean-up on a test's services, and a simple archiver."""

from __future__ import annotations

from collections.abc import Callable

from sessiond.policy.retention import HOUR_MS, Limits
from sessiond.service.retention.cleanup import Archiver, Cleanup, Stores
from sessiond.service.writing import Request, Surroundings
from sessiond.store.conflicts import ConflictStore
from sessiond.store.janitor import JanitorStore
from sessiond.store.use import UseStore
from tests.store.support import Services


class MarkingArchiver:
    """Archives by the session's status alone. `names`: which, in order."""

    def __init__(self, core: Services) -> None:
        self._core = core
        self.names: list[str] = []

    async def archive(self, session_id: str, request: Request) -> None:
        end = str(await self._core.sessions.position(session_id))
        assert request.expected == end, "the janitor saw another session"
        await self._core.documents.change(session_id, "metadata", {"status": "archived"})
        self.names.append(session_id)


def cleanup_on(
    core: Services,
    limits: Limits,
    archiver: Archiver | None = None,
    *,
    life_ms: int = 60_000,
    instance: str = "here",
    has_waiting: Callable[[str], bool] = lambda _: False,
) -> Cleanup:
    """Return what cleans up a test's sessions, once a day."""
    stores = Stores(
        around=Surroundings(core.store, ConflictStore(core.redis, core.keys), clock=core.clock),
        conflicts=core.conflicts,
        use=UseStore(core.redis, core.keys),
        janitor=JanitorStore(core.redis, core.keys, life_ms),
        has_waiting=has_waiting,
        archiver=archiver or core.archiving,
    )
    return Cleanup(stores, limits, interval_ms=24 * HOUR_MS, instance=instance)

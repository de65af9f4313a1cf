"""What may be promised of what a daemon acknowledges, in words that hold on its installation.

The sentences were weighed word by word and are never paraphrased: a user may rely on them. Which
of them hold is decided here, from facts alone.
"""

from __future__ import annotations

from msgspec import Struct

from sessiond.service.status import Promise
from sessiond.store.probe import ServerFacts, ServerSettings, Waitaof

JOURNALED = (
    "survives process and power failure of this machine if its disk honours fdatasync; enters the "
    "session's order once Redis is reachable; lost only if this journal is lost first."
)
COMMITTED = (
    "appends to a session are linearizable within one epoch. A crash of Redis may roll back a "
    "recent suffix (none with `appendfsync always`); rolled-back operations are re-inserted from "
    "their writers' journals, perhaps at new offsets, and observers see a new epoch."
)
FAILOVER = (
    "eventually consistent across a failover; acknowledged commits may be reordered and are "
    "restored from surviving journals."
)
MEMORY = (
    "is in memory only (`persistence.enabled: false`): it is lost when this daemon ends, however "
    "that happens; until then it has its place in the session's order."
)
DELIVERY = "effectively once while journal and dedupe window are kept"


class Installation(Struct, frozen=True, kw_only=True):
    """What a daemon stands on.

    Args:
        server: what its Redis says of itself.
        settings: what else it tells this user.
        waitaof: what its WAITAOF is worth.
        owned: whether the daemon started that Redis.
        waiting: journaled writes that wait for Redis.
        wanted_replicas: that are to confirm a write; 0 with `redis.durability: local`.
        degraded_since: since when they do not, in words; empty while they do.
        clock_ahead_ms: how far the machine's clock is ahead of Redis's; 0 when about right.
        in_memory: whether all that the daemon keeps goes with it.
    """

    server: ServerFacts
    settings: ServerSettings = ServerSettings()
    waitaof: Waitaof = ""
    owned: bool = False
    waiting: int = 0
    wanted_replicas: int = 0
    degraded_since: str = ""
    clock_ahead_ms: int = 0
    in_memory: bool = False

    @property
    def can_fail_over(self) -> bool:
        """Whether another server may take this one's place."""
        return bool(self.server.replicas or self.wanted_replicas)


def promises(here: Installation) -> list[Promise]:
    """Return what may be said of `journaled`, `committed`, a failover and delivery."""
    committed = MEMORY if here.in_memory else COMMITTED
    said = [
        *promises_without_redis(in_memory=here.in_memory),
        Promise(of="committed", promise=committed),
        Promise(of="here", promise=_so(here)),
    ]
    if here.can_fail_over:
        said.append(Promise(of="failover", promise=FAILOVER))
    return said


def promises_without_redis(*, in_memory: bool = False) -> list[Promise]:
    """Return what may be said even while Redis is away."""
    return [
        Promise(of="journaled", promise=MEMORY if in_memory else JOURNALED),
        Promise(of="delivery", promise=DELIVERY),
    ]


def _so(here: Installation) -> str:
    """Say which case of the promise this is."""
    whose = "the embedded server" if here.owned else "this server"
    said = f"{whose} runs with {_persistence(here)}"
    if here.wanted_replicas:
        count = here.wanted_replicas
        said += f"; {count} replica{'s' * (count > 1)} confirm{'s' * (count == 1)} each write"
        said += " before it is acknowledged, or the answer says that it is degraded"
    return said


def _persistence(here: Installation) -> str:
    if not here.server.aof:
        return "appendonly no: what was written since its last snapshot is lost in a crash"
    fsync = here.settings.appendfsync
    if fsync is None:
        return "an appendfsync that it does not tell: take it for everysec"
    return f"appendfsync {fsync}"

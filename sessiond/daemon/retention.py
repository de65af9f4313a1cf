"""Retention, put together: what a daemon cleans up with, and when."""

from __future__ import annotations

from sessiond.config import RetentionOptions
from sessiond.core import Core
from sessiond.daemon.durable import DurableWrites
from sessiond.policy.retention import HOUR_MS, Limits
from sessiond.service.retention.cleanup import Cleanup, Stores
from sessiond.store.janitor import JanitorStore

_JANITOR_SECONDS = 60
"""How long another daemon waits for a janitor that stopped."""


def open_cleanup(
    core: Core,
    durable: DurableWrites,
    options: RetentionOptions,
    *,
    instance: str,
) -> Cleanup:
    """Return what cleans up the sessions of a daemon's Redis.

    Args:
        core: the services on that Redis.
        durable: knows what waits on this machine.
        options: how much is kept.
        instance: the name under which others see who does it.
    """
    stores = Stores(
        around=core.around,
        conflicts=core.conflicts,
        use=core.use,
        janitor=JanitorStore(core.redis, core.keys, _JANITOR_SECONDS * 1000),
        has_waiting=lambda session_id: bool(durable.outbox.waiting(session_id)),
        archiver=core.archiving,
    )
    limits = Limits(options.max_sessions, options.max_age_days, options.delete_archived_days)
    interval_ms = options.cleanup_interval_hours * HOUR_MS
    return Cleanup(stores, limits, interval_ms=interval_ms, instance=instance)

"""What a daemon finds about itself, its folders and its Redis: asked here, judged in `service`."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import structlog

from sessiond.core import Core
from sessiond.daemon.mirrored import MirroredFiles
from sessiond.daemon.troubleshooting import Troubleshooter
from sessiond.errors import ConfigurationError, SessiondError
from sessiond.folders import own_fault
from sessiond.journal import Journal
from sessiond.service.clock import Skew, timestamp
from sessiond.service.finding import failed
from sessiond.service.health.checks import (
    FolderFacts,
    check_server,
    findings,
    folder_finding,
    journal_finding,
)
from sessiond.service.health.promise import Installation, promises, promises_without_redis
from sessiond.service.status import Diagnosis, DurabilityStatus
from sessiond.store.probe import Waitaof, read_settings, server_ms, try_waitaof

_PERIOD_SECONDS = 5.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Examiner:
    """Looks at an installation.

    Args:
        core: the services on the Redis in question.
        journal: the daemon's.
        owned: whether the daemon started that Redis.
        in_memory: whether all that the daemon keeps goes with it.
        files: its JSON files.
        folders: the daemon's folders by name; what is not there is left out.
        troubles: looks at the sessions, and at what slows them down.
    """

    def __init__(
        self,
        core: Core,
        journal: Journal,
        files: MirroredFiles,
        *,
        owned: bool,
        in_memory: bool,
        folders: dict[str, Path],
        troubles: Troubleshooter,
    ) -> None:
        self._core = core
        self._journal = journal
        self._files = files
        self._owned = owned
        self._in_memory = in_memory
        self._folders = folders
        self._troubles = troubles
        self._run_id = self._fault = ""
        self._waitaof: Waitaof = ""

    async def watch(self) -> None:
        """Look at the server now and then, and tell when it stops or begins to be fit; for ever."""
        while True:
            try:
                await self.look()
                self._tell_fitness("", "")
            except ConfigurationError as error:
                self._tell_fitness(error.detail, error.hint)
            except SessiondError:  # away: whoever needs it tells so
                self._run_id = ""
            await asyncio.sleep(_PERIOD_SECONDS)

    async def look(self) -> None:
        """Check the server; if it is another one than before, find out what takes a while, too.

        Raises:
            ConfigurationError: it could not keep what it is given.
            StoreUnavailable: it does not answer.
        """
        core, facts = self._core, await self._core.facts()
        check_server(facts)
        if facts.run_id == self._run_id:
            return
        self._run_id, self._waitaof = facts.run_id, ""
        if facts.aof:
            self._waitaof = await try_waitaof(core.redis, core.keys.probe)

    def _tell_fitness(self, fault: str, hint: str) -> None:
        if fault and fault != self._fault:
            _log.error("redis.unfit", reason=fault, hint=hint)
        elif self._fault and not fault:
            _log.info("redis.fit")
        self._fault = fault

    async def diagnose(self) -> Diagnosis:
        """Return what is found, and what can be promised; also while Redis is away."""
        folders = [_look_at(name, path) for name, path in self._folders.items() if path.exists()]
        waiting = (await self._journal.status()).pending
        try:
            here = await self._installation(waiting)
            troubles = await self._troubles.findings()
        except SessiondError as error:
            found = [failed("redis", error.detail, error.hint, code=error.code)]
            found += [journal_finding(waiting), *map(folder_finding, folders)]
            said = promises_without_redis(in_memory=self._in_memory)
            return Diagnosis(findings=[*found, *await self._files.findings()], promises=said)
        found = [*findings(here, folders), *await self._files.findings(), *troubles]
        return Diagnosis(findings=found, promises=promises(here))

    async def _installation(self, waiting: int) -> Installation:
        core, skew = self._core, Skew()
        await skew.measure(lambda: server_ms(core.redis))
        durability = durability_of(core)
        return Installation(
            server=await core.facts(),
            settings=await read_settings(core.redis),
            waitaof=self._waitaof,
            owned=self._owned,
            waiting=waiting,
            wanted_replicas=durability.replicas,
            degraded_since=durability.degraded_since or "",
            clock_ahead_ms=skew.ahead_ms(),
            in_memory=self._in_memory,
        )


def durability_of(core: Core) -> DurabilityStatus:
    """Return what acknowledgements wait for, and whether they get it."""
    acks = core.replicas
    if acks is None:
        return DurabilityStatus(mode="local", replicas=0, degraded_since=None, degraded_writes=0)
    since = acks.degraded_since
    return DurabilityStatus(
        mode="replica",
        replicas=acks.wanted,
        degraded_since=None if since is None else timestamp(since),
        degraded_writes=acks.degraded_writes,
    )


def _look_at(name: str, path: Path) -> FolderFacts:
    try:
        fault = own_fault(path.stat(), uid=os.geteuid())
        return FolderFacts(name, path, fault, shutil.disk_usage(path).free)
    except OSError as error:
        return FolderFacts(name, path, f"cannot be read: {error.strerror}", 0)

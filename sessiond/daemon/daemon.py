"""The daemon: the one place where everything is put together, started and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from sessiond import config
from sessiond.api.archive import ArchiveHandlers, archive_routes
from sessiond.api.caching import CacheHandlers, cache_routes
from sessiond.api.cleanup import CleanupHandlers, cleanup_routes
from sessiond.api.guard import Guard
from sessiond.api.handlers import Handlers, Services
from sessiond.api.journal import JournalHandlers, journal_routes
from sessiond.api.opencode import OpencodeHandlers, opencode_routes
from sessiond.api.repairing import RepairHandlers, repair_routes
from sessiond.api.routes import routes
from sessiond.api.schema import openapi
from sessiond.api.server import ApiServer, application
from sessiond.api.sse import EventStreams
from sessiond.api.system import System
from sessiond.api.tracing import TraceHandlers, trace_routes
from sessiond.api.users import UserHandlers, user_routes
from sessiond.api.writing import WriteHandlers
from sessiond.config import Configuration
from sessiond.core import Core
from sessiond.daemon import sockets
from sessiond.daemon.diagnosis import Examiner
from sessiond.daemon.durable import DurableWrites
from sessiond.daemon.memory import give_large_blocks_back, give_the_rest_back
from sessiond.daemon.mirrored import MirroredFiles
from sessiond.daemon.offline import OfflineReading
from sessiond.daemon.places import begin_memory, embedded_options, end_memory, places
from sessiond.daemon.reporting import Place, Reporter
from sessiond.daemon.retention import open_cleanup
from sessiond.daemon.troubleshooting import LoopLag, Troubleshooter
from sessiond.errors import ConfigurationError, SessiondError, StoreUnavailable
from sessiond.logs import Logs
from sessiond.paths import api_socket, data_folder, host_name
from sessiond.service.clock import system_clock
from sessiond.service.health.checks import check_server
from sessiond.service.health.tracing import Hooks, Tracer
from sessiond.service.health.whole_scan import WholeScan
from sessiond.service.opencode.opencodes import Opencodes
from sessiond.service.opencode.outbox import Target
from sessiond.service.retention.cleanup import Cleanup
from sessiond.service.retention.compression import Compression
from sessiond.service.retention.schedule import CleanupSchedule
from sessiond.service.status import (
    Diagnosis,
    Health,
    KeyContent,
    Status,
)
from sessiond.store.blocks import BlockStore
from sessiond.store.connection import answered
from sessiond.store.draft import Draft
from sessiond.store.embedded.server import EmbeddedServer
from sessiond.store.inspection import read_key
from sessiond.store.outcome import Committed
from sessiond.store.probe import ServerFacts
from sessiond.store.traces import TraceStore

_BEAT_SECONDS = 5.0
_LIFETIME_MS = 20_000
_GRACE_SECONDS = 10.0
_TRIM_SECONDS = 3600.0
_SETTLED_SECONDS = 60.0
"""Beyond the retries of a write: then its entries may be compressed."""
_WAIT_FOR_EMBEDDED_SECONDS = 5.0
_WAIT_FOR_REDIS_SECONDS = 1.0


class Daemon:
    """One sidecar, from `start` to `stop`."""

    def __init__(self, configuration: Configuration, environ: Mapping[str, str]) -> None:
        self.configuration = configuration
        self.socket_path = api_socket(configuration.api.socket, environ)
        self.address: str | None = None
        self._environ = environ
        self._places = places(configuration, environ)
        self._logs = Logs(configuration.debug)
        self._log = self._logs.logger
        self._instance = configuration.sync.instance or host_name()
        self._began = time.monotonic()
        self._embedded: EmbeddedServer | None = None
        self._core: Core | None = None
        self._durable: DurableWrites | None = None
        self._offline: OfflineReading | None = None
        self._files: MirroredFiles | None = None
        self._opencodes: Opencodes | None = None
        self._examiner: Examiner | None = None
        self._cleanup: Cleanup | None = None
        self._reporter: Reporter | None = None
        self._tracer: Tracer | None = None
        self._server: ApiServer | None = None
        self._streams = EventStreams(configuration.sync.heartbeat_seconds)
        self._lag = LoopLag()
        self._bound = self._serving = False
        self._tasks: list[asyncio.Task[None]] = []
        self._token_file = (
            Path(configuration.api.token_file).expanduser()
            if configuration.api.token_file
            else self.socket_path.with_name("api.token")
        )

    async def run(self) -> None:
        """Start, work until SIGTERM or SIGINT, and stop."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for wanted in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(wanted, stopped.set)
        try:
            await self.start()
            _notify("READY=1")
            await stopped.wait()
            _notify("STOPPING=1")
        finally:
            await self.stop()

    async def start(self) -> None:
        """Start the embedded server if there is to be one, then serve.

        A Redis of somebody else may be away: what was seen before is read and writes are journaled
        until it answers.

        Raises:
            ConfigurationError, FolderHeld, EmbeddedServerFailed.
            StoreRefusesUser: Redis refuses this user.
            StoreUnavailable: the embedded server does not answer.
        """
        give_large_blocks_back()
        url = self.configuration.redis.url or await self._start_embedded()
        archives = data_folder(self._environ) / "archive" if self._embedded else None
        self._core = Core(
            url, self.configuration, instance=self._instance, default_archive=archives
        )
        facts = await self._reach(self._core)
        if self._core.replicas and facts:
            await answered(self._core.replicas.check())
        listening = self._bind()
        self._bound = True
        self._durable = durable = await self._open_durable(self._core)
        self._offline = offline = await self._open_offline(self._core, durable)
        self._opencodes = self._open_opencodes(self._core, offline)
        self._files = files = await self._open_files(self._core, durable)
        self._examiner = self._open_examiner(self._core, durable, files)
        self._cleanup = cleanup = self._open_cleanup(self._core, durable)
        self._reporter = self._open_reporter(self._core, durable, offline, files)
        self._tracer = tracer = self._open_tracer(self._core, durable, self._opencodes)
        self._trace_sessions()
        if facts is None:
            durable.redis.note_failure()
        scan = files.whole_scan(self._core.scanner)
        self._server = self._api(
            self._core, durable, offline, self._opencodes, scan=scan, listening=listening
        )
        durable.watch.call_in_doubt(self._opencodes.recheck)
        await durable.start()
        offline.start()
        files.start()
        await self._server.start(listening)
        self._opencodes.start()
        if facts:
            with contextlib.suppress(StoreUnavailable):  # full, or away by now: so is the next beat
                await self._beat_once()
        jobs = [self._beat(), self._trim(), self._examiner.watch(), CleanupSchedule(cleanup).run()]
        jobs += [self._lag.run(), tracer.run(), give_the_rest_back()]
        if self.configuration.performance.compression_enabled:
            jobs.append(self._compression(self._core).run())
        self._tasks = [asyncio.create_task(job) for job in jobs]
        self._log.info(
            "daemon.started",
            instance=self._instance,
            socket=str(self.socket_path),
            address=self.address,
            server=facts.version if facts else "away",
            duration_ms=round((time.monotonic() - self._began) * 1000),
        )
        self._serving = True

    async def stop(self) -> None:
        """Finish what was accepted, then stop everything that was started."""
        for task in self._tasks:
            task.cancel()
        if self._server:
            self._streams.close()
            await self._server.stop(_GRACE_SECONDS)
        for part in (self._opencodes, self._files, self._offline, self._durable):
            if part:
                await part.close()
        if self._core:
            with contextlib.suppress(SessiondError):
                await self._core.store.leave(self._instance)
            with contextlib.suppress(SessiondError):
                await self._core.close()
        if self._embedded:
            await self._embedded.stop()
            if self._places.memory:
                end_memory(self._places.memory)
        if self._bound:
            self.socket_path.unlink(missing_ok=True)
        if self._serving:
            self._log.info("daemon.stopped", instance=self._instance)

    async def health(self) -> Health:
        """Tell whether the daemon and its Redis can work."""
        return await self._reporting.health()

    async def status(self) -> Status:
        """Tell what the daemon does, also while its Redis is away."""
        return await self._reporting.status()

    async def diagnose(self) -> Diagnosis:
        """Return what is found about this daemon and its Redis, and what can be promised."""
        if self._examiner is None:
            raise RuntimeError("the daemon was not started")
        return await self._examiner.diagnose()

    def options(self) -> dict[str, str]:
        """Return the options in force, secrets hidden."""
        return {
            row.key: config.displayed(self.configuration, row.key) for row in config.option_table()
        }

    def change_options(self, changes: dict[str, str]) -> dict[str, str]:
        """Change options of the running daemon, all or none, and return all."""
        changed = self.configuration
        for name, text in changes.items():
            changed = config.with_value(changed, name, text)
            if name not in config.RUNTIME_OPTIONS:
                raise ConfigurationError(
                    f"{name} cannot change while the daemon runs",
                    hint=f"set it in sessions.yaml and restart; "
                    f"these can: {', '.join(sorted(config.RUNTIME_OPTIONS))}",
                )
        self.configuration = changed
        self._logs.level = changed.debug.log_level
        self._trace_sessions()
        return self.options()

    async def read_key(self, key: str, limit: int) -> KeyContent:
        """Return what a key of ours holds."""
        core = self._running
        kind, items, content = await read_key(core.redis, core.keys, key, limit)
        return KeyContent(key=key, type=kind, items=items, content=content)

    @property
    def _running(self) -> Core:
        if self._core is None:
            raise RuntimeError("the daemon was not started")
        return self._core

    @property
    def _tracing(self) -> Tracer:
        if self._tracer is None:
            raise RuntimeError("the daemon was not started")
        return self._tracer

    @property
    def _reporting(self) -> Reporter:
        if self._reporter is None:
            raise RuntimeError("the daemon was not started")
        return self._reporter

    @property
    def _cleaning(self) -> Cleanup:
        if self._cleanup is None:
            raise RuntimeError("the daemon was not started")
        return self._cleanup

    def _bind(self) -> list[socket.socket]:
        bound = [sockets.bind_unix(self.socket_path)]
        api = self.configuration.api
        if api.host:
            bound.append(sockets.bind_tcp(api.host, api.port))
            host = f"[{api.host}]" if ":" in api.host else api.host
            self.address = f"http://{host}:{bound[-1].getsockname()[1]}"
        return bound

    def _compression(self, core: Core) -> Compression:
        compression = Compression(
            core.store,
            BlockStore(core.redis, core.keys),
            settled_seconds=_SETTLED_SECONDS + self.configuration.sync.retry_seconds,
            now=time.monotonic,
        )
        core.store.on_commit.append(compression.note)
        return compression

    def _open_opencodes(self, core: Core, offline: OfflineReading) -> Opencodes:
        target = Target(
            core.sessions,
            core.store,
            core.opencode,
            core.documents,
            system_clock,
            revive=offline.revive,
        )
        folder = data_folder(self._environ) / "opencode"
        return Opencodes(
            target,
            core.feeds,
            core.leases,
            core.presences,
            folder=folder,
            machine=self._instance,
            writer=core.store.writer,
        )

    def _api(
        self,
        core: Core,
        durable: DurableWrites,
        offline: OfflineReading,
        opencodes: Opencodes,
        *,
        scan: WholeScan,
        listening: list[socket.socket],
    ) -> ApiServer:
        api = self.configuration.api
        guard = Guard(
            token=sockets.token(self._token_file) if api.host else "",
            port=listening[-1].getsockname()[1] if api.host else None,
            allowed_hosts=api.allowed_hosts,
            allowed_origins=api.allowed_origins,
        )
        services = Services(
            offline.reading,
            core.windows,
            core.sessions,
            core.conflicts,
            core.feeds,
            core.presences,
            self._streams,
        )
        system = System(self)
        plugin = OpencodeHandlers(opencodes, self._streams)
        writing = WriteHandlers(durable.outbox, offline.reading, lambda: core.is_degraded)
        journal = JournalHandlers(durable.journal, durable.outbox)
        repairer = core.repairer(
            offline.copied_log, durable.journaled_places, durable.outbox.confirmed.doubt
        )
        repairing = RepairHandlers(scan, repairer)
        table = [
            *trace_routes(TraceHandlers(self._tracing)),  # before the documents of any name
            *cache_routes(CacheHandlers(core.caches)),
            *routes(Handlers(services), writing, system),
            *opencode_routes(plugin),
            *journal_routes(journal),
            *repair_routes(repairing),
            *archive_routes(ArchiveHandlers(core.archiving)),
            *cleanup_routes(CleanupHandlers(self._cleaning)),
            *user_routes(UserHandlers(offline.preferences, durable.outbox)),
        ]
        system.openapi_document = openapi(table)
        return ApiServer(application(table, guard, max_body_bytes=api.max_body_bytes))

    async def _open_durable(self, core: Core) -> DurableWrites:
        folder = self._places.journal
        durable = await DurableWrites.open(core, folder, self.configuration.journal)
        for recovery in durable.journal.recoveries:
            self._log.error(
                "journal.recovered",
                reason="; ".join(recovery.findings),
                directory=recovery.quarantined,
                count=recovery.saved,
            )
        return durable

    def _open_examiner(self, core: Core, durable: DurableWrites, files: MirroredFiles) -> Examiner:
        folders = {
            "data folder": data_folder(self._environ),
            "journal folder": self._places.journal,
        }
        if self._embedded:
            folders["redis folder"] = self._places.redis
        return Examiner(
            core,
            durable.journal,
            files,
            owned=self._embedded is not None,
            in_memory=self._places.memory is not None,
            folders=folders,
            troubles=Troubleshooter(core, self._places.journal, self._lag),
        )

    async def _open_files(self, core: Core, durable: DurableWrites) -> MirroredFiles:
        owned = self._embedded is not None
        return await MirroredFiles.open(core, durable, self._places.files, owned=owned)

    def _open_cleanup(self, core: Core, durable: DurableWrites) -> Cleanup:
        options = self.configuration.retention
        return open_cleanup(core, durable, options, instance=self._instance)

    async def _open_offline(self, core: Core, durable: DurableWrites) -> OfflineReading:
        limit_mib = self.configuration.replica.limit_mib
        folder = self._places.replica
        return await OfflineReading.open(core, durable, folder, limit_mib=limit_mib)

    async def _start_embedded(self) -> str:
        if self._places.memory:
            begin_memory(self._places.memory)
        options = embedded_options(self.configuration, self._environ, self._places)
        self._embedded = EmbeddedServer(options, self._log)
        await self._embedded.start()
        return self._embedded.url

    async def _reach(self, core: Core) -> ServerFacts | None:
        """Find out what the server is; None where it is away, and may be.

        Raises:
            ConfigurationError: it could not keep what it is given.
            StoreRefusesUser: it refuses this user.
            StoreUnavailable: it is our own, and does not answer.
        """
        patience = _WAIT_FOR_EMBEDDED_SECONDS if self._embedded else _WAIT_FOR_REDIS_SECONDS
        deadline = time.monotonic() + patience
        while True:
            try:
                facts = await core.facts()
            except StoreUnavailable as error:
                if time.monotonic() < deadline:
                    await asyncio.sleep(0.1)
                    continue
                if self._embedded:
                    raise
                self._log.warning("daemon.starts_without_redis", reason=error.detail)
                return None
            check_server(facts)
            return facts

    def _open_reporter(
        self,
        core: Core,
        durable: DurableWrites,
        offline: OfflineReading,
        files: MirroredFiles,
    ) -> Reporter:
        embedded = self._embedded
        url = config.shown_address(embedded.url if embedded else self.configuration.redis.url)
        place = Place(
            instance=self._instance,
            socket=self.socket_path,
            address=self.address,
            token_file=self._token_file if self.address else None,
            url=url,
            owned=embedded is not None,
            redis_cli=embedded.cli_command if embedded else f"redis-cli -u {url}",
            in_memory=self._places.memory is not None,
        )
        return Reporter(
            core, durable, offline, self._cleaning, place, files=files, began=self._began
        )

    def _open_tracer(self, core: Core, durable: DurableWrites, opencodes: Opencodes) -> Tracer:
        store = core.store
        hooks = Hooks(
            on_write=durable.outbox.on_write,
            on_refused=durable.outbox.on_refused,
            on_send=store.on_send,
            on_commit=store.on_commit,
            on_seen=core.feeds.on_seen,
            on_applied=opencodes.on_applied,
        )
        return Tracer(TraceStore(core.redis, core.keys), self._instance, hooks)

    def _trace_sessions(self) -> None:
        told = self._running.store.on_commit
        if self._log_commit in told:
            told.remove(self._log_commit)
        if self.configuration.debug.sessions:
            told.append(self._log_commit)
        if self._tracer:
            self._tracer.switch(on=self.configuration.debug.sessions)

    def _log_commit(self, session_id: str, group: list[Draft], committed: Committed) -> None:
        for draft, position in zip(group, committed.positions, strict=True):
            self._log.info(
                f"session.{draft.op.replace('.', '_')}",
                session_id=session_id,
                id=draft.id,
                position=str(position),
                bytes=len(draft.json),
                client=draft.client or None,
                workspace=committed.workspace,
                duplicate=committed.duplicate,
            )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            with contextlib.suppress(SessiondError):  # away: readiness tells it
                await self._beat_once()

    async def _trim(self) -> None:
        """Drop what is kept for a time only, now and every hour."""
        while True:
            with contextlib.suppress(SessiondError):  # the next time, perhaps
                await self._running.conflicts.trim()
                await self._running.archiving.sweep()
            await asyncio.sleep(_TRIM_SECONDS)

    async def _beat_once(self) -> None:
        await self._running.store.beat(self._instance, system_clock(), _LIFETIME_MS)
        for session_id in self._running.feeds.watched:
            self._running.note_read(session_id)
        if self._opencodes:
            await self._opencodes.beat()
        with contextlib.suppress(SessiondError):  # a damaged index must not keep from starting
            await self._running.presences.sweep()


def _notify(state: str) -> None:
    """Tell systemd, if it started us and waits to hear (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier, contextlib.suppress(OSError):
        notifier.connect("\0" + address[1:] if address.startswith("@") else address)
        notifier.sendall(state.encode())

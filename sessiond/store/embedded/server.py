"""The embedded server: a Redis or Valkey that the daemon starts, watches and stops.

Two locks in the data folder keep it single. `daemon.lock` is held by the daemon for its life.
`server.lock` is held by the server process itself, which inherits it, so that it is locked for
exactly as long as a server runs on the folder, even when the daemon is killed with SIGKILL. The
server survives that, and the next daemon adopts it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sessiond.errors import ConfigurationError, EmbeddedServerFailed, SessiondError
from sessiond.folders import Holder, hold_folder, private_folder, read_holder, try_lock
from sessiond.store.embedded.binaries import Binary, find_binary, last_used_binary, record_binary
from sessiond.store.embedded.configuration import (
    LOG_FILE,
    Patience,
    ServerOptions,
    existing_password,
    obtain_password,
    require_short,
    server_url,
    shell_command,
)
from sessiond.store.embedded.launch import Launch, ended_early, launch
from sessiond.store.embedded.probe import (
    Identity,
    Unidentified,
    ask_to_shut_down,
    identify,
    is_listening,
)
from sessiond.store.embedded.process import ServerProcess

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

__all__ = [
    "Binary",
    "EmbeddedServer",
    "Patience",
    "ServerOptions",
    "find_binary",
    "last_used_binary",
]

SERVER_LOCK = "server.lock"

FIRST_RESTART_DELAY_S = 0.05
LONGEST_RESTART_DELAY_S = 2.0
STABLE_AFTER_S = 10.0
"""The death of a server that ran for this long is not counted with earlier ones."""

_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


class EmbeddedServer:
    """A server on a data folder, owned by this process from `start` to `stop`.

    In between a server that dies is restarted, after 50 ms at first and after 2 s at most. One
    that is merely stopped (SIGSTOP) is left alone.
    """

    def __init__(self, options: ServerOptions, log: FilteringBoundLogger) -> None:
        self.options = options
        self.version = ""
        """Name and version of the running server, such as "valkey 9.1.2"."""
        self.adopted = False
        """Whether an earlier daemon started the running server."""
        self.restarts = 0
        """How often the server died and was brought up again."""
        self._log = log
        self._folder = options.directory
        self._password: str | None = None
        self._process: ServerProcess | None = None
        self._daemon_lock: int | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The server's process; None when there is none."""
        return None if self._process is None else self._process.pid

    @property
    def url(self) -> str:
        """The URL for redis-py, complete once started; with a port it is a secret."""
        return server_url(self.options.socket, self._wanted_password)

    @property
    def cli_arguments(self) -> list[str]:
        """What a person passes to redis-cli to look inside; see also `cli_command`."""
        return ["-s", str(self.options.socket.absolute())]

    @property
    def cli_command(self) -> str:
        """The shell command for that, which takes the password, if there is one, from its file."""
        with_password = self.options.port != 0
        return shell_command(self.cli_arguments, self._folder, with_password=with_password)

    async def start(self) -> None:
        """Adopt the server that runs on the folder, or start one; return when it answers.

        Raises:
            ConfigurationError: a folder, the socket or the password file is not as it must be.
            FolderHeld: another daemon owns the folder.
            EmbeddedServerFailed: the server ended at once or did not answer in time, or the
                folder cannot be written to.
        """
        began = time.monotonic()
        self._take_folder()
        try:
            # One from a time with a port is needed to talk to the server of that time.
            password_of = obtain_password if self.options.port else existing_password
            self._password = password_of(self._folder)
            await self._bring_up()
        except BaseException as error:
            self._release_folder()
            if isinstance(error, OSError):
                raise _unusable(self._folder, error) from error
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="embedded-server")
        self._log.info(
            "embedded.adopted" if self.adopted else "embedded.started",
            pid=self.pid,
            version=self.version,
            binary=str(self.options.binary.path),
            origin=self.options.binary.origin,
            duration_ms=_milliseconds_since(began),
        )

    async def stop(self) -> None:
        """Let the server write everything and end, then give the folder up.

        A server that does not end is terminated, then killed. Without a server nothing happens.

        Raises:
            EmbeddedServerFailed: it did not even end when killed.
        """
        async with self._stopping:
            pid = self.pid
            try:
                await self._end_supervision()
                await self._end_process()
            finally:
                self._release_folder()
            if pid is not None:
                self._log.info("embedded.stopped", pid=pid)

    async def wait_failed(self) -> None:
        """Wait until the server is no longer supervised.

        Returns after `stop`. Raises whatever else ended the supervision, which would be a defect
        of ours: a server that cannot be brought up is tried again and again.
        """
        supervisor = self._supervisor
        if supervisor is None:
            return
        await asyncio.wait([supervisor])
        if not supervisor.cancelled():
            supervisor.result()

    # The folder

    @property
    def _wanted_password(self) -> str | None:
        return self._password if self.options.port else None

    def _take_folder(self) -> None:
        require_short(self.options.socket)
        self._folder = private_folder(self.options.directory)
        private_folder(self.options.socket.absolute().parent)
        self._daemon_lock = hold_folder(self._folder)

    def _release_folder(self) -> None:
        if self._daemon_lock is not None:
            os.close(self._daemon_lock)
            self._daemon_lock = None

    # Coming up

    async def _bring_up(self) -> None:
        patience_s = self.options.patience.takeover_s
        deadline = time.monotonic() + patience_s
        while True:
            answer = await self._ask()
            if isinstance(answer, Identity):
                if await self._adopt(answer):
                    return
            elif await self._start_if_free(answer):
                return
            elif answer is Unidentified.LOADING:
                deadline = time.monotonic() + patience_s
            elif answer is Unidentified.REFUSED or time.monotonic() > deadline:
                raise self._occupied(answer)
            await asyncio.sleep(_LONGEST_PAUSE_S)

    async def _ask(self) -> Identity | Unidentified:
        answer = await identify(self.options.socket, self._password)
        if isinstance(answer, Identity) and not _is_same(answer.directory, self._folder):
            raise ConfigurationError(
                f"The server at {self.options.socket} keeps its data in {answer.directory}.",
                hint="choose another socket, or stop that server",
            )
        return answer

    async def _adopt(self, identity: Identity) -> bool:
        """Take over a server with our settings; end one with others and return False."""
        self._process = ServerProcess(identity.pid)
        if (identity.port, identity.appendfsync, identity.password) != (
            self.options.port,
            self.options.appendfsync,
            self._wanted_password or "",
        ):
            await self._end_process()
            return False
        self.version = identity.version
        self.adopted = True
        return True

    async def _start_if_free(self, answer: Unidentified) -> bool:
        lock = try_lock(self._folder / SERVER_LOCK)
        if lock is None:
            return False
        try:
            if answer is not Unidentified.ABSENT:
                return False
            launched = launch(self.options, self._folder, self._wanted_password, lock)
        finally:
            os.close(lock)  # from now on the server's alone
        self._process = launched.process
        try:
            self.version = (await self._first_answer(launched)).version
            record_binary(self._folder, self.options.binary)
        except BaseException:
            await self._end_process()
            raise
        self.adopted = False
        return True

    async def _first_answer(self, launched: Launch) -> Identity:
        patience_s = self.options.patience.ready_s
        deadline = time.monotonic() + patience_s
        pause = _FIRST_PAUSE_S
        while time.monotonic() < deadline:
            if not launched.process.is_alive():
                raise ended_early(self.options, self._folder, launched)
            answer = await self._ask()
            if isinstance(answer, Identity):
                return await self._require_same_process(answer, launched.process)
            if answer is Unidentified.LOADING:
                deadline = time.monotonic() + patience_s
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        raise EmbeddedServerFailed(
            f"The server {self.options.binary.path} did not answer for {patience_s:g} s.",
            hint=f"see {self._folder / LOG_FILE}",
        )

    async def _require_same_process(self, found: Identity, process: ServerProcess) -> Identity:
        if found.pid != process.pid:
            await ask_to_shut_down(self.options.socket, self._password, pid=found.pid)
            raise EmbeddedServerFailed(
                f"{self.options.binary.path} ran the server as another process.",
                hint="configure the server itself, or begin the script's last line with `exec`",
            )
        return found

    # Staying up

    async def _supervise(self) -> None:
        delay = FIRST_RESTART_DELAY_S
        while (process := self._process) is not None:
            began = time.monotonic()
            await process.exited()
            died = time.monotonic()
            self._log.warning("embedded.died", pid=process.pid, status=process.exit_status)
            self._forget_process()
            if died - began > STABLE_AFTER_S:
                delay = FIRST_RESTART_DELAY_S
            delay = await self._restart(delay)
            self.restarts += 1
            self._log.info(
                "embedded.restarted",
                pid=self.pid,
                version=self.version,
                duration_ms=_milliseconds_since(died),
            )

    async def _restart(self, delay: float) -> float:
        """Bring a server up, however often it takes; return the delay before the next time."""
        reported = ""
        while True:
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_RESTART_DELAY_S)
            try:
                await self._bring_up()
            except (SessiondError, OSError) as error:
                if str(error) != reported:  # the same reason every 2 s is no news
                    reported = str(error)
                    self._log.warning("embedded.restart_failed", reason=reported)
            else:
                return delay

    async def _end_supervision(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])

    # Going down

    async def _end_process(self) -> None:
        process = self._process
        if process is None:
            return
        if not await self._ended_in_order(process):
            self._log.warning("embedded.killed", pid=process.pid)
            process.send(signal.SIGKILL)
            if not await process.exited_within(self.options.patience.terminate_s):
                raise EmbeddedServerFailed(
                    f"The server process {process.pid} did not end when killed.",
                    hint="the system holds it, most likely in an access to the disk",
                )
        self._forget_process()
        _remove_socket(self.options.socket)

    async def _ended_in_order(self, process: ServerProcess) -> bool:
        patience = self.options.patience
        if not process.is_alive():
            return True
        socket = self.options.socket
        accepted = await ask_to_shut_down(socket, self._password, pid=process.pid)
        if accepted and await process.exited_within(patience.shutdown_s):
            return True
        process.send(signal.SIGTERM)
        return await process.exited_within(patience.terminate_s)

    def _forget_process(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _occupied(self, answer: Unidentified) -> SessiondError:
        lock_path = self._folder / SERVER_LOCK
        lock = None if answer is Unidentified.REFUSED else try_lock(lock_path)
        if lock is not None:
            os.close(lock)
        if lock is not None or answer is Unidentified.REFUSED:
            return ConfigurationError(
                f"At the socket {self.options.socket} {answer.value}.",
                hint="choose another socket, or end that program",
            )
        return _still_used(self._folder, read_holder(lock_path), answer)


def _still_used(folder: Path, holder: Holder | None, answer: Unidentified) -> EmbeddedServerFailed:
    who = f" with pid {holder.pid}" if holder else ""
    how = f": kill {holder.pid}" if holder else ""
    return EmbeddedServerFailed(
        f"The server{who} still uses {folder}, but at its socket {answer.value}.",
        hint=f"wait until it has ended, or end it{how}",
    )


def _unusable(folder: Path, error: OSError) -> EmbeddedServerFailed:
    return EmbeddedServerFailed(
        f"The data folder {folder} cannot be used: {error.strerror or error}.",
        hint="look at the disk: is it full, or mounted read-only?",
    )


def _is_same(reported: str, folder: Path) -> bool:
    return Path(reported).resolve() == folder


def _remove_socket(path: Path) -> None:
    if not is_listening(path):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _milliseconds_since(moment: float) -> float:
    return round((time.monotonic() - moment) * 1000, 1)

"""A server process, watched without ever taking another process for it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

POLL_S = 0.25
"""How often a process is looked at where the system has no process descriptors."""


class ServerProcess:
    """A process that is our child, or that an earlier daemon left behind.

    A stopped process (SIGSTOP) counts as alive. On Linux a process descriptor tells of the end
    at once and cannot come to mean another process; elsewhere the pid is polled.

    Args:
        pid: the process.
        child: our own handle on it when it is our child; nobody else may wait for it.
    """

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._child = child
        self._gone = False
        self._descriptor = self._open_descriptor()

    @property
    def exit_status(self) -> int | None:
        """The exit status, negative for a signal; None while alive or not our child."""
        return None if self._child is None else self._child.returncode

    def is_alive(self) -> bool:
        """Tell whether the process still exists; a child that ended is reaped."""
        if self._child is not None:
            self._gone = self._child.poll() is not None
        elif self._descriptor is not None:
            self._gone = self._gone or _is_readable(self._descriptor)
        else:
            self._gone = self._gone or not process_exists(self.pid)
        return not self._gone

    async def exited(self) -> None:
        """Wait until the process has ended."""
        while self.is_alive():
            if self._descriptor is None:
                await asyncio.sleep(POLL_S)
            else:
                await _readable(self._descriptor)

    async def exited_within(self, seconds: float) -> bool:
        """Wait for the end for so long; tell whether it came."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.exited()
        return not self.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        if not self.is_alive():
            return
        with suppress(ProcessLookupError):
            if self._descriptor is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self._descriptor, number)

    def close(self) -> None:
        """Stop watching; the process itself is left as it is."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open_descriptor(self) -> int | None:
        if not hasattr(os, "pidfd_open"):
            return None
        try:
            return os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._gone = True
        except OSError:
            pass  # an old kernel, or a sandbox that forbids it: poll instead
        return None


async def _readable(descriptor: int) -> None:
    # A copy for each wait: an event loop knows one reader for each descriptor.
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    copy = os.dup(descriptor)
    loop.add_reader(copy, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(copy)
        os.close(copy)


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def process_exists(pid: int) -> bool:
    """Tell whether there is such a process; one that ended but was not reaped counts too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

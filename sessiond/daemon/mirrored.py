"""The JSON files, put together: the folder, and what keeps it. Sessions work on without it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import structlog
from msgspec import Struct, field

from sessiond.core import Core
from sessiond.daemon.durable import DurableWrites
from sessiond.errors import SessiondError, StoreUnavailable
from sessiond.files.layout import MOST_CACHED
from sessiond.files.root import FilesRoot
from sessiond.service.finding import Finding, failed, ok, warning
from sessiond.service.health.scanning import Scanner
from sessiond.service.health.whole_scan import WholeScan
from sessiond.service.mirrored.hand_edits import Source
from sessiond.service.mirrored.mirroring import Mirror
from sessiond.service.status import FileProblem, FilesStatus

_CHECK_SECONDS = 2.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class MirroredFiles:
    """A daemon's folder of JSON files, from `open` to `close`.

    Args:
        path: where it is; None where none is kept.
        mirror: what keeps it; None where that is not possible.
        fault: why not.
    """

    def __init__(
        self, path: Path | None, mirror: Mirror | None = None, fault: SessiondError | None = None
    ) -> None:
        self._path = path
        self._mirror = mirror
        self._fault = fault
        self._turn = 0

    @classmethod
    async def open(
        cls, core: Core, durable: DurableWrites, path: Path | None, *, owned: bool
    ) -> MirroredFiles:
        """Open the folder; where that is not possible, go on without, and say so.

        Args:
            core: the sessions.
            durable: takes in what people edit.
            path: the folder; None for none.
            owned: whether Redis is the daemon's own: then a session that it lost is made again.
        """
        if path is None:
            return cls(None)
        try:
            root = await asyncio.to_thread(FilesRoot.open, path)
        except SessiondError as error:
            _log.error("files.unavailable", reason=error.detail, hint=error.hint)
            return cls(path, fault=error)
        source = Source(
            store=core.store,
            load=core.sessions.load,
            submit=durable.outbox.submit,
            perform=core.performer.perform,
            cached=lambda session_id, seen: core.caches.newest(session_id, MOST_CACHED, seen),
            waiting=lambda session_id: [
                journaled.write for journaled in durable.outbox.waiting(session_id)
            ],
            redis=durable.redis,
            clock=core.around.clock,
        )
        mirror = Mirror(root, source, restores=owned)
        core.store.on_commit.append(mirror.note_written)
        core.caches.on_change.append(mirror.note_cached)
        return cls(path, mirror)

    def start(self) -> None:
        """Begin to keep the files."""
        if self._mirror:
            self._mirror.start()

    def status(self) -> FilesStatus | None:
        """Return what is kept; None where nothing is."""
        return self._mirror.status() if self._mirror else None

    def whole_scan(self, scanner: Scanner) -> WholeScan:
        """Return what scans the files besides what Redis has."""
        return WholeScan(scanner, self._mirror)

    async def findings(self) -> list[Finding]:
        """Look at the files for a bounded time; return what the doctor says of them."""
        if self._path is None:
            return []
        if self._fault:
            return [failed("files", self._fault.detail, self._fault.hint, code=self._fault.code)]
        if self._mirror is None:
            return []
        checked = await self._check(self._mirror)
        return [_finding(self._mirror.status(), checked)]

    async def _check(self, mirror: Mirror) -> _Checked:
        """Check every byte of the files of some sessions, in turns."""
        everyone = mirror.sessions()
        first = self._turn % max(1, len(everyone))
        deadline = time.monotonic() + _CHECK_SECONDS
        checked = _Checked(of=len(everyone))
        with suppress(StoreUnavailable):  # what somebody edited waits for it
            for session_id in everyone[first:] + everyone[:first]:
                found = await mirror.scan_session(session_id)
                checked.unmoved += (problem for problem in found if problem.what == "damaged")
                checked.sessions += 1
                if time.monotonic() > deadline:
                    break
        self._turn = first + checked.sessions
        return checked

    async def close(self) -> None:
        """Write what is behind, and let go of the folder."""
        if self._mirror:
            await self._mirror.close()


class _Checked(Struct):
    """How many `of` the sessions with files were checked, and what is damaged and stays there."""

    of: int
    sessions: int = 0
    unmoved: list[FileProblem] = field(default_factory=list)


def _finding(status: FilesStatus, checked: _Checked) -> Finding:
    check = "files"
    if checked.unmoved:
        first = checked.unmoved[0]
        return failed(
            check,
            f"{status.directory}/{first.session_id}: {first.reason}",
            "look at that folder, at .quarantine beside it, and at the disk",
            code="store-damaged",
        )
    if status.rejected:
        first = status.rejected[0]
        return warning(
            check,
            f"{len(status.rejected)} edited files cannot be taken; {first.kept}: {first.reason}",
            "put it right, or delete it: then it is written anew",
        )
    moved = [problem for problem in status.recent if problem.kept]
    if moved:
        last = moved[-1]
        return warning(
            check,
            f"{len(moved)} files were moved aside and written anew, the last one "
            f"{last.session_id}/{last.file}: {last.reason}; it is {last.kept}",
            "look whether you need anything of it; check the disk if nobody touched the files",
        )
    rest = "" if checked.sessions == checked.of else "; sessiond doctor --scan checks all"
    return ok(
        check,
        f"{status.sessions} sessions in {status.directory}, {status.behind} behind; the files of "
        f"{checked.sessions} are whole{rest}",
    )

"""Keeping the folder of JSON files what the sessions are, and the sessions what people make of it.

Each second the files are looked at, and those that somebody edited come in as changes. Sessions
that changed are written after that: each at most once a second, and so that writing takes at most
a twentieth of the time. Redis is the truth: what is damaged on the disk is moved aside, told, and
written again. A session that Redis lost is made again from its files, where the server is our own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from sessiond.errors import NotFound, SessionDeleted, SessiondError, StoreUnavailable
from sessiond.files.root import FilesRoot
from sessiond.service.mirrored.hand_edits import Source
from sessiond.service.mirrored.incidents import Incidents
from sessiond.service.mirrored.mirrored_session import MirroredSession
from sessiond.service.mirrored.restoring import restore
from sessiond.service.status import FileProblem, FilesStatus
from sessiond.store.draft import Draft
from sessiond.store.outcome import Committed
from sessiond.sync.position import Position

_PAUSE_SECONDS = 1.0
_LOOKED_AT = 500
"""Sessions whose files are looked at in one second."""
_ALL_SECONDS = 600.0
"""How often all sessions are compared with Redis, not only those that were active."""
_SCAN_SECONDS = 3600.0
_LOST_SECONDS = 10.0
_RETRY_SECONDS = 30.0
_BACK_MS = 60_000
_PAGE = 50
_LAST_SECONDS = 5.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Mirror:
    """The files of all sessions.

    Args:
        root: where they lie.
        source: the sessions.
        restores: whether sessions that Redis does not have are made again from their files.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        root: FilesRoot,
        source: Source,
        *,
        restores: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._source = source
        self._restores = restores
        self._now = now
        self._mirrored: dict[str, MirroredSession] = {}
        self._incidents = Incidents(source.clock)
        self._deleted: set[str] = set()
        self._lost: set[str] = set()
        self._looked_from = 0
        self._compared_ms = 0
        self._all_due = self._lost_due = 0.0
        self._scan_due = now() + _SCAN_SECONDS
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin: first everything that lies there is read and checked."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what is behind, if Redis answers and there is time, and let go of the folder."""
        self._closing.set()
        if self._task:  # never in the middle of a file
            await asyncio.gather(self._task, return_exceptions=True)
            if not self._source.redis.is_away:
                await self._try(lambda: self._write_behind(until=self._now() + _LAST_SECONDS))
        self._root.close()

    def note_written(self, session_id: str, group: list[Draft], _committed: Committed) -> None:
        """Take note of what this process wrote."""
        if any(draft.op == "session.delete" for draft in group):
            self._deleted.add(session_id)
        else:
            self._of(session_id).is_behind = True

    def note_cached(self, session_id: str) -> None:
        """Take note that this process changed what a session has cached."""
        self._of(session_id).is_cache_behind = True

    @property
    def directory(self) -> str:
        """Where the folders of the sessions are."""
        return str(self._root.path)

    def status(self) -> FilesStatus:
        """Return what is kept, and what is wrong with it."""
        rejected = [problem for each in self._mirrored.values() for problem in each.rejected()]
        return FilesStatus(
            directory=self.directory,
            sessions=len(self._mirrored),
            behind=sum(each.is_behind for each in self._mirrored.values()),
            rejected=rejected,
            recent=self._incidents.recent,
        )

    # Over and over

    async def _run(self) -> None:
        await self._try(self.check_all)
        while not self._closing.is_set():
            await self._try(self.step)
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS):
                    await self._closing.wait()

    async def _try(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except StoreUnavailable:
            self._source.redis.note_failure()
        except (SessiondError, OSError) as error:
            _log.warning("files.failed", reason=str(error))
        except Exception:  # noqa: BLE001 - whatever it is, the files are kept on, and it is told
            _log.exception("files.failed")

    async def step(self) -> None:
        """Take in what people edited, then write what changed; nothing while Redis is away."""
        if self._source.redis.is_away:
            return
        if self._now() >= self._scan_due:
            await self.scan()
        await self._look()
        await self._compare()
        for session_id in list(self._deleted):
            await self._remove(session_id)
        if self._lost and self._now() >= self._lost_due:
            self._lost_due = self._now() + _LOST_SECONDS
            await self._restore_lost()
        await self._write_behind()

    def _of(self, session_id: str) -> MirroredSession:
        known = self._mirrored.get(session_id)
        if known is None:
            folder = self._root.of(session_id)
            known = MirroredSession(folder, self._source, self._incidents, self._now)
            self._mirrored[session_id] = known
        return known

    async def _one(self, each: MirroredSession, work: Awaitable[object]) -> None:
        """Do something about one session; what is wrong with it does not concern the others.

        Raises:
            StoreUnavailable: Redis is away.
        """
        try:
            await work
        except SessionDeleted:
            self._deleted.add(each.session_id)
        except NotFound:
            self._lost.add(each.session_id)
        except StoreUnavailable:
            raise
        except (SessiondError, OSError) as error:
            each.due = self._now() + _RETRY_SECONDS
            _log.warning("files.session_failed", session_id=each.session_id, reason=str(error))

    # The files, as people and the disk leave them

    async def check_all(self) -> None:
        """Read all that lies there, and check every byte; once, at the beginning."""
        for folder in await asyncio.to_thread(self._root.found):
            each = self._of(folder.session_id)
            await self._one(each, each.load())

    async def _look(self) -> None:
        """Look at the files of some sessions; in turns, where there are many."""
        everyone = [each for each in self._mirrored.values() if each.state.files]
        first = self._looked_from % max(1, len(everyone))
        turn = (everyone[first:] + everyone[:first])[:_LOOKED_AT]
        self._looked_from = first + len(turn)
        for each in await asyncio.to_thread(_touched, turn):
            await self._one(each, each.examine(wholly=False))

    async def scan(self) -> None:
        """Check every byte of every file, now; it is done every hour."""
        self._scan_due = self._now() + _SCAN_SECONDS
        for session_id in self.sessions():
            await self.scan_session(session_id)

    async def scan_session(self, session_id: str) -> list[FileProblem]:
        """Check every byte of a session's files, now.

        Returns:
            What was damaged, and is moved aside, to be written anew; that something cannot be
            moved aside; and the edits that cannot be taken, which are left as they are.

        Raises:
            StoreUnavailable: Redis is away, and somebody has edited a file.
        """
        each, damaged = self._mirrored.get(session_id), list[FileProblem]()
        if each is None or not each.state.files:
            return []

        async def check() -> None:
            try:
                damaged.extend(await each.examine(wholly=True))
            except OSError as error:
                damaged.append(_unmoved(session_id, error))
                _log.warning("files.not_moved_aside", session_id=session_id, reason=str(error))

        await self._one(each, check())
        return damaged + each.rejected()

    def sessions(self) -> list[str]:
        """Return whose files are there, in order."""
        return sorted(name for name, each in self._mirrored.items() if each.state.files)

    # The sessions, as Redis has them

    async def _compare(self) -> None:
        """Find the sessions that are not what their files say: the active ones, now and then all.

        What was active a minute before the last time is looked at again: it may have come late.
        """
        is_all = self._now() >= self._all_due
        since_ms = 0 if is_all else self._compared_ms - _BACK_MS
        began_ms, there = self._source.clock(), set[str]()
        cursor: str | None = None
        while True:
            page = await self._source.store.list_page(None, cursor, _PAGE)
            for listed in page.sessions:
                cursor = listed.cursor
                score, _, session_id = cursor.partition(".")
                there.add(session_id)
                if listed.snapshot:
                    self._note_position(session_id, listed.snapshot.position)
                if int(score) < since_ms:
                    break
            else:
                if not page.last:
                    continue
            break
        self._compared_ms = began_ms
        if is_all:
            self._all_due = self._now() + _ALL_SECONDS
            for session_id in self._mirrored.keys() - there:
                await self._one(self._of(session_id), self._is_there(session_id))

    def _note_position(self, session_id: str, position: Position) -> None:
        each = self._of(session_id)
        if each.state.position != str(position):
            each.is_behind = True

    async def _is_there(self, session_id: str) -> None:
        """Raise NotFound or SessionDeleted for a session that is gone; it is only not listed."""
        await self._source.store.end(session_id)

    async def _restore_lost(self) -> None:
        for session_id in list(self._lost):
            each = self._of(session_id)
            if not self._restores:
                self._incidents.tell(session_id, "", "unknown", "Redis does not have this session")
                self._lost.discard(session_id)
                continue
            count = await restore(self._source, each.folder, each.state)
            if count is None:
                continue
            self._lost.discard(session_id)
            each.is_behind = True
            self._incidents.tell(session_id, "", "restored", f"Redis had lost it; {count} writes")

    async def _remove(self, session_id: str) -> None:
        """Remove the files of a session that was deleted."""
        each = self._of(session_id)
        await self._one(each, asyncio.to_thread(each.folder.remove))
        del self._mirrored[session_id]
        self._deleted.discard(session_id)

    # Writing

    async def _write_behind(self, *, until: float | None = None) -> None:
        """Write the sessions that are due; all, until a time, at the end."""
        for each in [each for each in self._mirrored.values() if each.is_behind]:
            now = self._now()
            is_due = now >= each.due if until is None else now < until
            if is_due and each.session_id not in self._lost:
                await self._one(each, each.write())
        await self._write_caches()

    async def _write_caches(self) -> None:
        """Write what is cached, where that is due; what a session says is not kept up by it."""
        for each in [each for each in self._mirrored.values() if each.is_cache_behind]:
            if self._now() >= each.cache_due and not (
                each.is_behind or each.session_id in self._lost
            ):
                await self._one(each, each.write_cache())


def _unmoved(session_id: str, error: OSError) -> FileProblem:
    reason = f"something is damaged, and cannot be moved aside: {error}"
    return FileProblem(session_id=session_id, file="", what="damaged", reason=reason)


def _touched(mirrored: list[MirroredSession]) -> list[MirroredSession]:
    return [each for each in mirrored if each.is_touched()]

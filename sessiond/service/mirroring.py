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
from msgspec import Struct, field

from sessiond.errors import NotFound, SessionDeleted, SessiondError, StoreUnavailable
from sessiond.files.folder import (
    Damaged,
    Edited,
    Finding,
    FolderChanged,
    Missing,
    Rejected,
    SessionFolder,
)
from sessiond.files.layout import FileName, file_of, rendered
from sessiond.files.reading import Unreadable
from sessiond.files.root import FilesRoot
from sessiond.files.state import (
    STATE_FILE,
    FileState,
    FolderState,
    Stamp,
    digest,
    with_file,
    without_file,
)
from sessiond.service.edits import Source, take_edit
from sessiond.service.incidents import Incidents
from sessiond.service.restoring import restore
from sessiond.service.status import FileProblem, FilesStatus
from sessiond.store.draft import Draft
from sessiond.store.outcome import Committed
from sessiond.sync.position import Position

_PAUSE_SECONDS = 1.0
_LEAST_SHARE = 20
"""Writing a session pauses it for so many times as long as it took."""
_LOOKED_AT = 500
"""Sessions whose files are looked at in one second."""
_ALL_SECONDS = 600.0
"""How often all sessions are compared with Redis, not only those that were active."""
_LOST_SECONDS = 10.0
_BACK_MS = 60_000
_PAGE = 50
_LAST_SECONDS = 5.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class _Mirrored(Struct, eq=False):
    """One session's files.

    Attributes:
        folder: where they are.
        state: what is known of them.
        is_behind: whether the session may be another one than they say.
        due: when they may be written again (monotonic, in seconds).
        rejected: files that somebody edited, and that cannot be taken.
        seen: stamps of files that somebody is perhaps still writing.
    """

    folder: SessionFolder
    state: FolderState
    is_behind: bool = True
    due: float = 0.0
    rejected: dict[FileName, Rejected] = field(default_factory=dict)
    seen: dict[FileName, Stamp] = field(default_factory=dict)

    @property
    def session_id(self) -> str:
        return self.folder.session_id


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
        self._mirrored: dict[str, _Mirrored] = {}
        self._incidents = Incidents(source.clock)
        self._deleted: set[str] = set()
        self._lost: set[str] = set()
        self._looked_from = 0
        self._compared_ms = 0
        self._all_due = self._lost_due = 0.0
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

    def status(self) -> FilesStatus:
        """Return what is kept, and what is wrong with it."""
        rejected = [
            FileProblem(
                session_id=each.session_id,
                file=file_of(name),
                what="rejected",
                reason=problem.reason,
                kept=str(each.folder.file(name)),
            )
            for each in self._mirrored.values()
            for name, problem in each.rejected.items()
        ]
        return FilesStatus(
            directory=str(self._root.path),
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
        await self._look()
        await self._compare()
        for session_id in list(self._deleted):
            await self._remove(session_id)
        if self._lost and self._now() >= self._lost_due:
            self._lost_due = self._now() + _LOST_SECONDS
            await self._restore_lost()
        await self._write_behind()

    def _of(self, session_id: str) -> _Mirrored:
        known = self._mirrored.get(session_id)
        if known is None:
            state = FolderState(session_id=session_id)
            known = self._mirrored[session_id] = _Mirrored(self._root.of(session_id), state)
        return known

    # The files, as people and the disk leave them

    async def check_all(self) -> None:
        """Read all that lies there, and check every byte; once, at the beginning."""
        for folder in await asyncio.to_thread(self._root.found):
            if not folder.is_folder():
                await self._move(folder, "", "it is not a folder")
                continue
            each = self._mirrored[folder.session_id] = _Mirrored(folder, await self._state(folder))
            await self._examine(each, wholly=True)

    async def _state(self, folder: SessionFolder) -> FolderState:
        try:
            state = await asyncio.to_thread(folder.load_state)
        except Unreadable as error:
            await self._move(folder, STATE_FILE, str(error))
            state = None
        return state or FolderState(session_id=folder.session_id)

    async def _look(self) -> None:
        """Look at the files of some sessions; in turns, where there are many."""
        everyone = [each for each in self._mirrored.values() if each.state.files]
        first = self._looked_from % max(1, len(everyone))
        turn = (everyone[first:] + everyone[:first])[:_LOOKED_AT]
        self._looked_from = first + len(turn)
        for each in await asyncio.to_thread(_touched, turn):
            await self._examine(each, wholly=False)

    async def scan(self) -> FilesStatus:
        """Check every byte of every file, now; return what is wrong."""
        for each in list(self._mirrored.values()):
            if each.state.files:
                await self._examine(each, wholly=True)
        return self.status()

    async def _examine(self, each: _Mirrored, *, wholly: bool) -> None:
        state, findings = await asyncio.to_thread(each.folder.examine, each.state, wholly=wholly)
        each.state = state
        for finding in findings:
            await self._take(each, finding)
        edited = {found.name for found in findings if isinstance(found, Edited | Rejected)}
        each.rejected = {name: each.rejected[name] for name in each.rejected.keys() & edited}

    async def _take(self, each: _Mirrored, finding: Finding) -> None:
        match finding:
            case Missing():
                each.is_behind = True
            case Damaged():
                await self._move(each.folder, file_of(finding.name), finding.reason)
                each.state = without_file(each.state, finding.name)
                each.is_behind = True
            case Rejected():
                self._reject(each, finding)
            case Edited() if not each.state.files:
                each.is_behind = True  # nothing is known of these files: see `_adopt`
            case Edited() if each.seen.get(finding.name) == finding.stamp:
                await self._take_edit(each, finding)
            case Edited():
                each.seen[finding.name] = finding.stamp  # next time, unless it still changes

    async def _take_edit(self, each: _Mirrored, edit: Edited) -> None:
        known = each.rejected.get(edit.name)
        if known and known.stamp == edit.stamp:
            return
        try:
            count = await take_edit(self._source, each.state, edit)
        except NotFound:
            self._lost.add(each.session_id)  # once it is there again, the edit is taken
            return
        except SessionDeleted:
            self._deleted.add(each.session_id)
            return
        except SessiondError as error:
            if error.temporary:
                raise
            self._reject(each, Rejected(edit.name, error.detail, edit.stamp))
            return
        each.seen.pop(edit.name, None)
        each.rejected.pop(edit.name, None)
        each.state = with_file(
            each.state, edit.name, FileState(digest=edit.digest, stamp=edit.stamp)
        )
        each.is_behind = True
        _log.info(
            "files.edit_taken", session_id=each.session_id, file=file_of(edit.name), count=count
        )

    def _reject(self, each: _Mirrored, rejected: Rejected) -> None:
        before = each.rejected.get(rejected.name)
        each.rejected[rejected.name] = rejected
        if before is None or before.stamp != rejected.stamp:
            _log.warning(
                "files.edit_rejected",
                session_id=each.session_id,
                file=file_of(rejected.name),
                reason=rejected.reason,
            )

    async def _move(self, folder: SessionFolder, file: str, reason: str) -> None:
        """Move what is damaged out of the way, and tell."""
        now_ms = self._source.clock()
        if file:
            kept = await asyncio.to_thread(folder.quarantine, file, now_ms)
        else:
            kept = await asyncio.to_thread(folder.quarantine_whole, now_ms)
        self._incidents.tell(folder.session_id, file, "quarantined", reason, str(kept))

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
                await self._look_for(session_id)

    def _note_position(self, session_id: str, position: Position) -> None:
        each = self._of(session_id)
        if each.state.position != str(position):
            each.is_behind = True

    async def _look_for(self, session_id: str) -> None:
        """Find out what became of a session that is not listed."""
        try:
            await self._source.store.end(session_id)
        except SessionDeleted:
            self._deleted.add(session_id)
        except NotFound:
            self._lost.add(session_id)

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
        each = self._mirrored.pop(session_id, None)
        self._deleted.discard(session_id)
        await asyncio.to_thread((each.folder if each else self._root.of(session_id)).remove)

    # Writing

    async def _write_behind(self, *, until: float | None = None) -> None:
        """Write the sessions that are due; all, until a time, at the end."""
        for each in [each for each in self._mirrored.values() if each.is_behind]:
            now = self._now()
            is_due = now >= each.due if until is None else now < until
            if is_due and each.session_id not in self._lost:
                await self._write(each)

    async def _write(self, each: _Mirrored) -> None:
        """Write what a session is now into its files."""
        if self._source.waiting(each.session_id):  # it is not yet what somebody here made of it
            return
        began = self._now()
        each.is_behind = False  # what happens from now on counts again
        try:
            loaded = await self._source.load(each.session_id)
            await self._write_loaded(each, loaded)
        except SessionDeleted:
            self._deleted.add(each.session_id)
        except NotFound:
            self._lost.add(each.session_id)
        except FolderChanged:
            each.is_behind = True  # the next look finds out how
        except BaseException:
            each.is_behind = True
            raise
        finally:
            each.due = self._now() + max(_PAUSE_SECONDS, _LEAST_SHARE * (self._now() - began))

    async def _write_loaded(self, each: _Mirrored, loaded: bytes) -> None:
        session = await asyncio.to_thread(rendered, loaded)
        if not each.state.files:
            await self._adopt(each, session.files)
        left: list[FileName] = []
        for name in each.rejected:
            known = each.state.files.get(name)
            if known and known.digest == digest(session.files[name]):
                left.append(name)
            else:
                await self._set_aside(each, name)
        each.rejected = {name: each.rejected[name] for name in left}
        each.state = await asyncio.to_thread(each.folder.write, each.state, session, left)

    async def _adopt(self, each: _Mirrored, files: dict[FileName, bytes]) -> None:
        """Take over files of which nothing is known: those that say what the session is."""
        if not each.folder.is_folder():
            return
        _, findings = await asyncio.to_thread(each.folder.examine, each.state, wholly=True)
        for finding in findings:
            if isinstance(finding, Edited) and finding.digest == digest(files[finding.name]):
                state = FileState(digest=finding.digest, stamp=finding.stamp)
                each.state = with_file(each.state, finding.name, state)
            elif not isinstance(finding, Missing):
                file, reason = file_of(finding.name), "it was not known who wrote it"
                await self._move(each.folder, file, reason)
                each.rejected.pop(finding.name, None)

    async def _set_aside(self, each: _Mirrored, name: FileName) -> None:
        """Keep a rejected file under another name: its session went on, and has to be written."""
        reason = each.rejected[name].reason
        kept = await asyncio.to_thread(each.folder.set_aside, name, self._source.clock())
        each.state = without_file(each.state, name)
        self._incidents.tell(each.session_id, file_of(name), "set_aside", reason, str(kept))


def _touched(mirrored: list[_Mirrored]) -> list[_Mirrored]:
    return [
        each
        for each in mirrored
        if each.folder.is_touched(
            each.state, {name: rejected.stamp for name, rejected in each.rejected.items()}
        )
    ]

"""The files of one session: what people and the disk made of them, and writing them anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from sessiond.errors import NotFound, SessionDeleted, SessiondError, StoreDamaged
from sessiond.files.folder import (
    Damaged,
    Edited,
    FolderChanged,
    Missing,
    Rejected,
    SessionFolder,
)
from sessiond.files.layout import FileName, Rendered, cache_file, cache_of, file_of, rendered
from sessiond.files.reading import Unreadable
from sessiond.files.state import (
    STATE_FILE,
    FileState,
    FolderState,
    Stamp,
    digest,
    with_file,
    without_file,
)
from sessiond.model import CachedCall
from sessiond.service.mirrored.hand_edits import Source, take_edit
from sessiond.service.mirrored.incidents import Incidents
from sessiond.service.status import FileProblem

_PAUSE_SECONDS = 1.0
_CACHE_PAUSE_SECONDS = 10.0
"""Between two readings of what is cached, which may be 16 MiB."""
_LEAST_SHARE = 20
"""Writing a session pauses it for so many times as long as it took."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class MirroredSession:
    """One session's files, and what is known of them.

    Args:
        folder: where they are.
        source: where the session is.
        incidents: is told what happened to the files.
        now: a monotonic clock, in seconds.

    What is done to the files is done one after the other, whoever asks for it.

    Attributes:
        is_behind: whether the session may be another one than the files say.
        due: when they may be written again, in seconds of `now`.
        is_cache_behind, cache_due: the same of `cache.json`, which is written on its own.

    Raises:
        NotFound, SessionDeleted: by every method that asks for the session: it is gone.
        SessiondError, OSError: Redis, or the disk, does not do what is asked; try again later.
    """

    def __init__(
        self,
        folder: SessionFolder,
        source: Source,
        incidents: Incidents,
        now: Callable[[], float],
    ) -> None:
        self.folder = folder
        self.state = FolderState(session_id=folder.session_id)
        self.is_behind = True
        self.due = 0.0
        self.is_cache_behind = True
        self.cache_due = 0.0
        self._cache_mark: str | None = None  # of the cache that the file tells of
        self._source = source
        self._incidents = incidents
        self._now = now
        self._turn = asyncio.Lock()
        self._rejected: dict[FileName, Rejected] = {}
        self._seen: dict[FileName, Stamp] = {}  # of files that somebody is perhaps still writing

    @property
    def session_id(self) -> str:
        """Whose files these are."""
        return self.folder.session_id

    def rejected(self) -> list[FileProblem]:
        """Return the files that somebody edited, and that cannot be taken."""
        return [
            FileProblem(
                session_id=self.session_id,
                file=file_of(name),
                what="rejected",
                reason=problem.reason,
                kept=str(self.folder.file(name)),
            )
            for name, problem in self._rejected.items()
        ]

    # What is there

    async def load(self) -> None:
        """Find out what is known of the files, and check every byte of them."""
        async with self._turn:
            await self._load()

    async def _load(self) -> None:
        if not self.folder.is_folder():
            kept = await asyncio.to_thread(self.folder.quarantine_whole, self._source.clock())
            self._incidents.tell(
                self.session_id, "", "quarantined", "it is not a folder", str(kept)
            )
            return
        try:
            state = await asyncio.to_thread(self.folder.load_state)
        except Unreadable as error:
            await self._quarantine(STATE_FILE, str(error))
        else:
            self.state = state or self.state
        await self._examine(wholly=True)

    def is_touched(self) -> bool:
        """Tell whether somebody may have written a file since; quickly."""
        looked_at = {name: rejected.stamp for name, rejected in self._rejected.items()}
        return self.folder.is_touched(self.state, looked_at)

    async def examine(self, *, wholly: bool) -> list[FileProblem]:
        """Look at the files, and do something about what is found.

        Args:
            wholly: whether to read also what nobody seems to have touched.

        Returns:
            What was damaged, and is moved aside.
        """
        async with self._turn:
            return await self._examine(wholly=wholly)

    async def _examine(self, *, wholly: bool) -> list[FileProblem]:
        damaged: list[FileProblem] = []
        self.state, findings = await asyncio.to_thread(
            self.folder.examine, self.state, wholly=wholly
        )
        for finding in findings:
            if isinstance(finding, Damaged):
                damaged.append(await self._quarantine(file_of(finding.name), finding.reason))
                self.state = without_file(self.state, finding.name)
                self._note_gone(finding.name)
            else:
                await self._take(finding)
        edited = {found.name for found in findings if isinstance(found, Edited | Rejected)}
        self._rejected = {name: self._rejected[name] for name in self._rejected.keys() & edited}
        return damaged

    async def _take(self, finding: Missing | Rejected | Edited) -> None:
        match finding:
            case Missing():
                self._note_gone(finding.name)
            case Rejected():
                self._reject(finding)
            case Edited() if not self.state.files:
                self.is_behind = True  # nothing is known of these files: see `_adopt`
            case Edited() if self._seen.get(finding.name) == finding.stamp:
                await self._take_edit(finding)
            case Edited():
                self._seen[finding.name] = finding.stamp  # next time, unless it still changes

    def _note_gone(self, name: FileName) -> None:
        self.is_behind = True
        if name == "cache":
            self.is_cache_behind, self._cache_mark = True, None

    async def _take_edit(self, edit: Edited) -> None:
        known = self._rejected.get(edit.name)
        if known and known.stamp == edit.stamp:
            return
        try:
            count = await take_edit(self._source, self.state, edit)
        except (NotFound, SessionDeleted):
            raise
        except SessiondError as error:
            if error.temporary:
                raise
            self._reject(Rejected(edit.name, error.detail, edit.stamp))
            return
        self._seen.pop(edit.name, None)
        self._rejected.pop(edit.name, None)
        self.state = with_file(
            self.state, edit.name, FileState(digest=edit.digest, stamp=edit.stamp)
        )
        self.is_behind = True
        _log.info(
            "files.edit_taken", session_id=self.session_id, file=file_of(edit.name), count=count
        )

    def _reject(self, rejected: Rejected) -> None:
        before = self._rejected.get(rejected.name)
        self._rejected[rejected.name] = rejected
        if before is None or before.stamp != rejected.stamp:
            _log.warning(
                "files.edit_rejected",
                session_id=self.session_id,
                file=file_of(rejected.name),
                reason=rejected.reason,
            )

    async def _quarantine(self, file: str, reason: str) -> FileProblem:
        """Move what is damaged out of the way, and tell."""
        kept = await asyncio.to_thread(self.folder.quarantine, file, self._source.clock())
        return self._incidents.tell(self.session_id, file, "quarantined", reason, str(kept))

    # Writing

    async def write(self) -> None:
        """Write what the session is now into its files; one that is archived is left there."""
        async with self._turn:
            await self._write()

    async def _write(self) -> None:
        if self._source.waiting(self.session_id):  # it is not yet what somebody here made of it
            return
        if await self._source.store.archived([self.session_id]):  # loading would bring it back
            self.is_behind = False
            return
        began = self._now()
        self.is_behind = False  # what happens from now on counts again
        try:
            await self._write_loaded(await self._source.load(self.session_id))
        except FolderChanged:
            self.is_behind = True  # the next look finds out how
        except BaseException:
            self.is_behind = True
            raise
        finally:
            self.due = self._now() + max(_PAUSE_SECONDS, _LEAST_SHARE * (self._now() - began))

    async def _write_loaded(self, loaded: bytes) -> None:
        if self.state.files:
            session = await asyncio.to_thread(rendered, loaded)
        else:
            self._cache_mark, calls = await self._cached(None) or (None, [])
            session = await asyncio.to_thread(rendered, loaded, cache_of(calls))
            await self._adopt(session.files)
        await self._replace(session)
        self.is_cache_behind = True  # others may have cached something meanwhile

    async def write_cache(self) -> None:
        """Write what the session has cached, if it changed since; rarely, as it may be much."""
        async with self._turn:
            await self._write_cache()

    async def _write_cache(self) -> None:
        if not self.state.files or await self._source.store.archived([self.session_id]):
            self.is_cache_behind = False
            return
        began, least = self._now(), _PAUSE_SECONDS
        self.is_cache_behind = False
        try:
            if found := await self._cached(self._cache_mark):
                least = _CACHE_PAUSE_SECONDS
                mark, calls = found
                files: dict[FileName, bytes] = {"cache": cache_file(cache_of(calls))}
                await self._replace(Rendered(files, self.state.position, self.state.versions))
                self._cache_mark = mark
        except FolderChanged:
            self.is_cache_behind = True  # the next look finds out how
        except BaseException:
            self.is_cache_behind = True
            raise
        finally:
            self.cache_due = self._now() + max(least, _LEAST_SHARE * (self._now() - began))

    async def _cached(self, seen: str | None) -> tuple[str, list[CachedCall]] | None:
        """Return what is cached, and its mark; None where that is known, or cannot be read."""
        try:
            return await self._source.cached(self.session_id, seen)
        except StoreDamaged as error:  # the conversation is worth more: it is kept all the same
            _log.warning("files.cache_unreadable", session_id=self.session_id, reason=error.detail)
            return None

    async def _replace(self, session: Rendered) -> None:
        """Write files; what somebody made of them that cannot be taken is kept beside."""
        left: list[FileName] = []
        for name in self._rejected.keys() & session.files.keys():
            known = self.state.files.get(name)
            if known and known.digest == digest(session.files[name]):
                left.append(name)
            else:
                await self._set_aside(name)
                del self._rejected[name]
        self.state = await asyncio.to_thread(self.folder.write, self.state, session, left)

    async def _adopt(self, files: dict[FileName, bytes]) -> None:
        """Take over files of which nothing is known: those that say what the session is."""
        if not self.folder.is_folder():
            return
        _, findings = await asyncio.to_thread(self.folder.examine, self.state, wholly=True)
        for finding in findings:
            if isinstance(finding, Edited) and finding.digest == digest(files[finding.name]):
                state = FileState(digest=finding.digest, stamp=finding.stamp)
                self.state = with_file(self.state, finding.name, state)
            elif not isinstance(finding, Missing):
                file, reason = file_of(finding.name), "it was not known who wrote it"
                await self._quarantine(file, reason)
                self._rejected.pop(finding.name, None)

    async def _set_aside(self, name: FileName) -> None:
        """Keep a rejected file under another name: its session went on, and has to be written."""
        reason = self._rejected[name].reason
        kept = await asyncio.to_thread(self.folder.set_aside, name, self._source.clock())
        self.state = without_file(self.state, name)
        self._incidents.tell(self.session_id, file_of(name), "set_aside", reason, str(kept))

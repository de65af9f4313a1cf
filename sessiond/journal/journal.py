"""The journal as the event loop uses it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sessiond.errors import FolderHeld, InvalidInput, JournalUnavailable
from sessiond.folders import private_folder, try_lock
from sessiond.journal.ledger import Ledger, Page
from sessiond.journal.opening import Broken, open_journal
from sessiond.journal.options import MIB, JournalOptions
from sessiond.journal.record import Entry, Span, encode_operations
from sessiond.journal.reports import EntryPage, ExportedEntry, Recovery, Status, Verdict
from sessiond.journal.thread import JournalThread
from sessiond.journal.transaction import Confirmation, Draft
from sessiond.journal.watermark import Watermark
from sessiond.sync.position import Position

LOCK = "lock"
_WAITING_BYTES = 64 * MIB
_DEFAULTS = JournalOptions()


class Journal:
    """This machine's durable outbox. `await Journal.open(…)` gives one.

    What is appended is journaled when `append` returns: it survives the end of this process and
    of power, if the disk honours fdatasync. It is then to be sent to Redis under its identity
    (incarnation and sequences), as often as need be, until it is confirmed; and once more after a
    rollback of Redis, for as long as it is kept.

    Raises:
        JournalUnavailable: by every coroutine, while the disk is full, or fails. It passes
            without a restart.
    """

    def __init__(self, folder: Path, options: JournalOptions) -> None:
        self.recoveries: list[Recovery] = []
        """What was damaged or older and has been replaced since the opening: normally nothing."""
        self._folder = folder
        self._options = options
        self._lock = -1
        self._waiting_bytes = 0
        self._watermark: Watermark
        self._thread: JournalThread

    @classmethod
    async def open(cls, folder: Path, options: JournalOptions = _DEFAULTS) -> Journal:
        """Open the journal that lies in a folder, or make one there.

        Whatever is damaged is moved aside, and what can be read of it saved: see `recoveries`.

        Raises:
            FolderHeld: another process uses it.
            ConfigurationError: the folder is not ours alone.
            JournalUnavailable: the disk is full, or fails.
        """
        journal = cls(private_folder(folder), options)
        await journal._start()
        return journal

    async def append(self, session_id: str, group: Sequence[bytes], *, key: str = "") -> Span:
        """Write operations, and return when they are durable: see `begin`."""
        return await self.begin(session_id, group, key=key)

    def begin(
        self, session_id: str, group: Sequence[bytes], *, key: str = ""
    ) -> asyncio.Future[Span]:
        """Begin to write operations that belong together, whole or not at all.

        Returns what is done when they are durable. A caller who stops waiting for it changes
        nothing: what was handed over is still written.

        Args:
            session_id: whose they are.
            group: the operations, encoded; at least one.
            key: makes a retry recognisable while the entry is in the journal: the same key in the
                same session gets what the first try got, once that is durable. Its content is not
                compared: a key that stands for one content must name it.

        Raises:
            InvalidInput: the group is empty, or a name is no text.
            JournalUnavailable: too much waits for the disk already. The future raises it as well,
                and JournalFull: as much waits for Redis as may.
        """
        draft = _draft(session_id, group, key)
        size = len(draft.body)
        if self._waiting_bytes + size > _WAITING_BYTES and self._waiting_bytes:
            raise JournalUnavailable(
                f"{self._waiting_bytes} bytes already wait for the journal's disk",
                hint="the disk is slower than the writers; try again in a moment",
            )
        outcome = self._thread.append(draft)
        self._waiting_bytes += size
        outcome.add_done_callback(lambda _: self._written(size))
        return outcome

    def confirm(self, span: Span, position: Position) -> None:
        """Note that Redis has a group, its last operation at this position; the last word counts.

        Written with one of the next appends. After a crash before that the entry is pending once
        more, and sent again, which is safe. A group that is not in the journal is passed over.
        """
        self._thread.confirm(Confirmation(span, position))

    async def take_back(self, spans: list[Span]) -> None:
        """Note that Redis lost groups which it had: they are pending again, also after a crash.

        Raises:
            JournalUnavailable: the disk is full, or fails: to the next life they are confirmed.
        """
        await self._thread.ask(lambda ledger: ledger.take_back(spans))

    def discard(self, span: Span) -> None:
        """Drop a group that was refused, and whose writer knows; written as `confirm` is.

        Where an earlier try of it was confirmed, it is kept.
        """
        self._thread.confirm(Confirmation(span, None))

    def forget(self, span: Span) -> None:
        """Drop a group, confirmed or not: nothing is left to be done for it."""
        self._thread.confirm(Confirmation(span, None, forgotten=True))

    async def seen(self, incarnation: str, sequence: int) -> bool:
        """Tell the highest sequence that Redis knows of the present incarnation; 0 for none.

        To be called whenever Redis is reached anew, and best before the first append of a
        process: an incarnation from before goes on only after that. If the journal never gave
        that sequence away, it is an older copy (say, from a backup), whose next sequences would
        be taken for those that Redis has; then, and where something is appended before this was
        called, a new incarnation begins. What was appended keeps the identity it has.

        Returns:
            Whether a new one began now. Another incarnation than the present one is passed over.
        """
        return await self._thread.ask(lambda ledger: ledger.compare(incarnation, sequence))

    async def pending(self) -> AsyncIterator[list[Entry]]:
        """Give the entries that Redis is not known to have, in the order they were written.

        In pages of at most 256 entries and about 4 MiB. Entries that are written meanwhile come
        too.
        """
        async for page in self._pages(Ledger.pending_after, 0):
            yield page

    async def newest_confirmed(self) -> dict[str, Position]:
        """Return where Redis has the newest entry of each session that has confirmed ones."""
        return await self._thread.ask(Ledger.newest_confirmed)

    async def sessions(self) -> set[str]:
        """Return the sessions of which it has entries, confirmed or not."""
        return await self._thread.ask(lambda ledger: ledger.index.sessions())

    async def of_session(self, session_id: str) -> AsyncIterator[list[Entry]]:
        """Give a session's entries, confirmed or not, in the order they were written, in pages.

        For what Redis lost: their positions tell which these are.
        """

        def next_page(ledger: Ledger, number: int) -> Page:
            return ledger.entries_after(session_id, number)

        async for page in self._pages(next_page, 0):
            yield page

    async def incarnations(self) -> list[str]:
        """Return the names under which this journal wrote, the present one last."""
        identities = await self._thread.ask(lambda ledger: list(ledger.index.identities))
        return [identity.incarnation for identity in identities]

    async def status(self) -> Status:
        """Return where the journal stands."""
        return await self._thread.ask(Ledger.status)

    async def verify(self) -> Verdict:
        """Read all of the journal, and compare every row with its seal. Appends wait meanwhile."""
        return await self._thread.ask(Ledger.verify)

    async def page(self, after: int) -> EntryPage:
        """Give entries for people to read, the oldest first; `after` is `next` of the page before.

        An operation that is JSON is given as it is, another one as {"base64": …}.
        """
        entries, number = await self._thread.ask(lambda ledger: ledger.all_after(after))
        return EntryPage(entries=[_exported(entry) for entry in entries], next=number)

    async def close(self) -> None:
        """Write what was handed over, and let go of the files."""
        if self._lock < 0:
            return
        try:
            await self._thread.close()
        finally:
            self._release()

    def _written(self, size: int) -> None:
        self._waiting_bytes -= size

    async def _start(self) -> None:
        descriptor = try_lock(self._folder / LOCK)
        if descriptor is None:
            raise FolderHeld(
                f"another process uses the journal in {self._folder}",
                hint="use that daemon, stop it, or choose another data folder",
            )
        self._lock = descriptor
        try:
            self._watermark = Watermark(self._folder)
        except OSError as error:
            os.close(self._lock)
            raise JournalUnavailable(f"the journal cannot be opened: {error}") from error
        self._thread = JournalThread(self._open_ledger, self._options.executor())
        try:
            await self._thread.start()
        except BaseException:
            self._release()
            raise

    def _open_ledger(self, broken: Broken | None) -> Ledger:
        """Open the files, in the journal's thread; `broken` is what was open before."""
        opened = open_journal(self._folder, self._options, self._watermark.read(), broken)
        if opened.recovery:
            self.recoveries.append(opened.recovery)
        return Ledger(opened, self._options, self._watermark)

    async def _pages(
        self, next_page: Callable[[Ledger, int], Page], number: int
    ) -> AsyncIterator[list[Entry]]:
        def behind(place: int) -> Awaitable[Page]:
            return self._thread.ask(lambda ledger: next_page(ledger, place))

        page, place = await behind(number)
        while page:
            yield page
            page, place = await behind(place)

    def _release(self) -> None:
        self._watermark.close()
        os.close(self._lock)
        self._lock = -1


def _draft(session_id: str, group: Sequence[bytes], key: str) -> Draft:
    if not group:
        raise InvalidInput("a group has at least one operation")
    try:
        session_id.encode()
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"this is no text that can be written: {error.reason}") from error
    return Draft(session_id, key, len(group), encode_operations(list(group)))


def _exported(entry: Entry) -> ExportedEntry:
    return ExportedEntry(
        incarnation=entry.span.incarnation,
        first=entry.span.first,
        session_id=entry.session_id,
        key=entry.key,
        at_ms=entry.at_ms,
        position=str(entry.position) if entry.position else None,
        operations=[_as_json(operation) for operation in entry.operations],
    )


def _as_json(operation: bytes) -> Any:
    try:
        msgspec.json.decode(operation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"base64": operation}
    return msgspec.Raw(operation)

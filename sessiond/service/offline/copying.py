"""Keeping this machine's copies of sessions what Redis has.

A session is copied once somebody here loads, reads, writes or watches it. The bus says when there
is more: it only wakes, the log is read by offset. What happens within half a second is read
together. Where the log is another one than was copied, the copy is dropped and read anew. An
archived session does not come back for this.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from msgspec import Struct

from sessiond.errors import (
    ArchiveUnavailable,
    Contended,
    NotFound,
    ReplicaUnavailable,
    SessionDeleted,
    SessiondError,
    StoreDamaged,
    StoreUnavailable,
    TooLarge,
)
from sessiond.replica import Copy, Replica
from sessiond.service.clock import Clock
from sessiond.service.durable.reviving import Revive, leave_alone
from sessiond.service.live.written import Written
from sessiond.service.offline.reachability import Reachability
from sessiond.store.bus import Bus, Listener
from sessiond.store.copies import CopyStore
from sessiond.store.draft import Draft
from sessiond.store.keys import Keys
from sessiond.store.log import LogPage, Reset, log_is_damaged
from sessiond.store.outcome import Committed
from sessiond.store.sessions import SessionStore

_TOGETHER_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_NOTE_SECONDS = 1.0
_WRITE_SECONDS = 5.0
_REST_MS = 600_000
"""For so long a session is not copied again that had to make room for others."""
_AT_ONCE = 4
_MOST_SESSIONS = 10_000

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class _Notice(Struct):
    """What a publication says of a session; of live ones, nothing."""

    session_id: str = ""
    position: str = ""


_NOTICE = msgspec.json.Decoder(_Notice)


class Source(Struct, frozen=True):
    """Where copies come from.

    Args:
        store: the logs.
        bus: what wakes.
        keys: names of the channels.
        redis: whether it answers.
        clock: milliseconds since 1970.
        copies: reads what a log does not tell.
        sleep: how to pause.
    """

    store: SessionStore
    bus: Bus
    keys: Keys
    redis: Reachability
    clock: Clock
    copies: CopyStore
    sleep: Callable[[float], Awaitable[None]] = msgspec.field(default=asyncio.sleep)


class Copier:
    """Copies sessions into a replica, and tells how old the copies are.

    Args:
        replica: takes the copies.
        source: where they come from.
    """

    def __init__(self, replica: Replica, source: Source) -> None:
        self._replica = replica
        self._source = source
        self._behind: set[str] = set(replica.copies)  # until Redis says that they are not
        self._reading: set[str] = set()
        self._unfit: set[str] = set()
        self._archived: set[str] = set()
        self._seen_whole: set[str] = set()
        self._sure_ms = 0
        self._is_closed = False
        self._heard: dict[str, Listener] = {}
        self._changed: set[str] = set()
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._tasks: list[asyncio.Task[None]] = []
        self.written = Written(source.store.writer)
        """What this process wrote and is not copied yet."""
        self.revive: Revive = leave_alone
        """Puts back what Redis lost of a session."""

    def start(self) -> None:
        """Begin to copy."""
        self.recheck()
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._note())]

    async def close(self) -> None:
        """Stop copying."""
        self._is_closed = True  # a cancellation can get lost in a client
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for workspace, listener in self._heard.items():
            await self._source.bus.leave(self._channel(workspace), listener)
        with contextlib.suppress(ReplicaUnavailable):
            await self._replica.note_current(self._all_current_ms())

    @property
    def behind(self) -> int:
        """How many sessions are not known to be copied wholly."""
        return len(self._behind | self._reading)

    def recheck(self) -> None:
        """Compare all copies with what Redis has: it may have lost something."""
        self._changed |= {copy.workspace for copy in self._replica.copies.values()}
        self._wanted.set()

    def see(self, session_id: str) -> None:
        """Take note that somebody here has to do with a session: it is copied from now on."""
        is_copied = self._replica.use(session_id)
        if session_id in self._archived:  # it comes back for whoever uses it
            self._read_soon(session_id)
        if is_copied or session_id in self._unfit:
            return
        dropped_ms = self._replica.dropped.get(session_id)
        if dropped_ms is None or self._source.clock() - dropped_ms > _REST_MS:
            self._read_soon(session_id)

    def take_written(self, session_id: str, group: list[Draft], committed: Committed) -> None:
        """Take note of what this process wrote: until it is copied, it is known from here."""
        self.see(session_id)
        if session_id not in self._unfit:
            self.written.note(session_id, group, committed)

    def stale_seconds(self, session_id: str) -> float | None:
        """Return how long ago a copy was last known to be all that Redis had.

        None where there is no copy, or none that was ever whole.
        """
        copy = self._replica.copies.get(session_id)
        return self._ago(self._current_ms(copy)) if copy and copy.current_ms else None

    def stale_seconds_of_all(self) -> float:
        """Return how long ago all copies were last known to be all that Redis had of them.

        Where there never was any, that is since Redis is away.
        """
        current_ms = self._all_current_ms()
        return self._ago(current_ms) if current_ms else self._source.redis.away_seconds or 0.0

    # What the bus says

    def _hear(self, workspace: str, message: bytes | None) -> None:
        if message is None:  # something may have been missed
            self._changed.add(workspace)
            self._wanted.set()
            return
        try:
            notice = _NOTICE.decode(message)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # somebody else's words on our channel
        copy = self._replica.copies.get(notice.session_id)
        if copy and notice.position != str(copy.position):
            self._read_soon(notice.session_id)

    def _read_soon(self, session_id: str) -> None:
        self._behind.add(session_id)
        self._wanted.set()

    # The work

    async def _run(self) -> None:
        while not self._is_closed:
            await self._wanted.wait()
            await self._source.sleep(_TOGETHER_SECONDS)
            await self._source.redis.wait_until_back()
            self._wanted.clear()
            try:
                await self._work()
            except SessiondError as error:
                await self._pause(error)
            except Exception:  # noqa: BLE001 - whatever it is, copying goes on, and says so
                _log.exception("replica.copying_failed")
                await self._pause(None)

    async def _pause(self, error: SessiondError | None) -> None:
        """Wait until another try makes sense."""
        if isinstance(error, StoreUnavailable):
            self._source.redis.note_failure()
            await self._source.redis.wait_until_back()
        else:
            await self._source.sleep(_RETRY_SECONDS)
        self._wanted.set()

    async def _work(self) -> None:
        """Listen where there are sessions, compare what may have changed, and read it."""
        await self._listen_where_copies_are()
        for workspace in sorted(self._changed):
            await self._compare(workspace)
            self._changed.discard(workspace)
        limit = asyncio.Semaphore(_AT_ONCE)

        async def read(session_id: str) -> None:
            async with limit:
                await self._read(session_id)

        outcomes = await asyncio.gather(
            *(read(session_id) for session_id in sorted(self._behind)), return_exceptions=True
        )
        for error in outcomes:
            if error is not None:
                raise error

    async def _listen_where_copies_are(self) -> None:
        workspaces = {copy.workspace for copy in self._replica.copies.values()}
        for workspace in sorted(workspaces):
            await self._listen(workspace)
        for workspace in self._heard.keys() - workspaces:
            await self._source.bus.leave(self._channel(workspace), self._heard.pop(workspace))

    async def _listen(self, workspace: str) -> None:
        if workspace in self._heard:
            return

        def hear(message: bytes | None) -> None:
            self._hear(workspace, message)

        await self._source.bus.listen(self._channel(workspace), hear)
        self._heard[workspace] = hear

    async def _compare(self, workspace: str) -> None:
        """Find out which sessions of a workspace are not what was copied."""
        copies = self._replica.copies
        names = {name for name, copy in copies.items() if copy.workspace == workspace}
        now = self._source.clock()
        self._behind -= names  # what is said of them from now on counts again
        self._reading |= names
        try:
            positions = await self._source.store.positions(workspace)
        except BaseException:
            self._behind |= names
            raise
        finally:
            self._reading -= names
        for name in sorted(names & copies.keys()):
            copy = copies[name]
            is_whole = copy.line_offset == copy.position.offset
            if positions.get(name) == copy.position and is_whole:
                self._note_whole(name, now)
            else:
                self._read_soon(name)

    async def _read(self, session_id: str) -> None:
        """Copy what a session has more than its copy."""
        now = self._source.clock()
        self._behind.discard(session_id)  # what is said of it from now on counts again
        self._archived.discard(session_id)
        self._reading.add(session_id)
        try:
            await self._copy(session_id)
            await self._note_read(session_id, now)
            self._unfit.discard(session_id)
            if copy := self._replica.copies.get(session_id):
                self.written.forget(session_id, copy.position.offset)
        except (NotFound, SessionDeleted):
            pass  # there is nothing to copy
        except ArchiveUnavailable:  # what was copied before may not be all
            self._archived.add(session_id)
            copy = self._replica.copies.get(session_id)
            if copy and not copy.current_ms:
                await self._replica.drop([session_id])
        except (TooLarge, StoreDamaged) as error:
            if session_id not in self._unfit:  # once is enough
                _log.warning("replica.not_copied", session_id=session_id, reason=error.detail)
            self._unfit.add(session_id)
            self.written.drop(session_id)
            copy = self._replica.copies.get(session_id)
            if copy is None or not copy.current_ms or isinstance(error, TooLarge):
                await self._replica.drop([session_id])
            # else what was whole once stays: a repair may need it
        except BaseException:
            self._behind.add(session_id)
            raise
        finally:
            self._reading.discard(session_id)

    async def _copy(self, session_id: str) -> None:
        """Copy what there is more, or all of it anew where the log is another one."""
        if session_id not in self._replica.copies:
            await self._begin(session_id)
        reset = await self._go_on(session_id)
        is_known = session_id in self._seen_whole
        if reset and await self.revive(session_id, is_known=is_known):
            reset = await self._go_on(session_id)
        copy = self._replica.copies.get(session_id)
        if reset and copy:
            await self._check_other(copy)
            await self._replica.begin(session_id, copy.workspace)
            reset = await self._go_on(session_id)
        if reset:
            raise StoreDamaged(f"the log of session {session_id!r}: {reset}")

    async def _check_other(self, copy: Copy) -> None:
        """Check that Redis has another log than was copied, and no beginning of it.

        Raises:
            NotFound: it has none.
            StoreDamaged: it has a beginning, or what was deleted; the rest is not to be had now.
        """
        session_id = copy.session_id
        try:
            end = (await self._source.store.end(session_id)).position
        except SessionDeleted:
            return
        entries, _ = await self._replica.whole(session_id)
        (first,) = await self._source.store.log.entries_at(session_id, [1])
        is_born_again = first is None or first.epoch != copy.birth
        if copy.deleted and is_born_again:
            return
        if copy.deleted or (end.offset < len(entries) and entries[end.offset - 1].position == end):
            raise StoreDamaged(f"Redis lost the end of session {session_id!r}: it has {end}")

    async def _go_on(self, session_id: str) -> Reset | None:
        """Copy what follows on the copy in the log, up to where it ends now.

        Returns:
            Why that is impossible: the log does not go on from there.
        """
        copy = self._replica.copies.get(session_id)
        if copy is None:
            return None
        now = await self._source.copies.standing(session_id)
        if now.position == copy.position:
            if now.lines is not None and copy.line_offset < copy.position.offset:
                await self._replica.add(session_id, [], None, now.lines)
            return None
        until = now.position.offset if now.position.offset > copy.position.offset else None
        async for page in self._source.store.log.pages(
            session_id, copy.position, until, recall=False
        ):
            if page.reset:
                return page.reset
            lines = now.lines if page.position == now.position else None
            added = await self._replica.add(
                session_id, page.entries, await self._conflicts(session_id, page), lines
            )
            if added is None:  # it had to make room for others
                return None
            copy = added
        if copy.position != now.position and now.position.offset:
            raise log_is_damaged(session_id, now.position)  # or Redis has just gone back
        return None

    async def _conflicts(self, session_id: str, page: LogPage) -> dict[int, list[bytes]]:
        """Return what is kept of the conflicts that a page tells of."""
        numbers = [entry.offset for entry in page.entries if entry.op.startswith("conflict.")]
        if not numbers:
            return {}
        kept: dict[int, list[bytes]] = {}
        with contextlib.suppress(StoreDamaged):  # the log is whole without them
            kept = await self._source.copies.conflicts(session_id, numbers[0], numbers[-1])
        missing = [number for number in numbers if number not in kept]
        if missing and not all(await self._source.store.have(session_id, [page.position])):
            raise Contended(f"Redis lost some of session {session_id!r} while it was copied")
        return {number: kept[number] for number in numbers if number in kept}

    async def _note_read(self, session_id: str, now_ms: int) -> None:
        copy = self._replica.copies.get(session_id)
        is_first = copy is not None and not copy.current_ms
        self._note_whole(session_id, now_ms)
        if is_first:  # from now on it is worth something, also to the next life
            await self._replica.note_current(self._replica.current_ms)

    def _note_whole(self, session_id: str, now_ms: int) -> None:
        """Note that the copy of a session is all that Redis has of it."""
        self._replica.note_read(session_id, now_ms)
        self._seen_whole.add(session_id)
        if len(self._seen_whole) > _MOST_SESSIONS:
            self._seen_whole &= self._replica.copies.keys()

    async def _begin(self, session_id: str) -> Copy:
        workspace = await self._source.store.workspace_of(session_id)
        await self._listen(workspace)
        if len(self._replica.copies) >= _MOST_SESSIONS:
            oldest = min(self._replica.copies.values(), key=lambda copy: copy.used_ms)
            await self._replica.drop([oldest.session_id])
        return await self._replica.begin(session_id, workspace)

    # How old it is

    async def _note(self) -> None:
        """Note how current the copies are, and write that down now and then."""
        source, passed = self._source, 0.0
        while not self._is_closed:
            await source.sleep(_NOTE_SECONDS)
            passed += _NOTE_SECONDS
            ago = source.redis.answered_seconds_ago
            if source.bus.connected and not source.redis.is_away and math.isfinite(ago):
                ago_ms = round(1000 * ago)
                self._sure_ms = max(self._sure_ms, source.clock() - ago_ms)
            if passed >= _WRITE_SECONDS:
                passed = 0.0
                with contextlib.suppress(ReplicaUnavailable):
                    await self._replica.note_current(self._all_current_ms())

    def _current_ms(self, copy: Copy) -> int:
        known_ms = max(copy.current_ms, self._replica.current_ms)
        session_id = copy.session_id
        is_sure = session_id not in self._behind | self._reading | self._unfit | self._archived
        return max(known_ms, self._sure_ms) if is_sure else known_ms

    def _all_current_ms(self) -> int:
        copies = (copy for copy in self._replica.copies.values() if copy.current_ms)
        return min(
            map(self._current_ms, copies), default=max(self._sure_ms, self._replica.current_ms)
        )

    def _ago(self, ms: int) -> float:
        return max(0, self._source.clock() - ms) / 1000

    def _channel(self, workspace: str) -> str:
        return self._source.keys.workspace_events(workspace)

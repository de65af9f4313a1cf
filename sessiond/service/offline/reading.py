"""Reading sessions: from Redis, or from this machine's copies while it is away.

What a copy answers is marked with its age, and shows what is journaled here and waits for Redis:
a writer sees its own writes, and those of its neighbours. When Redis is back it answers again as
soon as it has them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from msgspec import Struct

from sessiond.errors import NotFound, SessionDeleted, StoreDamaged, StoreUnavailable
from sessiond.model import Document, DocumentName, SessionPage, VersionedMessage
from sessiond.replica import Replica
from sessiond.service.clock import milliseconds
from sessiond.service.content.documents import Documents
from sessiond.service.content.messages import Messages
from sessiond.service.content.sessions import Filter, Sessions
from sessiond.service.content.usage import count_messages
from sessiond.service.durable.outbox import Outbox
from sessiond.service.durable.waiting import Journaled
from sessiond.service.offline.copying import Copier
from sessiond.service.offline.overlay import created, lay_over, lay_over_outline
from sessiond.service.offline.reachability import Reachability
from sessiond.service.writes import Create
from sessiond.store.sessions import parse_cursor
from sessiond.sync.known import KnownSession
from sessiond.sync.outline import Outline
from sessiond.sync.position import Position

Value = TypeVar("Value")

_DRAIN_SECONDS = 1.0
"""A reader waits so long until what was journaled here is in Redis."""


class Found(Struct, Generic[Value], frozen=True):
    """What a reader asked for.

    Attributes:
        stale_seconds: how long ago this was last known to be what Redis has; None if just now.
        waiting: how many writes it shows that Redis does not have yet.
    """

    value: Value
    stale_seconds: float | None = None
    waiting: int = 0


class Services(Struct, frozen=True):
    """What answers while Redis is there."""

    sessions: Sessions
    messages: Messages
    documents: Documents


class Offline(Struct, frozen=True):
    """What answers while it is away.

    Args:
        replica: the copies.
        copier: keeps them what Redis has, and knows their age.
        outbox: knows what waits.
        workspace: where a session belongs whose creator does not say.
    """

    replica: Replica
    copier: Copier
    outbox: Outbox
    workspace: str


class Reading:
    """Reads sessions.

    Args:
        online: the services on Redis.
        offline: this machine's copies; None where it keeps none.
        redis: whether Redis answers.
        note_read: hears of each session that is read.

    Raises:
        StoreUnavailable: by every method: Redis is away, and this was not seen here before.
        NotFound, SessionDeleted, StoreDamaged: see the services.
    """

    def __init__(
        self,
        online: Services,
        offline: Offline | None,
        redis: Reachability,
        note_read: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._online = online
        self._offline = offline
        self._redis = redis
        self._note_read = note_read

    def see(self, session_id: str) -> None:
        """Take note that somebody has to do with a session: it is copied from now on."""
        self._note_read(session_id)
        if self._offline:
            self._offline.copier.see(session_id)

    async def load(self, session_id: str) -> Found[bytes]:
        """Return a whole session, as `model.Session` in JSON."""

        async def online() -> bytes | KnownSession:
            return await self._online.sessions.load(session_id)

        found = await self._read(session_id, online, lambda known: known)
        if isinstance(found.value, KnownSession):
            known = found.value
            used = sum(await count_messages(known.conversation.messages()))
            return Found(known.session(used), found.stale_seconds, found.waiting)
        return Found(found.value)

    async def page(self, session_id: str, after: int, limit: int) -> Found[bytes]:
        """Return messages first written after an offset, as `model.MessagePage` in JSON."""
        return await self._read(
            session_id,
            lambda: self._online.messages.page(session_id, after, limit),
            lambda known: known.page(after, limit),
        )

    async def message(self, session_id: str, message_id: str) -> Found[VersionedMessage]:
        """Return one message and its version."""
        return await self._read(
            session_id,
            lambda: self._online.messages.read(session_id, message_id),
            lambda known: known.message(message_id),
        )

    async def document(self, session_id: str, name: DocumentName) -> Found[Document]:
        """Return a document and its version."""
        return await self._read(
            session_id,
            lambda: self._online.documents.read(session_id, name),
            lambda known: known.outline.document(name),
        )

    async def position(self, session_id: str) -> Found[Position]:
        """Return where a session's log ends."""
        return await self._read(
            session_id,
            lambda: self._online.sessions.position(session_id),
            lambda known: known.position,
        )

    async def operations(self, session_id: str, after: Position, limit: int) -> Found[bytes]:
        """Return a stretch of the log, as `model.OperationPage` in JSON; without what waits."""
        return await self._read(
            session_id,
            lambda: self._online.sessions.operations(session_id, after, limit),
            lambda known: known.operations(after, limit),
            also_deleted=True,
        )

    async def list_page(self, wanted: Filter, cursor: str | None, limit: int) -> Found[SessionPage]:
        """Return sessions, most recently active first.

        Raises:
            InvalidInput: the cursor is not one that a listing gave.
        """
        try:
            async with self._redis.needed():
                return Found(await self._online.sessions.list_page(wanted, cursor, limit))
        except StoreUnavailable:
            self._redis.note_failure()
        offline = self._require_offline()
        sessions, waiting = await self._known_outlines(offline)
        found = [outline for outline in sessions if _is_listed(outline, wanted)]
        page = _page(found, cursor, limit)
        return Found(page, offline.copier.stale_seconds_of_all(), waiting)

    async def known_document(self, session_id: str, name: DocumentName) -> Document | None:
        """Return a document as this machine knows it, what waits included; None if it does not."""
        known = await self._known(self._offline, session_id) if self._offline else None
        if known is None or known.value.outline.deleted:
            return None
        return known.value.outline.document(name)

    async def _read(
        self,
        session_id: str,
        online: Callable[[], Awaitable[Value]],
        offline: Callable[[KnownSession], Value | None],
        *,
        also_deleted: bool = False,
    ) -> Found[Value]:
        if not await self._is_written(session_id):
            with suppress(StoreUnavailable):  # not seen here before: what Redis has is to be told
                return await self._read_offline(session_id, offline, also_deleted=also_deleted)
        try:
            async with self._redis.needed():
                found = Found(await online())
        except StoreUnavailable:
            self._redis.note_failure()
        except NotFound:
            if not self._is_to_be_created(session_id):
                raise
        else:
            self.see(session_id)
            return found
        return await self._read_offline(session_id, offline, also_deleted=also_deleted)

    async def _is_written(self, session_id: str) -> bool:
        """Tell whether Redis has what a reader at this daemon may have been shown already."""
        offline = self._offline
        return offline is None or await offline.outbox.drained(session_id, _DRAIN_SECONDS)

    async def _read_offline(
        self,
        session_id: str,
        offline: Callable[[KnownSession], Value | None],
        *,
        also_deleted: bool,
    ) -> Found[Value]:
        known = await self._known(self._require_offline(), session_id)
        if known is None:
            raise _unseen(f"session {session_id!r}")
        if known.value.outline.deleted and not also_deleted:
            raise SessionDeleted(
                f"session {session_id!r} was deleted",
                hint="create a new one; ids are not used again",
            )
        value = offline(known.value)
        if value is None:
            raise _unseen(f"this of session {session_id!r}")
        return Found(value, known.stale_seconds, known.waiting)

    def _is_to_be_created(self, session_id: str) -> bool:
        waiting = self._offline.outbox.waiting(session_id) if self._offline else []
        return bool(waiting) and isinstance(waiting[0].write, Create)

    def _require_offline(self) -> Offline:
        if self._offline is None:
            raise StoreUnavailable(
                "Redis does not answer", hint="this daemon keeps no copies (replica.limit_mib: 0)"
            )
        return self._offline

    async def _known(self, offline: Offline, session_id: str) -> Found[KnownSession] | None:
        """Return a session as this machine knows it."""
        waiting = offline.outbox.waiting(session_id)
        stale = offline.copier.stale_seconds(session_id)
        content = await offline.replica.content(session_id) if stale is not None else None
        outline, entries = content or (Outline(), [])
        written = offline.copier.written.after(session_id, outline.position)
        for entry in written:
            outline.apply(entry)
        if outline.documents or outline.deleted:
            known = KnownSession(session_id, outline, [*entries, *written])
            stale = self._redis.away_seconds or 0.0 if stale is None else stale
        else:
            created_here = _created(waiting, offline.workspace)
            if created_here is None:
                return None
            known, stale = KnownSession(session_id, created_here), 0.0
        before = dict(known.outline.versions)
        lay_over(known, waiting)
        for name, version in known.outline.versions.items():
            if version != before.get(name):  # it is changed by what waits
                value = known.outline.documents[name]
                value = offline.outbox.shown(session_id, name, version, before[name], value)
                known.outline.documents[name] = value
        return Found(known, stale, len(waiting))

    async def _known_outlines(self, offline: Offline) -> tuple[list[Outline], int]:
        """Return what is known of all sessions, and how many writes that shows that wait."""
        waiting = offline.outbox.waiting_sessions()
        found = {
            _id(outline): outline
            for outline in await offline.replica.outlines()
            if outline.documents and offline.copier.stale_seconds(_id(outline)) is not None
        }
        for session_id in offline.copier.written.sessions:
            outline = found.get(session_id) or Outline()
            for entry in offline.copier.written.after(session_id, outline.position):
                outline.apply(entry)
            if outline.documents or outline.deleted:
                found[session_id] = outline
        for session_id, writes in waiting.items():
            known = found.get(session_id) or _created(writes, offline.workspace)
            if known:
                lay_over_outline(known, writes)
                found[session_id] = known
        return list(found.values()), sum(map(len, waiting.values()))


def _created(waiting: list[Journaled], workspace: str) -> Outline | None:
    return created(waiting[0], workspace) if waiting else None


def _is_listed(outline: Outline, wanted: Filter) -> bool:
    if outline.deleted:
        return False
    try:
        return wanted.matches(outline.summary().metadata)
    except StoreDamaged:  # one damaged session must not hide the others
        return False


def _page(outlines: list[Outline], cursor: str | None, limit: int) -> SessionPage:
    """Return a page of sessions in the order, and with the cursors, that the index gives."""
    places = [(_activity_ms(outline), outline) for outline in outlines]
    places.sort(key=lambda place: (place[0], _id(place[1])), reverse=True)
    highest, after_id = parse_cursor(cursor)
    if after_id is not None:
        end = int(highest), after_id
        places = [place for place in places if (place[0], _id(place[1])) < end]
    page = places[:limit]
    following = f"{page[-1][0]}.{_id(page[-1][1])}" if len(places) > limit else None
    return SessionPage(sessions=[outline.summary() for _, outline in page], cursor=following)


def _activity_ms(outline: Outline) -> int:
    return milliseconds(outline.documents["metadata"]["last_activity"])


def _id(outline: Outline) -> str:
    return str(outline.documents["metadata"]["session_id"])


def _unseen(what: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"Redis does not answer, and {what} was not seen here before",
        hint="`sessiond sessions` lists what this machine knows; the rest comes when Redis is back",
    )

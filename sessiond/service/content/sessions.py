"""Sessions as a whole: create, load, list, delete; their log, and what passes by live."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from sessiond.codec import json
from sessiond.errors import AlreadyExists, SessionDeleted, StoreDamaged, StoreUnavailable
from sessiond.model import (
    DOCUMENTS,
    Live,
    Metadata,
    NewSession,
    SessionPage,
    SessionSummary,
)
from sessiond.service.content.deletion import Unseen, keep, kept_unseen, unseen_after
from sessiond.service.content.merging import Subject, own_origin
from sessiond.service.content.overwriting import Rewriting, keep_other_part, keep_other_title
from sessiond.service.content.preferences import UserPreferences
from sessiond.service.content.shapes import document_value, encode_creation, metadata_of
from sessiond.service.content.usage import Counted, Usage
from sessiond.service.identity import new_session_id
from sessiond.service.writing import (
    PLAIN,
    Request,
    Surroundings,
    attempt,
    commit,
    idempotency_key,
    now,
    written_before,
)
from sessiond.store.draft import Draft
from sessiond.store.log import PAGE, log_is_damaged
from sessiond.store.sessions import Snapshot
from sessiond.sync.position import START, Position
from sessiond.sync.rendering import operation_page_json, session_json
from sessiond.sync.replica import Conversation

_LOAD_ATTEMPTS = 5
_NEW_SESSION = msgspec.json.Decoder(NewSession)


class Filter(msgspec.Struct, frozen=True):
    """Which sessions a listing shows; None for any."""

    workspace: str | None = None
    status: str | None = None
    user_id: str | None = None
    environment: str | None = None

    def matches(self, metadata: Metadata) -> bool:
        """Tell whether a session belongs to the listing."""
        return all(
            wanted is None or getattr(metadata, name) == wanted
            for name, wanted in msgspec.structs.asdict(self).items()
        )


class Created(msgspec.Struct, frozen=True):
    """A session that was created, now or before: where, and as it is now (a `model.Session`)."""

    session_id: str
    position: Position
    json: bytes
    duplicate: bool


class Sessions:
    """Creates, loads, lists and deletes sessions.

    Args:
        around: the store, time and randomness.
        workspace: where a session belongs whose creator does not say.
        preferences: those of users, with which their sessions begin.
    """

    def __init__(
        self, around: Surroundings, *, workspace: str, preferences: UserPreferences
    ) -> None:
        self._around = around
        self._workspace = workspace
        self._preferences = preferences
        self._usage = Usage()

    async def create(self, new: NewSession, request: Request = PLAIN) -> Created:
        """Create a session.

        Creating the same session again, by id or by idempotency key, returns what is there. What
        the creator says of preferences goes before the user's own.

        Raises:
            AlreadyExists: the id is taken by another session.
            SessionDeleted: the id belonged to a session that was deleted.
        """
        around = self._around
        session_id = new.session_id or new_session_id(request.key, around.clock(), around.entropy)
        workspace = new.workspace or self._workspace
        given = msgspec.structs.replace(new, session_id=session_id, workspace=workspace)
        new = await self._with_user_preferences(given)
        at = now(self._around, request)
        draft = Draft(
            "session.create",
            session_id,
            at,
            json.encode(new),
            client=request.client,
            changes=encode_creation(new, at),
        )
        await self._around.store.announce_creation(session_id, workspace, self._around.clock())
        try:
            committed = await commit(self._around, session_id, [draft])
            position, duplicate = committed.positions[0], committed.duplicate
        except AlreadyExists:
            await self._around.store.withdraw_from_others(session_id, workspace)
            position, duplicate = await self._same_creation(session_id, given), True
        except StoreDamaged as error:
            raise StoreDamaged(
                f"session {session_id!r}: {error.detail}", hint=error.hint
            ) from error
        except SessionDeleted:
            await self._around.store.withdraw(session_id, workspace)
            raise
        return Created(session_id, position, await self.load(session_id), duplicate=duplicate)

    async def load(self, session_id: str) -> bytes:
        """Return a whole session at one position, as `model.Session` in JSON.

        Raises:
            NotFound, SessionDeleted, StoreDamaged, StoreUnavailable.
        """
        ends: set[Position] = set()
        for _ in range(_LOAD_ATTEMPTS):
            snapshot = await self._around.store.snapshot(session_id)
            found = await self._conversation_at(session_id, snapshot)
            if found is not None:
                messages, counted = found
                end = snapshot.position
                used = await self._usage.count(session_id, end, messages, counted)
                documents = {name: document_value(snapshot, name) for name in DOCUMENTS}
                bodies = [body for _, body in messages]
                return session_json(documents, bodies, end, snapshot.versions, used)
            ends.add(snapshot.position)
        if len(ends) == 1:
            raise log_is_damaged(session_id, ends.pop())
        raise StoreUnavailable(
            f"the history of session {session_id!r} kept changing while it was read",
            hint="try again in a moment",
        )

    async def list_page(
        self, wanted: Filter, cursor: str | None = None, limit: int = 50
    ) -> SessionPage:
        """Return sessions, most recently active first.

        Raises:
            InvalidInput: the cursor is not one that a listing gave.
        """
        found: list[SessionSummary] = []
        while len(found) < limit:
            page = await self._around.store.list_page(wanted.workspace, cursor, limit)
            for listed in page.sessions:
                summary = _summary(listed.snapshot) if listed.snapshot else None
                if summary and wanted.matches(summary.metadata):
                    found.append(summary)
                cursor = listed.cursor
                if len(found) == limit:
                    break
            else:
                if page.last:
                    return SessionPage(sessions=found)
                continue
        return SessionPage(sessions=found, cursor=cursor)

    async def delete(self, session_id: str, request: Request = PLAIN) -> Position:
        """Delete a session; a tombstone stays, so that its id is never used again.

        With a base, what others wrote after that position, which whoever deletes had not seen, is
        kept as conflicts.

        Raises:
            NotFound, SessionDeleted: there is none, or no more.
            VersionMismatch: the session has moved on from the expected position.
            Contended, TooLarge: with a base, others kept being faster, or wrote too much since.
        """
        key = idempotency_key(request, b"session.delete")

        async def once() -> Position:
            if before := await written_before(self._around, session_id, key):
                return before
            at, end = now(self._around, request), request.expected
            unseen: Unseen = {}
            if request.base:
                end = str(await self.position(session_id))
                unseen = await unseen_after(self._around, session_id, request)
            if unseen:
                await self._around.conflicts.note(session_id, self._around.clock())
            draft = Draft(
                "session.delete",
                session_id,
                at,
                b"{}",
                expected=end,
                key=key,
                client=request.client,
                changes=kept_unseen(self._around, session_id, request, unseen, at),
            )
            return (await commit(self._around, session_id, [draft])).positions[0]

        return await attempt(self._around, session_id, "", request, once)

    async def keep(self, request: Request, came: Iterable[tuple[Subject, Any]]) -> list[str]:
        """Keep as conflicts what was to be written into a session that is deleted.

        Args:
            request: whose it is.
            came: each with its value.

        Returns:
            The numbers of the conflicts.
        """
        return await keep(self._around, request, came)

    async def keep_other_title(
        self, session_id: str, base: str, title: str, request: Request
    ) -> None:
        """Keep as a conflict the title that a rename is about to replace; see `overwriting`."""
        await keep_other_title(self._around, session_id, base, title, request)

    async def keep_other_part(self, rewriting: Rewriting) -> None:
        """Keep as a conflict the part that is about to be written anew; see `overwriting`."""
        await keep_other_part(self._around, rewriting)

    async def position(self, session_id: str) -> Position:
        """Return where the session's log ends."""
        return (await self._around.store.end(session_id)).position

    async def operations(self, session_id: str, after: Position, limit: int = PAGE) -> bytes:
        """Return a stretch of the log, as `model.OperationPage` in JSON; see `LogReader.stretch`.

        Raises:
            NotFound: there is no such session.
        """
        log = self._around.store.log
        page = await log.stretch(session_id, after, limit)
        if not page.entries:
            end = await self._around.store.end(session_id)  # is there a session at all?
            if after == START and not (page := await log.stretch(session_id, after, limit)).entries:
                raise log_is_damaged(session_id, end.position)
        return operation_page_json(
            session_id, page.entries, page.position, page.reset, more=page.more
        )

    async def send_live(self, session_id: str, body: Any, request: Request = PLAIN) -> None:
        """Announce something passing, such as text being typed, to whoever listens now.

        Raises:
            NotFound, SessionDeleted: there is no such session, or no more.
        """
        store = self._around.store
        workspace = await store.workspace_of(session_id)
        origin = own_origin(self._around, request)
        live = Live(session_id=session_id, origin=origin, body=body)
        await store.publish(session_id, workspace, json.encode({"live": live}))

    async def _with_user_preferences(self, new: NewSession) -> NewSession:
        if not new.user_id:
            return new
        preferences = await self._preferences.of_new_session(new.user_id, new.preferences)
        return msgspec.structs.replace(new, preferences=preferences)

    async def _same_creation(self, session_id: str, given: NewSession) -> Position:
        """Return where a session was created that is as given.

        Raises:
            AlreadyExists: it is not.
        """
        (first,) = await self._around.store.log.entries_at(session_id, [1])
        if first is None or not _is_creation_of(first.json, given):
            raise AlreadyExists(
                f"session {session_id!r} exists already, with other content",
                hint="load it, or choose another id",
            )
        return first.position

    async def _conversation_at(
        self, session_id: str, snapshot: Snapshot
    ) -> tuple[list[tuple[int, bytes]], Counted | None] | None:
        """Return the messages at a snapshot's position; None when the log is another by now.

        Each comes with the offset of its last change; beside them what was counted of them, if the
        log still has the place where that was.
        """
        conversation = Conversation()
        end = Position("", 0)
        appended: list[tuple[int, bytes]] = []
        counted = self._usage.counted(session_id)
        is_same_history = False
        async for page in self._around.store.log.pages(session_id, until=snapshot.position.offset):
            if page.reset:
                return None
            end = page.position
            is_same_history = is_same_history or bool(counted and page.has(counted.position))
            if snapshot.amendments:
                for entry in page.entries:
                    conversation.apply(entry.op, entry.id, entry.offset, entry.json)
            else:
                appended += page.appended()
        if end != snapshot.position:
            return None
        messages = conversation.messages_with_offsets() if snapshot.amendments else appended
        return messages, counted if is_same_history else None


def _is_creation_of(body: bytes, given: NewSession) -> bool:
    """Tell whether a session was created as given; the user's preferences came on top of that."""
    if not given.user_id:
        return body == json.encode(given)
    try:
        created = _NEW_SESSION.decode(body)
    except msgspec.MsgspecError:
        return False
    merged = {**created.preferences, **given.preferences}
    expected = msgspec.structs.replace(given, preferences=merged)
    return json.encode(created) == json.encode(expected)


def _summary(snapshot: Snapshot) -> SessionSummary | None:
    try:
        metadata = metadata_of(snapshot)
    except StoreDamaged:  # one damaged session must not hide the others
        return None
    return SessionSummary(
        metadata=metadata,
        total_messages=snapshot.total_messages,
        position=str(snapshot.position),
    )

"""Changes of one session, written into its log as operations: in order, in groups, with a mark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import structlog
from msgspec import Struct, structs

from sessiond.codec import json
from sessiond.errors import AlreadyExists, NotFound
from sessiond.model import Message
from sessiond.opencode.mapping import FIELD, Change
from sessiond.service.clock import Clock, moment, timestamp
from sessiond.store.draft import Draft, FieldChange, Mark
from sessiond.store.opencode import OpencodeStore, outbox_mark
from sessiond.store.sessions import SessionStore

TITLE = 1024
"""Characters that a session's title may have."""

_GROUP = 64
_GROUP_BYTES = 1024 * 1024
_TOGETHER = frozenset({"message.append", "message.edit", "part.put"})

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class SourcedChange(Struct, frozen=True):
    """A change, and how far its source is written with it; None when that says nothing yet."""

    change: Change
    seq: int | None


class _Written(Struct):
    """A draft on its way, and how far the source is written with it."""

    draft: Draft
    seq: int | None


class Recorder:
    """Writes one session's changes for one replica.

    Args:
        session_id: the session.
        replica: whose changes they are.
        store: where the log is.
        known: the messages that the session ever had.
        marked: how far the replica's source is written, None for not at all.
        clock: milliseconds since 1970.
        superseded: told of what the source wrote into a record that was removed, before anything
            is written that lies behind it: the source may have brought the record back.
    """

    def __init__(
        self,
        session_id: str,
        replica: str,
        store: SessionStore,
        *,
        known: set[str],
        marked: int | None,
        clock: Clock,
        superseded: Callable[[], None],
    ) -> None:
        self._session_id = session_id
        self._replica = replica
        self._store = store
        self._known = known
        self._marked = marked
        self._clock = clock
        self._superseded = superseded
        self._title: str | None = None

    @classmethod
    async def open(
        cls,
        session_id: str,
        replica: str,
        store: SessionStore,
        opencode: OpencodeStore,
        clock: Clock,
        *,
        superseded: Callable[[], None],
    ) -> Recorder:
        """Return one that goes on where the last one stopped.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        known = await opencode.message_ids(session_id)
        marked = await opencode.written_up_to(session_id, replica)
        return cls(
            session_id,
            replica,
            store,
            known=known,
            marked=marked,
            clock=clock,
            superseded=superseded,
        )

    @property
    def marked(self) -> int | None:
        """How far the source is written by the mark in Redis."""
        return self._marked

    async def write(self, changes: Iterable[SourcedChange]) -> None:
        """Write changes in groups as large as they may be.

        Raises:
            MarkMoved: Redis is not where this recorder believes: open another one.
            NotFound, SessionDeleted: there is no such session, or no more.
            StoreUnavailable: what was not written is to be written again.
        """
        for group in _groups(self._written(changes)):
            await self._commit(group)

    def _written(self, changes: Iterable[SourcedChange]) -> Iterator[_Written]:
        """Yield drafts; the source is written as far as a change with the last one of it."""
        for sourced in changes:
            *before, last = self._drafts(sourced.change)
            yield from (_Written(draft, None) for draft in before)
            yield _Written(last, sourced.seq)

    async def _commit(self, group: list[_Written]) -> None:
        """Write a group; one by one what was refused as a whole, leaving out what has no place.

        A record that was removed meanwhile stays removed.
        """
        drafts = [written.draft for written in group]
        seq = group[-1].seq
        if seq is not None:
            mark = Mark(outbox_mark(self._replica), self._marked, seq)
            drafts[-1] = structs.replace(drafts[-1], mark=mark)
        try:
            await self._store.commit(self._session_id, drafts, self._clock())
        except (NotFound, AlreadyExists) as error:
            if len(group) > 1:
                for written in group:
                    await self._commit([written])
            elif isinstance(error, AlreadyExists) and drafts[0].op == "message.append":
                as_edit = structs.replace(group[0].draft, op="message.edit")
                await self._commit([_Written(as_edit, seq)])
            else:
                await self._store.end(self._session_id)  # is there a session at all?
                await _log.ainfo(
                    "opencode.superseded",
                    session_id=self._session_id,
                    op=drafts[0].op,
                    id=drafts[0].id,
                )
                if seq is not None and drafts[0].op in _TOGETHER:
                    self._superseded()
        else:
            self._marked = self._marked if seq is None else seq

    def _drafts(self, change: Change) -> list[Draft]:
        match change.kind:
            case "session.put":
                return self._session_drafts(change)
            case "session.delete":
                return [self._draft(change, "session.delete", self._session_id, b"{}")]
            case "message.put":
                op = "message.edit" if change.id in self._known else "message.append"
                self._known.add(change.id)
                return [self._draft(change, op, change.id, json.encode(message_of(change)))]
            case "part.put":
                return [self._draft(change, "part.put", change.id, json.encode(change.body))]
            case "message.remove" | "part.remove":
                return [self._draft(change, change.kind, change.id, b"{}")]

    def _session_drafts(self, change: Change) -> list[Draft]:
        info = change.body or {}
        drafts = [self._document(change, "context", FIELD, info, json.encode(info))]
        title = str(info.get("title", ""))[:TITLE]
        if self._title != title:
            self._title = title
            drafts.append(self._document(change, "metadata", "title", title, title))
        return drafts

    def _document(
        self, change: Change, name: str, field: str, value: Any, stored: str | bytes
    ) -> Draft:
        body = json.encode({"set": {field: value}, "unset": []})
        return self._draft(change, "document.change", name, body, FieldChange(name, field, stored))

    def _draft(
        self, change: Change, op: str, name: str, body: bytes, *changes: FieldChange
    ) -> Draft:
        at = timestamp(change.at_ms)
        return Draft(op, name, at, body, client=self._replica, changes=changes)


def _groups(written: Iterable[_Written]) -> Iterator[list[_Written]]:
    """Yield what may be written together, in groups as large as they may be."""
    group: list[_Written] = []
    size = 0
    for each in written:
        draft = each.draft
        size += len(draft.json)
        if group and not (
            draft.op in _TOGETHER
            and group[-1].draft.op in _TOGETHER
            and len(group) < _GROUP
            and size <= _GROUP_BYTES
            and not any(draft.id == other.draft.id for other in group)
        ):
            yield group
            group, size = [], len(draft.json)
        group.append(each)
    if group:
        yield group


def message_of(change: Change) -> Message:
    """Return a message of opencode's as the log holds it."""
    body = change.body or {}
    given = body.get("time")
    created = given.get("created") if isinstance(given, dict) else None
    role = body.get("role")
    return Message(
        id=change.id,
        timestamp=moment(created if isinstance(created, int) else change.at_ms),
        role=role if role in ("user", "assistant", "system", "tool") else "assistant",
        metadata={FIELD: body},
    )

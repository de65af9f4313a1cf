"""The handlers of the routes that write: a request in, one write to the outbox, an answer out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec
from aiohttp import web

from sessiond.api import requests as read
from sessiond.api.answers import COMMITTED, CONFLICTS, DURABILITY, REPLICAS, UNCONFIRMED, answer
from sessiond.codec import json
from sessiond.errors import InvalidInput, SessiondError
from sessiond.model import (
    JOURNALED,
    Choice,
    ConflictRecord,
    Document,
    NewMessage,
    NewMessages,
    NewSession,
    Part,
    PositionReply,
    Session,
    Written,
    WrittenRecord,
)
from sessiond.service.content.sessions import Created
from sessiond.service.durable.outbox import Outbox
from sessiond.service.durable.performing import Result
from sessiond.service.durable.provisional import provisional
from sessiond.service.durable.waiting import Journaled
from sessiond.service.offline.reading import Reading
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    Create,
    Delete,
    Edit,
    PutPart,
    Remove,
    RemovePart,
    Resolve,
    Write,
)
from sessiond.sync.position import Position

_NEW_SESSION = msgspec.json.Decoder(NewSession)
_NEW_MESSAGE = msgspec.json.Decoder(NewMessage)
_NEW_MESSAGES = msgspec.json.Decoder(NewMessages)
_CHOICE = msgspec.json.Decoder(Choice)
_PART = msgspec.json.Decoder(Part)


class WriteHandlers:
    """One method per route.

    Args:
        outbox: takes the writes.
        reading: knows the documents that they change.
        is_degraded: tells whether replicas that are to confirm writes do not.
    """

    def __init__(self, outbox: Outbox, reading: Reading, is_degraded: Callable[[], bool]) -> None:
        self._outbox = outbox
        self._reading = reading
        self._is_degraded = is_degraded

    async def create_session(self, request: web.Request) -> web.Response:
        """POST /v1/sessions."""
        new = await read.body(request, _NEW_SESSION)
        wanted = read.write_request(request)
        session_id = new.session_id or self._outbox.new_session_id(wanted.key)
        return await self._answer(request, Create(session_id=session_id, new=new, request=wanted))

    async def delete_session(self, request: web.Request) -> web.Response:
        """DELETE /v1/sessions/{session_id}."""
        session_id = read.session_id(request)
        write = Delete(session_id=session_id, request=read.write_request(request))
        return await self._answer(request, write)

    async def append_messages(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{session_id}/messages."""
        session_id = read.session_id(request)
        given = _decode_messages(await read.raw_body(request))
        wanted = read.write_request(request)
        write = Append(session_id=session_id, messages=given, request=wanted)
        return await self._answer(request, write)

    async def edit_message(self, request: web.Request) -> web.Response:
        """PATCH /v1/sessions/{session_id}/messages/{message_id}."""
        write = Edit(
            session_id=read.session_id(request),
            message_id=read.message_id(request),
            patch=await read.any_body(request),
            request=read.write_request(request),
        )
        return await self._answer(request, write)

    async def remove_message(self, request: web.Request) -> web.Response:
        """DELETE /v1/sessions/{session_id}/messages/{message_id}."""
        write = Remove(
            session_id=read.session_id(request),
            message_id=read.message_id(request),
            request=read.write_request(request),
        )
        return await self._answer(request, write)

    async def put_part(self, request: web.Request) -> web.Response:
        """PUT /v1/sessions/{session_id}/messages/{message_id}/parts/{part_id}."""
        write = PutPart(
            session_id=read.session_id(request),
            message_id=read.message_id(request),
            part_id=read.part_id(request),
            part=await read.body(request, _PART),
            request=read.write_request(request),
        )
        return await self._answer(request, write)

    async def remove_part(self, request: web.Request) -> web.Response:
        """DELETE /v1/sessions/{session_id}/messages/{message_id}/parts/{part_id}."""
        write = RemovePart(
            session_id=read.session_id(request),
            message_id=read.message_id(request),
            part_id=read.part_id(request),
            request=read.write_request(request),
        )
        return await self._answer(request, write)

    async def change_document(self, request: web.Request) -> web.Response:
        """PATCH and PUT /v1/sessions/{session_id}/{document}."""
        write = ChangeDocument(
            session_id=read.session_id(request),
            name=read.document_name(request),
            patch=await read.any_body(request),
            replace=request.method == "PUT",
            request=read.write_request(request),
        )
        return await self._answer(request, write)

    async def resolve_conflict(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{session_id}/conflicts/{number}/resolution."""
        write = Resolve(
            session_id=read.session_id(request),
            number=read.conflict_number(request),
            choice=await read.body(request, _CHOICE),
            request=read.write_request(request),
        )
        return await self._answer(request, write)

    async def _answer(self, request: web.Request, write: Write) -> web.Response:
        outcome = await self._outbox.submit(write, read.patience(request))
        if isinstance(outcome, Journaled):
            return _accepted(outcome, await self._changed_document(outcome.write))
        done = _done(write.session_id, outcome.result)
        if self._is_degraded():  # if it was so for this write, it is so still, or it has them now
            done.headers[REPLICAS] = UNCONFIRMED
        return done

    async def _changed_document(self, write: Write) -> Document | None:
        """Return what a change that waits makes of its document, as far as that is known here."""
        self._reading.see(write.session_id)
        if not isinstance(write, ChangeDocument):
            return None
        with suppress(SessiondError):
            return await self._reading.known_document(write.session_id, write.name)
        return None


def _accepted(outcome: Journaled, changed: Document | None) -> web.Response:
    """Return the answer to a write that waits for Redis.

    Args:
        outcome: the write, and its version.
        changed: what it makes of the document that it changes; None where that is not known.
    """
    body = provisional(outcome.write, outcome.version)
    headers: dict[str, str] = {DURABILITY: JOURNALED}
    match body:
        case Session():
            headers["Location"] = f"/v1/sessions/{outcome.write.session_id}"
            return answer(body, status=202, headers=headers)
        case Document():
            shown = changed or body  # a version stands for what was shown with it
            return answer(shown.value, status=202, version=shown.version, headers=headers)
        case _:
            return answer(body, status=202, version=outcome.version, headers=headers)


def _done(session_id: str, result: Result) -> web.Response:
    """Return the answer to a write that is in Redis."""
    match result:
        case Created():
            headers = {"Location": f"/v1/sessions/{session_id}", **COMMITTED}
            return answer(result.json, status=200 if result.duplicate else 201, headers=headers)
        case Written():
            return answer(result, status=200 if result.duplicate else 201, headers=COMMITTED)
        case WrittenRecord():
            return answer(result, version=result.version, headers=COMMITTED)
        case Document():
            conflicts = {CONFLICTS: ", ".join(result.conflicts)} if result.conflicts else {}
            headers = {**COMMITTED, **conflicts}
            return answer(result.value, version=result.version, headers=headers)
        case Position():
            reply = PositionReply(session_id=session_id, position=str(result))
            return answer(reply, headers=COMMITTED)
        case ConflictRecord():
            return answer(result, headers=COMMITTED)


def _decode_messages(data: bytes) -> list[NewMessage]:
    """Return the messages of a body: one message, or `{"messages": […]}` for an atomic group.

    Raises:
        InvalidInput: it is neither.
    """
    if data.startswith(b'{"messages"'):
        return json.decode(data, _NEW_MESSAGES).messages
    try:
        return [json.decode(data, _NEW_MESSAGE)]
    except InvalidInput:
        if b'"messages"' not in data:
            raise
        return json.decode(data, _NEW_MESSAGES).messages

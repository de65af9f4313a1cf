"""Writes as values: what somebody asked the daemon to change, before anything came of it.

A write is journaled as it stands here, performed when Redis answers, and performed once more when
Redis lost it. So it must be the same write whenever it is performed: `completed` gives it the
names and the key by which the services recognise it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Struct, structs

from sessiond.model import Choice, DocumentName, NewMessage, NewSession, Part
from sessiond.service.identity import Entropy, content_digest, new_message_id
from sessiond.service.writing import PLAIN, Made, Request

_KEY_BYTES = 12
_USER = "user:"


class _Write(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op"):
    """What all writes have: which session they belong to, and what the caller said beside.

    What belongs to a user instead has what `lane_of_user` says as its session.
    """

    session_id: str
    request: Request = PLAIN

    @property
    def record_id(self) -> str:
        """What the write is about, as the log names it: the session, or a record in it."""
        return self.session_id


class _MessageWrite(_Write, frozen=True, kw_only=True):
    """About one message."""

    message_id: str

    @property
    def record_id(self) -> str:
        """The message's id."""
        return self.message_id


class _PartWrite(_Write, frozen=True, kw_only=True):
    """About one part of a message."""

    message_id: str
    part_id: str

    @property
    def record_id(self) -> str:
        """`<message id>/<part id>`."""
        return f"{self.message_id}/{self.part_id}"


class Create(_Write, tag="session.create", frozen=True, kw_only=True):
    """A new session."""

    new: NewSession


class Delete(_Write, tag="session.delete", frozen=True, kw_only=True):
    """The end of a session."""


class Append(_Write, tag="message.append", frozen=True, kw_only=True):
    """New messages, all or none."""

    messages: list[NewMessage]


class Edit(_MessageWrite, tag="message.edit", frozen=True, kw_only=True):
    """A merge patch for a message."""

    patch: Any


class Remove(_MessageWrite, tag="message.remove", frozen=True, kw_only=True):
    """The removal of a message."""


class PutPart(_PartWrite, tag="part.put", frozen=True, kw_only=True):
    """A part of a message, new or anew."""

    part: Part


class RemovePart(_PartWrite, tag="part.remove", frozen=True, kw_only=True):
    """The removal of a part."""


class ChangeDocument(_Write, tag="document.change", frozen=True, kw_only=True):
    """A merge patch for a document, or all of it anew (`replace`)."""

    name: DocumentName
    patch: Any
    replace: bool = False

    @property
    def record_id(self) -> str:
        """The document's name."""
        return self.name


class Resolve(_Write, tag="conflict.resolve", frozen=True, kw_only=True):
    """What somebody decided about a conflict."""

    number: str
    choice: Choice

    @property
    def record_id(self) -> str:
        """The conflict's number."""
        return self.number


class ChangePreferences(_Write, tag="preferences.change", frozen=True, kw_only=True):
    """A merge patch for a user's preferences."""

    user_id: str
    patch: Any

    @property
    def record_id(self) -> str:
        """The user's id."""
        return self.user_id


Write: TypeAlias = (
    Create
    | Delete
    | Append
    | Edit
    | Remove
    | PutPart
    | RemovePart
    | ChangeDocument
    | Resolve
    | ChangePreferences
)

_WRITE: msgspec.json.Decoder[Write] = msgspec.json.Decoder(Write)
encode = msgspec.json.Encoder().encode


def lane_of_user(user_id: str) -> str:
    """Return what stands for the session in writes that belong to a user; no session's id does."""
    return _USER + user_id


def user_of_lane(session_id: str) -> str | None:
    """Return the user whose writes these are; None where they are a session's."""
    return session_id.removeprefix(_USER) if session_id.startswith(_USER) else None


def goes_after(write: Write) -> str | None:
    """Return whose writes that wait are to be done before this one; None for nobody's.

    A session begins with its user's preferences.
    """
    if isinstance(write, Create) and write.new.user_id:
        return lane_of_user(write.new.user_id)
    return None


def op_of(write: Write) -> str:
    """Return the name of the operation that a write asks for."""
    return str(write.__struct_config__.tag)


def made_before(write: Write, before: Write) -> list[Made] | None:
    """Return what a writer had made when it went on from a write; None if that is of another kind.

    Both are of one session, and the later one is based on the earlier one.
    """
    made = before.request.made
    match write, before:
        case ChangeDocument(), ChangeDocument() if write.name == before.name:
            return [*made, Made(before.patch, before.replace)]
        case Edit(), Edit() if write.record_id == before.record_id:
            return [*made, Made(before.patch)]
        case PutPart(), PutPart() if write.record_id == before.record_id:
            return [Made(before.part, replace=True)]
        case _:
            return None


def digest(write: Write) -> str:
    """Return what tells two writes apart that came under the same idempotency key."""
    request = structs.replace(write.request, at_ms=0)
    return content_digest(encode(structs.replace(write, request=request)))


def decode(data: bytes) -> Write:
    """Return a write as it was encoded.

    Raises:
        MsgspecError: it was not.
    """
    return _WRITE.decode(data)


def completed(write: Write, now_ms: int, entropy: Entropy) -> Write:
    """Return a write with its time, and with what makes it recognisable when it is repeated.

    One that has a time keeps it.
    """
    request = structs.replace(write.request, at_ms=write.request.at_ms or now_ms)
    match write:
        case Create():  # its id is its key
            return structs.replace(write, request=request)
        case Append():
            messages = [
                message
                if message.id
                else structs.replace(
                    message,
                    id=new_message_id(
                        write.session_id, request.key, place, now_ms=now_ms, entropy=entropy
                    ),
                )
                for place, message in enumerate(write.messages)
            ]
            return structs.replace(write, request=request, messages=messages)
        case _ if not request.key:
            request = structs.replace(request, key=f"w-{entropy(_KEY_BYTES).hex()}")
    return structs.replace(write, request=request)

"""What somebody says a session is, as writes: of a file edited by hand, an import, a restored one.

The writes say what they are based on, so that they are merged by the rules with what others wrote.
Nothing here reads or writes: the same given twice makes the same writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Struct, field, structs

from sessiond.codec import json
from sessiond.errors import InvalidInput
from sessiond.model import (
    Context,
    DocumentName,
    Message,
    Metadata,
    NewMessage,
    NewSession,
    Part,
    Preferences,
)
from sessiond.service.writes import (
    Append,
    ChangeDocument,
    Create,
    Edit,
    PutPart,
    Remove,
    RemovePart,
    Write,
)
from sessiond.service.writing import PLAIN, Request
from sessiond.sync.documents import CHANGEABLE_METADATA, merge_patch, patch_between

UNKNOWN = f"{'0' * 13}1:1"
"""A version that no log has: what is based on it is merged without a base, and nothing is lost."""

_GROUP = 64
_GROUP_BYTES = 512 * 1024
_OWN = "own-"
_EDITABLE = ("role", "content", "tool_calls", "metadata")
_FIXED = ("session_id", "created_at", "user_id", "workspace")


class Given(Struct, frozen=True, kw_only=True):
    """What somebody says a session is; None for what nothing is said about."""

    metadata: Metadata | None = None
    messages: list[NewMessage] | None = None
    context: Context | None = None
    preferences: Preferences | None = None


class KnownMessage(Struct, frozen=True):
    """A message that somebody had before them.

    `version`: of its last writing; `parts`: those of its parts that were written on their own.
    """

    message: Message
    version: str
    parts: dict[str, str] = {}

    def part_version(self, part_id: str) -> str:
        """Return what a change of one of its parts is based on."""
        return self.parts.get(part_id, self.version)


class Base(Struct, frozen=True, kw_only=True):
    """What somebody had before them when they said what a session is.

    `versions`: of the documents; `is_known`: whether they really had just this before them, so that
    what is missing was removed. Else it is what stands now.
    """

    metadata: Metadata
    messages: dict[str, KnownMessage]
    versions: dict[str, str] = field(default_factory=dict)
    is_known: bool = True


def creation(session_id: str, given: Given, request: Request = PLAIN) -> list[Write]:
    """Return the writes that make a session which is not there.

    Args:
        session_id: its id.
        given: what it is.
        request: whose writes they are; with a key, each gets one of its own.

    Raises:
        InvalidInput: the session was deleted where this comes from.
    """
    metadata = given.metadata
    said: dict[str, Any] = {}
    if metadata is not None:
        if metadata.status == "deleted":
            raise InvalidInput(f"session {session_id!r} is a deleted one")
        names = ("title", "user_id", "workspace", "user_agent", "environment", "created_at")
        said = {name: getattr(metadata, name) for name in names}
    new = NewSession(
        session_id=session_id,
        context=given.context or Context(),
        preferences=given.preferences or {},
        **said,
    )
    writes: list[Write] = [Create(session_id=session_id, new=new)]
    writes += _appends(session_id, given.messages or [])
    if metadata is not None and metadata.status != "active":
        patch = {"status": metadata.status}
        writes.append(ChangeDocument(session_id=session_id, name="metadata", patch=patch))
    return _asked(writes, request)


def changes(session_id: str, given: Given, base: Base, request: Request = PLAIN) -> list[Write]:
    """Return the writes that make what is given of what somebody had before them.

    Args:
        session_id: the session.
        given: what they say it is.
        base: what they had before them.
        request: whose writes they are; with a key, each gets one of its own.

    Raises:
        InvalidInput: something changed that nobody can change.
    """
    writes: list[Write] = []
    if given.metadata is not None:
        writes += _metadata_changes(session_id, given.metadata, base)
    documents: tuple[tuple[DocumentName, Any], ...] = (
        ("context", given.context),
        ("preferences", given.preferences),
    )
    for name, value in documents:
        if value is not None:
            patch = msgspec.to_builtins(value)
            writes.append(_change(session_id, name, patch, base, replace=True))
    if given.messages is not None:
        writes += _message_changes(session_id, given.messages, base)
    return _asked(writes, request)


def _asked(writes: list[Write], request: Request) -> list[Write]:
    """Return writes as those of a request, each with its own base and key."""
    asked: list[Write] = []
    for place, write in enumerate(writes):
        key = f"{request.key}-{place}" if request.key else ""
        own = structs.replace(request, base=write.request.base, key=key)
        asked.append(structs.replace(write, request=own))
    return asked


# Documents


def _change(
    session_id: str, name: DocumentName, patch: Any, base: Base, *, replace: bool = False
) -> ChangeDocument:
    request = Request(base=base.versions.get(name, UNKNOWN))
    return ChangeDocument(
        session_id=session_id, name=name, patch=patch, replace=replace, request=request
    )


def _metadata_changes(session_id: str, given: Metadata, base: Base) -> Iterator[Write]:
    new, old = msgspec.to_builtins(given), msgspec.to_builtins(base.metadata)
    if base.is_known:
        for name in _FIXED:
            if getattr(given, name) != getattr(base.metadata, name):
                raise InvalidInput(
                    f"metadata field {name!r} cannot be changed",
                    hint=f"these can: {', '.join(sorted(CHANGEABLE_METADATA))}",
                )
    patch = {name: new[name] for name in CHANGEABLE_METADATA & new.keys()}
    if base.is_known:
        patch |= dict.fromkeys((CHANGEABLE_METADATA & old.keys()) - new.keys())
    if any(old.get(name) != value for name, value in patch.items()):
        yield _change(session_id, "metadata", patch, base)


# Messages


def _message_changes(session_id: str, given: list[NewMessage], base: Base) -> Iterator[Write]:
    ids = [message.id for message in given if message.id is not UNSET]
    if len(set(ids)) != len(ids):
        raise InvalidInput("two messages have the same id")
    new: list[NewMessage] = []
    for message in given:
        known = base.messages.get(message.id) if message.id is not UNSET else None
        if known is None:
            new.append(message)
        else:
            yield from _edits(session_id, known, message, base)
    if base.is_known:
        for message_id in base.messages.keys() - set(ids):
            known = base.messages[message_id]
            yield Remove(
                session_id=session_id,
                message_id=message_id,
                request=Request(base=known.version),
            )
    yield from _appends(session_id, new)


def _edits(session_id: str, known: KnownMessage, given: NewMessage, base: Base) -> Iterator[Write]:
    before = known.message
    given = _with_edited_text(before, given)
    if given.timestamp not in (UNSET, before.timestamp) and base.is_known:
        raise InvalidInput(f"the timestamp of message {before.id!r} cannot be changed")
    patch = _patch(before, given)
    if patch:
        yield Edit(
            session_id=session_id,
            message_id=before.id,
            patch=patch,
            request=Request(base=known.version if base.is_known else UNKNOWN),
        )
    yield from _part_changes(session_id, known, given, base)


def _patch(before: Message, given: NewMessage) -> dict[str, Any]:
    """Return a merge patch for the fields of a message; its parts are changed on their own."""
    has_parts = before.parts is not UNSET or given.parts is not UNSET
    names = ("role", "metadata") if has_parts else _EDITABLE
    old = msgspec.to_builtins({name: getattr(before, name) for name in names})
    new = {
        name: old[name] if value is UNSET else msgspec.to_builtins(value)
        for name in names
        for value in [getattr(given, name)]
    }
    patch = patch_between(old, new)
    if merge_patch(old, patch) != new:
        raise InvalidInput(f"an edit of message {before.id!r} cannot put null into its metadata")
    return patch


def _with_edited_text(before: Message, given: NewMessage) -> NewMessage:
    """Return a message with the edit of its content made in its part, where that holds the text.

    Raises:
        InvalidInput: it cannot be told which part the text belongs to.
    """
    if before.parts is UNSET or given.content in (UNSET, before.content):
        return given
    parts = before.parts if given.parts is UNSET else given.parts
    if not _same(parts, before.parts):  # the content follows from them
        return given
    texts = [part for part in parts if part.get("type") == "text"]
    if len(texts) != 1:
        raise InvalidInput(
            f"the content of message {before.id!r} follows from its parts", hint="edit their texts"
        )
    edited = [{**part, "text": given.content} if part is texts[0] else part for part in parts]
    return structs.replace(given, parts=edited)


def _part_changes(
    session_id: str, known: KnownMessage, given: NewMessage, base: Base
) -> Iterator[Write]:
    if given.parts is UNSET:
        return
    old = {part["id"]: part for part in known.message.parts or ()}
    new = {_part_id(part): part for part in given.parts}
    message_id = known.message.id
    for part_id, part in new.items():
        if part_id in old and _same(part, old[part_id]):
            continue
        version = known.part_version(part_id) if part_id in old else "0"
        request = Request(base=version if base.is_known else UNKNOWN)
        if part_id == f"{_OWN}content":
            patch = {"content": part.get("text", "")}
            yield Edit(session_id=session_id, message_id=message_id, patch=patch, request=request)
            continue
        yield PutPart(
            session_id=session_id,
            message_id=message_id,
            part_id=part_id,
            part=part,
            request=request,
        )
    if base.is_known:
        for part_id in old.keys() - new.keys():
            yield RemovePart(
                session_id=session_id,
                message_id=message_id,
                part_id=part_id,
                request=Request(base=known.part_version(part_id)),
            )


def _part_id(part: Part) -> str:
    part_id = part.get("id")
    if not isinstance(part_id, str):
        raise InvalidInput("every part needs a text `id`")
    return part_id


def _appends(session_id: str, messages: list[NewMessage]) -> Iterator[Write]:
    """Yield messages in groups, and after each the parts that could not come inside of them."""
    group: list[NewMessage] = []
    later: list[Write] = []
    size = 0
    for message in messages:
        appended, parts = _appended(message)
        size += len(json.encode(appended))
        if group and (len(group) == _GROUP or size > _GROUP_BYTES):
            yield from (Append(session_id=session_id, messages=group), *later)
            group, later, size = [], [], len(json.encode(appended))
        group.append(appended)
        later += [
            PutPart(
                session_id=session_id,
                message_id=str(message.id),
                part_id=part["id"],
                part=part,
            )
            for part in parts
        ]
    if group:
        yield from (Append(session_id=session_id, messages=group), *later)


def _appended(message: NewMessage) -> tuple[NewMessage, Iterable[Part]]:
    """Return a message as it can be appended, and the parts that are to be written after it.

    A message that said something itself and got parts later counts what it said as parts, whose
    ids nobody may give.
    """
    if message.parts is UNSET:
        return message, ()
    own = {_part_id(part): part for part in message.parts if _part_id(part).startswith(_OWN)}
    if not own:
        return structs.replace(message, content=UNSET, tool_calls=UNSET), ()
    content = own.get(f"{_OWN}content", {}).get("text", "")
    calls = [part.get("tool") for name, part in own.items() if name != f"{_OWN}content"]
    plain = structs.replace(message, parts=UNSET, content=content, tool_calls=calls)
    return plain, [part for part in message.parts if part["id"] not in own]


def _same(one: Any, other: Any) -> bool:
    """Compare as JSON does: 1, 1.0 and true are three different values."""
    return msgspec.json.encode(one, order="deterministic") == msgspec.json.encode(
        other, order="deterministic"
    )

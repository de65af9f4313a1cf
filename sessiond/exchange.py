"""Sessions out of sessiond and into it: as a folder, as one JSON file, as opencode's own export."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, structs

from sessiond.backend import Backend
from sessiond.codec import json
from sessiond.errors import AlreadyExists, InvalidInput, NotFound, StoreUnavailable
from sessiond.files.folder import SessionFolder
from sessiond.files.layout import (
    FILES,
    FileName,
    GivenConversation,
    cache_of,
    file_of,
    parsed,
    pretty,
    rendered,
)
from sessiond.files.reading import Unreadable, read_file
from sessiond.files.root import QUARANTINE
from sessiond.files.state import FolderState
from sessiond.model import (
    Cache,
    Context,
    Document,
    Metadata,
    Preferences,
    Session,
    Written,
    WrittenRecord,
)
from sessiond.opencode.exported import OpencodeExport, make_export, read_export
from sessiond.retrying import retried
from sessiond.service.clock import system_clock
from sessiond.service.mirrored.baseline import BaseFold, unknown_base
from sessiond.service.mirrored.intake import Base, Given, changes, creation
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
from sessiond.service.writing import Request
from sessiond.sync.entry import Entry
from sessiond.sync.position import Position, parse_position

FORMAT = "sessiond/1"

_PAGE = 500
_PROJECT = "global"
"""Of which project an export is; opencode puts its own there when it imports it."""


class Bundle(Struct, kw_only=True):
    """A session in one JSON file: the specification's files, and where its log was."""

    format: Literal["sessiond/1"]
    metadata: Metadata
    conversation: GivenConversation
    context: Context
    preferences: Preferences
    cache: Cache
    position: str
    versions: dict[str, str] = {}


class _Kind(Struct):
    """What tells the formats of a file apart: only opencode's has this."""

    info: Any = UNSET


class Found(Struct, frozen=True, kw_only=True):
    """A session that was found in a file or folder.

    `position`: where its log was then; empty if that is not known.
    """

    session_id: str
    given: Given
    position: str = ""


class ImportReport(Struct, kw_only=True):
    """What became of an import.

    Attributes:
        session_id: the session.
        created: whether it was not there before.
        writes: how many writes were made.
        conflicts: numbers of those that were left: see `sessiond conflicts`.
        refused: what could not be written, and why.
    """

    session_id: str
    created: bool = False
    writes: int = 0
    conflicts: list[str] = []
    refused: list[str] = []


_BUNDLE = msgspec.json.Decoder(Bundle)
_OPENCODE = msgspec.json.Decoder(OpencodeExport)
_KIND = msgspec.json.Decoder(_Kind)


# Out


async def cached_of(backend: Backend, session_id: str) -> Cache:
    """Return what a session has cached, as `cache.json` tells it; nothing where Redis is away."""
    with suppress(StoreUnavailable, NotFound):  # what waits for Redis is not there yet
        return cache_of((await backend.cached(session_id)).entries)
    return Cache()


def bundle_of(session: Session, cache: Cache) -> bytes:
    """Return a session, and what it has cached, as one JSON file."""
    value = {
        "format": FORMAT,
        "metadata": session.metadata,
        "conversation": session.conversation,
        "context": session.context,
        "preferences": session.preferences,
        "cache": cache,
        "position": session.position,
        "versions": session.versions,
    }
    return pretty(json.encode(value))


def opencode_export_of(session: Session, directory: str) -> bytes:
    """Return a session as `opencode export` prints it, for a project's folder.

    Raises:
        InvalidInput: it is not one of opencode's.
    """
    made = make_export(session, _PROJECT, directory, system_clock())
    return pretty(json.encode(made))


def write_folder(session: Session, cache: Cache, folder: Path) -> Path:
    """Write the files of a session, and of its cache, into a folder of its own below `folder`.

    Returns:
        That folder.

    Raises:
        InvalidInput: there is something by that name, or it cannot be written.
    """
    target = folder / session.metadata.session_id
    if target.exists():
        raise InvalidInput(f"{target} is there already", hint="choose another folder")
    try:
        files = SessionFolder(target, folder / QUARANTINE)
        files.write(FolderState(session_id=files.session_id), rendered(json.encode(session), cache))
    except OSError as error:
        raise InvalidInput(f"{target} cannot be written: {error}") from error
    return target


# In


def read_sessions(path: Path) -> Iterator[Found]:
    """Yield the sessions at a path: a file, a session's folder, or a folder of such.

    Raises:
        InvalidInput: something there is no session.
    """
    if not path.is_dir():
        yield _read_file(path)
    elif (path / file_of("metadata")).exists():
        yield _read_folder(path)
    else:
        inner = sorted(each for each in path.iterdir() if not each.name.startswith("."))
        if not inner:
            raise InvalidInput(f"{path} holds no sessions")
        for each in inner:
            yield from read_sessions(each)


def _read_file(path: Path) -> Found:
    content = _content(path)
    try:
        kind = json.decode(content, _KIND)
        if kind.info is not UNSET:
            read = read_export(json.decode(content, _OPENCODE))
            given = Given(metadata=read.metadata, messages=read.messages, context=read.context)
            return Found(session_id=read.metadata.session_id, given=given)
        bundle = json.decode(content, _BUNDLE)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.detail}", hint=error.hint) from error
    given = Given(
        metadata=bundle.metadata,
        messages=bundle.conversation.messages,
        context=bundle.context,
        preferences=bundle.preferences,
    )
    return Found(session_id=bundle.metadata.session_id, given=given, position=bundle.position)


def _read_folder(path: Path) -> Found:
    values: dict[FileName, Any] = {}
    for name in FILES:
        file = path / file_of(name)
        if file.exists() or file.is_symlink():
            try:
                values[name] = parsed(name, _content(file))
            except InvalidInput as error:
                raise InvalidInput(f"{file}: {error.detail}", hint=error.hint) from error
    metadata: Metadata = values["metadata"]
    conversation: GivenConversation | None = values.get("conversation")
    given = Given(
        metadata=metadata,
        messages=conversation.messages if conversation else None,
        context=values.get("context"),
        preferences=values.get("preferences"),
    )
    try:
        state = SessionFolder(path, path / QUARANTINE).load_state()
    except Unreadable:  # then nothing is known of what it was made of
        state = None
    is_its = state is not None and state.session_id == metadata.session_id
    position = state.position if state and is_its else ""
    return Found(session_id=metadata.session_id, given=given, position=position)


def _content(path: Path) -> bytes:
    try:
        found = read_file(path)
    except Unreadable as error:
        raise InvalidInput(f"{path}: {error}") from error
    if found is None:
        raise InvalidInput(f"there is no {path}")
    return found[0]


async def import_session(backend: Backend, found: Found, *, dry: bool = False) -> ImportReport:
    """Write a session that was found; merged by the rules with what is there.

    What the session was when it was exported is its base, where the log still has that. Else
    nothing is removed, and of what differs the import stands and the other is a conflict.

    Args:
        backend: where to.
        found: the session.
        dry: only tell how many writes it would take.

    Raises:
        InvalidInput: it says something that cannot be.
        SessionDeleted: it was deleted there.
    """
    request = Request(key=secrets.token_hex(8))
    report = ImportReport(session_id=found.session_id)
    try:
        current = await retried(lambda: backend.load(found.session_id))
    except NotFound:
        report.created = True
        writes = creation(found.session_id, found.given, request)
    else:
        base = await _base(backend, found, current)
        writes = changes(found.session_id, found.given, base, request)
    if dry:
        report.writes = len(writes)
    else:
        await _write(backend, writes, report)
    return report


async def _write(backend: Backend, writes: list[Write], report: ImportReport) -> None:
    """Make the writes of an import, and report what became of them."""
    written_before: list[str] = []
    for write in writes:
        try:
            outcome = await retried(partial(_perform, backend, write))
        except AlreadyExists as error:
            singles = _singles(write)
            if len(singles) > 1:  # some of a group are there, others not
                await _write(backend, singles, report)
            else:
                report.refused.append(f"{write.record_id}: {error}")
            continue
        except NotFound as error:
            report.refused.append(f"{write.record_id}: {error}")
            continue
        report.writes += 1
        if isinstance(outcome, Document | WrittenRecord):
            report.conflicts += outcome.conflicts or ()
        elif isinstance(outcome, Written) and outcome.duplicate:
            written_before += [record.id for record in outcome.records]
    if written_before:
        current = await retried(lambda: backend.load(report.session_id))
        there = {message.id for message in current.conversation.messages}
        gone = [name for name in written_before if name not in there]
        report.refused += [f"message {name!r} was removed there" for name in gone]


def _singles(write: Write) -> list[Write]:
    """Return a group of messages as writes of one each."""
    if not isinstance(write, Append):
        return [write]
    return [
        structs.replace(
            write,
            messages=[message],
            request=structs.replace(write.request, key=f"{write.request.key}-{place}"),
        )
        for place, message in enumerate(write.messages)
    ]


async def _base(backend: Backend, found: Found, current: Session) -> Base:
    """Return what the session was when it was exported; what it is now where nobody knows."""
    position = parse_position(found.position) if found.position else Position("", 0)
    fold, after = BaseFold(), "0"
    while fold.position.offset < position.offset:
        page = await retried(
            partial(backend.operations, found.session_id, after=after, limit=_PAGE)
        )
        if page.reset or not page.operations:
            break
        for operation in page.operations:
            place = parse_position(operation.position)
            if place.offset > position.offset:
                break
            fold.apply(
                Entry(
                    place.offset,
                    operation.op,
                    operation.at.isoformat(),
                    operation.origin,
                    operation.id,
                    place.epoch,
                    json.encode(operation.body),
                )
            )
        after = page.position
    is_known = position.offset > 0 and fold.position == position
    return fold.base() if is_known else unknown_base(current)


async def _perform(backend: Backend, write: Write) -> Session | Written | WrittenRecord | Document:
    session_id, base, key = write.session_id, write.request.base, write.request.key
    pending: Awaitable[Session | Written | WrittenRecord | Document]
    match write:
        case Create():
            pending = backend.create(write.new, key=key)
        case Append():
            pending = backend.append(session_id, write.messages, key=key)
        case Edit():
            pending = backend.edit(session_id, write.message_id, write.patch, base=base, key=key)
        case Remove():
            pending = backend.remove(session_id, write.message_id, base=base, key=key)
        case PutPart():
            pending = backend.put_part(
                session_id, write.message_id, write.part_id, write.part, base=base, key=key
            )
        case RemovePart():
            pending = backend.remove_part(
                session_id, write.message_id, write.part_id, base=base, key=key
            )
        case ChangeDocument():
            pending = backend.change_document(
                session_id, write.name, write.patch, replace=write.replace, base=base, key=key
            )
        case Delete() | Resolve():  # no import asks for that
            raise TypeError(write)
    return await pending

"""Files that people edited, as changes of their sessions: with the version they were made on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from sessiond.errors import InvalidInput, NotFound
from sessiond.files.folder import Edited
from sessiond.files.layout import GivenConversation
from sessiond.files.state import FolderState
from sessiond.model import Cache, CachedCall, Context, Metadata, Session
from sessiond.service.clock import Clock
from sessiond.service.mirrored.baseline import base_at, unknown_base
from sessiond.service.mirrored.intake import Base, Given, changes
from sessiond.service.offline.reachability import Reachability
from sessiond.service.writes import Write
from sessiond.service.writing import Request
from sessiond.store.sessions import SessionStore
from sessiond.sync.position import parse_position

CLIENT = "files"
"""Who made a change that came from a file, as its origin names it."""

_NS_PER_MS = 1_000_000
_SESSION = msgspec.json.Decoder(Session)


class Source(Struct, frozen=True):
    """What the files of sessions are kept from.

    Args:
        store: the sessions in Redis.
        load: returns a session as `model.Session` in JSON.
        submit: takes a write, journaled; raises what the service raises.
        perform: performs a write on Redis, without the journal.
        cached: returns the answers that a session has cached, the last used first, and a mark; None
            where nothing changed since the mark that is given.
        waiting: returns the writes of a session that are journaled and not done.
        redis: whether it answers.
        clock: milliseconds since 1970.
    """

    store: SessionStore
    load: Callable[[str], Awaitable[bytes]]
    submit: Callable[[Write], Awaitable[Any]]
    perform: Callable[[Write], Awaitable[Any]]
    cached: Callable[[str, str | None], Awaitable[tuple[str, list[CachedCall]] | None]]
    waiting: Callable[[str], list[Write]]
    redis: Reachability
    clock: Clock


async def take_edit(source: Source, state: FolderState, edit: Edited) -> int:
    """Change a session as somebody edited one of its files; return how many writes that took.

    The same edit taken twice is one: its writes have the same keys.

    Args:
        source: where the session is.
        state: what the file stood for, before somebody edited it.
        edit: what it says now.

    Raises:
        NotFound, SessionDeleted: there is no such session, or no more.
        InvalidInput: it changes something that cannot be changed.
        SessiondError: Redis is away, or refuses it.
    """
    await source.store.end(state.session_id)
    given = given_of(edit)
    request = Request(
        key=f"file-{edit.digest}-{state.position}",
        client=CLIENT,
        at_ms=min(source.clock(), edit.stamp.mtime_ns // _NS_PER_MS),
    )
    base = await _base(source, state)
    writes = changes(state.session_id, given, base, request)
    for write in writes:
        with suppress(NotFound):  # of a message that somebody removed: the edit is a conflict now
            await source.submit(write)
    return len(writes)


def given_of(edit: Edited) -> Given:
    """Return what an edited file says of its session.

    Raises:
        InvalidInput: nothing that can be changed there.
    """
    match edit.value:
        case Metadata():
            return Given(metadata=edit.value)
        case GivenConversation():
            return Given(messages=edit.value.messages)
        case Context():
            return Given(context=edit.value)
        case Cache():
            raise InvalidInput(
                "cache.json is written for reading only: what tools answered is cached by them"
            )
        case _:
            return Given(preferences=edit.value)


async def _base(source: Source, state: FolderState) -> Base:
    if state.position:
        position = parse_position(state.position)
        base = await base_at(source.store.log, state.session_id, position)
        if base is not None:
            return base
    return unknown_base(_SESSION.decode(await source.load(state.session_id)))

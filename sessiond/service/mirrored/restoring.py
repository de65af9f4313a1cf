"""Making a session again from its files, where Redis does not have it any more."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from sessiond.errors import SessiondError
from sessiond.files.folder import SessionFolder
from sessiond.files.layout import FileName, GivenConversation, parsed
from sessiond.files.state import FolderState
from sessiond.model import Context, Metadata, Preferences
from sessiond.service.mirrored.hand_edits import CLIENT, Source
from sessiond.service.mirrored.intake import Given, creation
from sessiond.service.writes import Create, completed
from sessiond.service.writing import Request

_log: structlog.stdlib.BoundLogger = structlog.get_logger()


async def restore(source: Source, folder: SessionFolder, state: FolderState) -> int | None:
    """Write a session as its files say it is; return how many writes that took.

    Of each file the newest whole content is taken: the file, or its backup. The writes go past the
    journal, whose own writes to this session may be waiting for it to be there; they are the same
    each time, so that it may be tried again.

    Args:
        source: where the session is to be.
        folder: its files.
        state: what is known of them.

    Returns:
        None where it is to be tried later, or cannot be done: that is told in the log.
    """
    if any(isinstance(write, Create) for write in source.waiting(folder.session_id)):
        return None  # the journal makes it
    given = await asyncio.to_thread(_given, folder, state)
    if given.metadata is None or given.metadata.session_id != folder.session_id:
        _log.error("files.cannot_restore", session_id=folder.session_id, reason="no metadata")
        return None
    request = Request(client=CLIENT, key=f"restore-{state.position}")
    writes = creation(folder.session_id, given, request)
    try:
        for write in writes:
            await source.perform(completed(write, source.clock(), _no_entropy))
    except SessiondError as error:
        _log.warning("files.not_restored", session_id=folder.session_id, reason=error.detail)
        return None
    return len(writes)


def _given(folder: SessionFolder, state: FolderState) -> Given:
    known = state if state.files else None

    def value(name: FileName) -> Any:
        content = folder.valid_content(name, known)
        return None if content is None else parsed(name, content)

    metadata: Metadata | None = value("metadata")
    conversation: GivenConversation | None = value("conversation")
    context: Context | None = value("context")
    preferences: Preferences | None = value("preferences")
    messages = conversation.messages if conversation else None
    return Given(metadata=metadata, messages=messages, context=context, preferences=preferences)


def _no_entropy(_count: int) -> bytes:
    """Every message in the files has its id, and every write its key."""
    raise RuntimeError("a write was not complete")

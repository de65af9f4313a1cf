"""opencode's own export of a session (`opencode export`), read and made. Pure.

It is `{"info": …, "messages": [{"info": …, "parts": […]}]}` with opencode's records, paths and
times as they are on the machine. In sessiond they are the same for all machines: see `mapping`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct

from sessiond.errors import InvalidInput
from sessiond.model import Context, Metadata, NewMessage, Session
from sessiond.opencode.mapping import (
    FIELD,
    Machine,
    local_message,
    local_part,
    local_session,
    neutral_message,
    neutral_part,
    neutral_session,
)

_TITLE = 1024
_ROLES = ("user", "assistant", "system", "tool")
_MS = 1000


class ExportedMessage(Struct, kw_only=True):
    """A message and its parts, as opencode has them."""

    info: dict[str, Any]
    parts: list[dict[str, Any]]


class OpencodeExport(Struct, kw_only=True):
    """A session as `opencode export` prints it."""

    info: dict[str, Any]
    messages: list[ExportedMessage]


class Read(Struct, frozen=True, kw_only=True):
    """A session out of an export."""

    metadata: Metadata
    context: Context
    messages: list[NewMessage]


def read_export(export: OpencodeExport) -> Read:
    """Return what an export says, as sessiond keeps it.

    Raises:
        InvalidInput: a record lacks its id or its time.
    """
    info = export.info
    try:
        machine = Machine(str(info["projectID"]), _worktree(info))
        neutral = neutral_session(info, machine)
        metadata = msgspec.convert(
            {
                "session_id": info["id"],
                "created_at": info["time"]["created"] / _MS,
                "last_activity": info["time"]["updated"] / _MS,
                "user_agent": f"opencode {info.get('version', '')}".strip(),
                "title": str(info.get("title", ""))[:_TITLE],
            },
            Metadata,
            strict=False,
        )
        messages = [_message(message, machine) for message in export.messages]
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise InvalidInput(f"this is no export of opencode's: {error!r}") from error
    directory = str(neutral.get("directory", ""))
    context = Context(working_directory=directory, opencode=neutral)
    return Read(metadata=metadata, context=context, messages=messages)


def make_export(session: Session, project_id: str, worktree: str, now_ms: int) -> OpencodeExport:
    """Return a session as opencode exports it on a machine.

    Args:
        session: one of opencode's.
        project_id: opencode's id of the project there.
        worktree: the project's folder there.
        now_ms: nothing is dated later.

    Raises:
        InvalidInput: the session, or a message of it, is not opencode's.
    """
    session_id, record = session.metadata.session_id, session.context.opencode
    if record is UNSET:
        raise InvalidInput(
            f"session {session_id!r} is not one of opencode's", hint="use --format json or folder"
        )
    machine = Machine(project_id, worktree, has_folder=lambda _: True)
    messages = []
    for message in session.conversation.messages:
        body = message.metadata.get(FIELD)
        if not isinstance(body, dict):
            raise InvalidInput(
                f"message {message.id!r} of session {session_id!r} is not one of opencode's",
                hint="use --format json or folder",
            )
        info = local_message(session_id, message.id, body, machine, now_ms)
        parts = [
            local_part(session_id, f"{message.id}/{part['id']}", part, machine, now_ms)
            for part in message.parts or ()
        ]
        messages.append(ExportedMessage(info=info, parts=parts))
    return OpencodeExport(info=local_session(record, machine, now_ms), messages=messages)


def _message(exported: ExportedMessage, machine: Machine) -> NewMessage:
    info = exported.info
    role = info["role"] if info["role"] in _ROLES else "assistant"
    given = {
        "id": info["id"],
        "timestamp": info["time"]["created"] / _MS,
        "role": role,
        "metadata": {FIELD: neutral_message(info, machine)},
        "parts": [neutral_part(part, machine) for part in exported.parts],
    }
    return msgspec.convert(given, NewMessage, strict=False)


def _worktree(info: dict[str, Any]) -> str:
    """Return the project's folder: the session's, without its path in the project."""
    directory, path = str(info["directory"]), str(info.get("path") or "")
    return directory.removesuffix(f"/{path}") if path else directory

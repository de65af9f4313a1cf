"""The table of routes: what is served, by whom, and what the OpenAPI document says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from msgspec import Struct

from sessiond.api.handlers import Handlers
from sessiond.api.system import System
from sessiond.api.writing import WriteHandlers
from sessiond.model import (
    Choice,
    ConflictPage,
    ConflictRecord,
    Message,
    MessagePage,
    NewMessage,
    NewMessages,
    NewPresence,
    NewSession,
    Operation,
    OperationPage,
    Part,
    PositionReply,
    PresentSessions,
    Session,
    SessionPage,
    SessionPresence,
    Window,
    Written,
    WrittenRecord,
)
from sessiond.service.status import Diagnosis, Health, KeyContent, Status

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

WRITE = ("Idempotency-Key", "Prefer", "Sessiond-Client")
CHANGE = ("If-Match", "Sessiond-Base", *WRITE)
EVENT_STREAM = "text/event-stream"


class Route(Struct, frozen=True):
    """One route. `query` and `headers` are the optional parameters it knows.

    `body` is a type, or a tuple of types of which one is sent; `unready` is answered with 503.
    `offline`: what was seen here is answered while Redis is away, too, and its age is told.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answer: Any = None
    body: Any = None
    status: int = 200
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    media_type: str = "application/json"
    unready: Any = None
    offline: bool = False


def routes(handlers: Handlers, writing: WriteHandlers, system: System) -> list[Route]:
    """Return all routes, the busiest first: aiohttp tries them in this order."""
    session = "/v1/sessions/{session_id}"
    message = session + "/messages/{message_id}"
    part = message + "/parts/{part_id}"
    conflict = session + "/conflicts/{number}"
    page = ("after", "limit")
    listing = ("workspace", "status", "user_id", "environment", "cursor", "limit")
    return [
        Route(
            "POST",
            session + "/messages",
            writing.append_messages,
            "Append a message, or an atomic group of messages",
            Written,
            (NewMessage, NewMessages),
            status=201,
            headers=WRITE,
        ),
        Route(
            "GET",
            session + "/messages",
            handlers.page_messages,
            "Page through the conversation, 8 MiB at a time, or one message",
            MessagePage,
            query=page,
            offline=True,
        ),
        Route(
            "GET",
            session + "/events",
            handlers.session_events,
            "Follow a session: what happened after a position, then what happens",
            Operation,
            query=("after",),
            headers=("Last-Event-ID",),
            media_type=EVENT_STREAM,
        ),
        Route(
            "GET",
            session + "/window",
            handlers.window,
            "What of the conversation fits a window of so many tokens, and what is left out",
            Window,
            query=("tokens", "strategy"),
            offline=True,
        ),
        Route(
            "GET",
            session + "/position",
            handlers.position,
            "Where the log ends",
            PositionReply,
            offline=True,
        ),
        Route(
            "GET",
            session + "/operations",
            handlers.operations,
            "A stretch of the log, 8 MiB at most, or one operation; `more` says that it goes on",
            OperationPage,
            query=page,
            offline=True,
        ),
        Route(
            "POST",
            session + "/live",
            handlers.send_live,
            "Announce something passing, such as typing; it is not stored",
            None,
            Any,
            status=202,
            headers=("Sessiond-Client",),
        ),
        Route(
            "PUT",
            session + "/presence/{instance}",
            handlers.announce,
            "Announce that an instance is at a session; it counts for a while, then say it again",
            SessionPresence,
            NewPresence,
            headers=("Sessiond-Client",),
        ),
        Route(
            "DELETE",
            session + "/presence/{instance}",
            handlers.leave,
            "Announce that an instance is not at a session any more",
            None,
            status=204,
        ),
        Route(
            "GET",
            session + "/presence",
            handlers.presence,
            "Who is at a session, and which files each has open",
            SessionPresence,
        ),
        Route("GET", message, handlers.read_message, "Read a message", Message, offline=True),
        Route(
            "PATCH",
            message,
            writing.edit_message,
            "Edit a message with a JSON Merge Patch",
            WrittenRecord,
            dict[str, Any],
            headers=CHANGE,
        ),
        Route(
            "DELETE",
            message,
            writing.remove_message,
            "Remove a message from the conversation",
            WrittenRecord,
            headers=CHANGE,
        ),
        Route(
            "PUT",
            part,
            writing.put_part,
            "Write a part of a message",
            WrittenRecord,
            Part,
            headers=CHANGE,
        ),
        Route("DELETE", part, writing.remove_part, "Remove a part", WrittenRecord, headers=CHANGE),
        Route("GET", session, handlers.load_session, "Load a whole session", Session, offline=True),
        Route(
            "DELETE",
            session,
            writing.delete_session,
            "Delete a session; a tombstone stays",
            PositionReply,
            headers=CHANGE,
        ),
        Route(
            "GET",
            session + "/conflicts",
            handlers.session_conflicts,
            "The conflicts of a session: what merges left out",
            ConflictPage,
            query=("state", "limit"),
        ),
        Route("GET", conflict, handlers.read_conflict, "One conflict", ConflictRecord),
        Route(
            "POST",
            conflict + "/resolution",
            writing.resolve_conflict,
            "Decide a conflict: take a side, or put a value",
            ConflictRecord,
            Choice,
            headers=("If-Match", *WRITE),
        ),
        Route(
            "GET",
            session + "/{document}",
            handlers.read_document,
            "Read a document: metadata, context or preferences",
            dict[str, Any],
            offline=True,
        ),
        Route(
            "PATCH",
            session + "/{document}",
            writing.change_document,
            "Change a document with a JSON Merge Patch",
            dict[str, Any],
            dict[str, Any],
            headers=CHANGE,
        ),
        Route(
            "PUT",
            session + "/{document}",
            writing.change_document,
            "Replace a document",
            dict[str, Any],
            dict[str, Any],
            headers=CHANGE,
        ),
        Route(
            "POST",
            "/v1/sessions",
            writing.create_session,
            "Create a session",
            Session,
            NewSession,
            status=201,
            headers=WRITE,
        ),
        Route(
            "GET",
            "/v1/sessions",
            handlers.list_sessions,
            "List sessions, most recently active first",
            SessionPage,
            query=listing,
            offline=True,
        ),
        Route(
            "GET",
            "/v1/conflicts",
            handlers.list_conflicts,
            "The conflicts of all sessions",
            ConflictPage,
            query=("state", "limit"),
        ),
        Route(
            "GET",
            "/v1/presence",
            handlers.present_sessions,
            "The sessions where somebody is",
            PresentSessions,
            query=("limit",),
        ),
        Route(
            "GET",
            "/v1/workspaces/{workspace}/events",
            handlers.workspace_events,
            "Follow all sessions of a workspace",
            Operation,
            headers=("Last-Event-ID",),
            media_type=EVENT_STREAM,
        ),
        Route("GET", "/v1/health", system.health, "The daemon runs", Health),
        Route(
            "GET",
            "/v1/ready",
            system.ready,
            "The daemon and its Redis can work",
            Health,
            unready=Health,
        ),
        Route("GET", "/v1/status", system.status, "What the daemon does", Status),
        Route(
            "GET",
            "/v1/doctor",
            system.doctor,
            "What is wrong with the daemon and its Redis, and what they can promise",
            Diagnosis,
        ),
        Route("GET", "/v1/config", system.read_config, "The options in force", dict[str, str]),
        Route(
            "PATCH",
            "/v1/config",
            system.change_config,
            "Change options of the running daemon",
            dict[str, str],
            dict[str, str],
        ),
        Route(
            "GET",
            "/v1/redis",
            system.read_key,
            "What one key in Redis holds, decoded",
            KeyContent,
            query=("key", "limit"),
        ),
        Route("GET", "/openapi.json", system.openapi, "This document", dict[str, Any]),
    ]

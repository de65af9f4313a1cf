"""Reading requests: every value from outside is checked here, before anything acts on it."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar, get_args

import msgspec
from aiohttp import web

from sessiond.codec import json
from sessiond.errors import IncompleteBody, InvalidInput, NotFound
from sessiond.model import DOCUMENTS, ConflictState, DocumentName
from sessiond.policy.caching import checked_key
from sessiond.service.writing import Request
from sessiond.sync.names import checked, checked_version

Body = TypeVar("Body")

_BODY_SECONDS = 3.0
_LONGEST_WAIT_SECONDS = 60
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_ANY = msgspec.json.Decoder()


def session_id(request: web.Request) -> str:
    """Return the session id of the address."""
    return checked("session_id", request.match_info["session_id"])


def message_id(request: web.Request) -> str:
    """Return the message id of the address."""
    return checked("message_id", request.match_info["message_id"])


def part_id(request: web.Request) -> str:
    """Return the part id of the address."""
    return checked("part_id", request.match_info["part_id"])


def instance(request: web.Request) -> str:
    """Return the instance's name of the address."""
    return checked("instance", request.match_info["instance"])


def workspace(request: web.Request) -> str:
    """Return the workspace key of the address."""
    return checked("workspace", request.match_info["workspace"])


def cache_key(request: web.Request) -> str:
    """Return the key of a cached answer of the address."""
    return checked_key(request.match_info["key"])


def user_id(request: web.Request) -> str:
    """Return the user's id of the address."""
    return checked("user_id", request.match_info["user_id"])


def document_name(request: web.Request) -> DocumentName:
    """Return the document's name of the address.

    Raises:
        NotFound: there is no such document.
    """
    for name in DOCUMENTS:
        if request.match_info["document"] == name:
            return name
    raise NotFound(
        f"there is no {request.path!r}", hint=f"the documents are {', '.join(DOCUMENTS)}"
    )


def client(request: web.Request) -> str:
    """Return who asks: Sessiond-Client."""
    return _header(request, "Sessiond-Client", "client")


def write_request(request: web.Request) -> Request:
    """Return what the headers say about a write.

    These are Idempotency-Key, If-Match or Sessiond-Base, and Sessiond-Client.
    """
    expected, base = _version(request, "If-Match"), _version(request, "Sessiond-Base")
    if expected and base:
        raise InvalidInput(
            "If-Match and Sessiond-Base exclude one another",
            hint="If-Match refuses what is not current; Sessiond-Base merges with it",
        )
    return Request(
        key=_header(request, "Idempotency-Key", "Idempotency-Key"),
        expected=expected,
        base=base,
        client=client(request),
    )


def patience(request: web.Request) -> float | None:
    """Return how many seconds the caller wants to wait for Redis: Prefer (RFC 7240).

    `wait=N` says so, `respond-async` alone means not at all; None when nothing is said.
    """
    seconds = None
    for text in request.headers.getall("Prefer", ()):
        for preference in text.split(","):
            name, _, value = preference.strip().partition("=")
            if name.lower() == "wait" and _NUMBER.fullmatch(value):
                return float(min(int(value), _LONGEST_WAIT_SECONDS))
            if name.lower() == "respond-async":
                seconds = 0.0
    return seconds


def conflict_number(request: web.Request) -> str:
    """Return the conflict's number of the address."""
    return checked("conflict", request.match_info["number"])


def conflict_state(request: web.Request) -> ConflictState | None:
    """Return the state that conflicts are asked for, from the query."""
    text = request.query.get("state")
    for state in get_args(ConflictState):
        if text == state:
            found: ConflictState = state
            return found
    if text is not None:
        raise InvalidInput(
            f"state is {text[:80]!r}", hint=f"it is one of {', '.join(get_args(ConflictState))}"
        )
    return None


async def body(request: web.Request, decoder: msgspec.json.Decoder[Body]) -> Body:
    """Return the decoded body."""
    return json.decode(await raw_body(request), decoder)


async def raw_body(request: web.Request) -> bytes:
    """Return the body, which must arrive in time and not be empty."""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            data = await request.read()
    except TimeoutError as error:
        raise IncompleteBody(
            f"the body did not arrive within {_BODY_SECONDS:g} s, or is broken"
        ) from error
    if not data:
        raise InvalidInput("the body is empty", hint="send JSON")
    return data


async def any_body(request: web.Request) -> object:
    """Return a body of any shape."""
    return await body(request, _ANY)


def check_query(request: web.Request, *known: str) -> None:
    """Refuse query parameters that would be ignored."""
    for name in request.query:
        if len(request.query.getall(name)) > 1:
            raise InvalidInput(f"{name[:80]!r} stands more than once", hint="send it once")
        if name not in known:
            hint = f"these are known here: {', '.join(known)}" if known else "none is known here"
            raise InvalidInput(f"unknown query parameter {name[:80]!r}", hint=hint)


def optional_number(request: web.Request, name: str, lowest: int, highest: int) -> int | None:
    """Return a whole number from the query; None where it says none."""
    return number(request, name, lowest, lowest, highest) if name in request.query else None


def number(request: web.Request, name: str, default: int, lowest: int, highest: int) -> int:
    """Return a whole number from the query."""
    text = request.query.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text) or not lowest <= int(text) <= highest:
        raise InvalidInput(
            f"{name} is {text[:80]!r}, expected a whole number from {lowest} to {highest}"
        )
    return int(text)


def flag(request: web.Request, name: str) -> bool:
    """Return a truth value from the query; without it, false."""
    text = request.query.get(name, "false")
    if text not in ("true", "false"):
        raise InvalidInput(f"{name} is {text[:80]!r}, expected true or false")
    return text == "true"


def _version(request: web.Request, header: str) -> str:
    value = request.headers.get(header)
    if value is None or value == "*":
        return ""
    version = value[1:-1] if value.startswith('"') and value.endswith('"') else value
    if not version:
        raise InvalidInput(f"{header} is empty", hint="send the version as received")
    return checked_version(version)


def _header(request: web.Request, name: str, kind: str) -> str:
    value = request.headers.get(name)
    return "" if value is None else checked(kind, value)
